"""Text that others wrote, in output of ours: one function for each kind of output, applied where the text leaves.

Source lines, names of files and classes, versions and reasons come from releases that nobody has reviewed. What they
hold is shown, and never obeyed: not by a terminal, a runner of GitHub Actions, a parser of XML, Markdown or HTML, or
Python.
"""

from __future__ import annotations

import json
import keyword
import re
from typing import Any


class _Escapes(dict[int, str]):
    """A table for ``str.translate``: what is not printable, as Python writes it in a string; made as it is needed."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        self[code] = char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        return self[code]


_TEXT = _Escapes({ord("\n"): "\n", ord("\t"): "\t"})
_LINE = _Escapes({ord("\t"): "\t"})

# What is no visible ASCII counts as not there: the runner skips white space, and .NET compares as a culture does,
# which ignores some characters.
_COMMAND = re.compile(r"^([^!-~]*):(?=[^!-~]*:)", re.MULTILINE)
_HASHES = re.compile(r"#([^!-~\n]*)#(?=[^!-~\n]*\[)")

_MARKDOWN = re.compile(r"[\\`*<>|\[\]&~#!]|(?<![^\W_])_|_(?![^\W_])|(?<=:)/|(?<=www)\.|@")


def visible(text: str) -> str:
    """Text for a terminal: what is not printable is shown as an escape, such as ``\\x1b``; new lines and tabs stay.

    That covers escape sequences, C1 controls, backspaces, carriage returns, direction marks (which make code look like
    other code), invisible characters and lone surrogates.
    """
    return text if text.isprintable() else text.translate(_TEXT)


def one_line(text: str) -> str:
    """:func:`visible` in one line: a line end is shown as an escape too, so none can pass for one of ours."""
    return text if text.isprintable() else text.translate(_LINE)


def indented(text: str) -> str:
    """:func:`visible`, where every line but the first is indented: none of them can pass for a line of ours."""
    return visible(text).replace("\n", "\n    ")


def without_commands(text: str) -> str:
    """Text for the log of GitHub Actions, in which no line is a command to the runner.

    The runner obeys ``::name ...::`` at the start of a line and ``##[name ...]`` anywhere in it; one character of that
    is shown as an escape. See ``ActionCommand.cs`` of https://github.com/actions/runner.

    Args:
        text: as :func:`visible` gives it.
    """
    return _HASHES.sub(r"#\1\\x23", _COMMAND.sub(r"\1\\x3a", text))


def workflow_command(name: str, text: str, **properties: str) -> str:
    """A command to the runner of GitHub Actions, in one line.

    Data and properties are escaped as ``escapeData`` and ``escapeProperty`` of https://github.com/actions/toolkit do.
    """
    words = ",".join(f"{key}={_escaped_property(value)}" for key, value in properties.items())
    return f"::{name}{f' {words}' if words else ''}::{_escaped_data(text)}"


def _escaped_data(text: str) -> str:
    return visible(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _escaped_property(text: str) -> str:
    return _escaped_data(text).replace(":", "%3A").replace(",", "%2C")


def json_text(data: Any) -> str:
    """JSON in ASCII, with sorted keys, for people and logs too: it holds no command to GitHub's runner."""
    return json.dumps(data, indent=1, sort_keys=True).replace("##[", "#\\u0023[")  # "#" stands only in strings


def json_in_html(data: Any) -> str:
    """JSON for a ``script`` element of a page that shows its strings: as code that looks like what it is."""
    # "</script>" or "<!--" in a string would end the element that holds the data.
    return json.dumps(_shown(data), separators=(",", ":")).replace("<", "\\u003c")


def _shown(data: Any) -> Any:
    if isinstance(data, str):
        return visible(data)
    if isinstance(data, dict):
        return {visible(key): _shown(value) for key, value in data.items()}
    return [_shown(item) for item in data] if isinstance(data, (list, tuple)) else data


def xml_text(text: str) -> str:
    """Text for an element or attribute of XML 1.0, before its markup is escaped: only characters that it may hold.

    What XML forbids (https://www.w3.org/TR/xml/#charsets) is not printable.
    """
    return without_commands(visible(text))


def markdown(text: str) -> str:
    """Text inside a line, or a table's cell, of Markdown: shown letter by letter, without mark-up, HTML or links."""
    return _MARKDOWN.sub(lambda found: "&#64;" if found[0] == "@" else f"\\{found[0]}", one_line(text))


def fenced(text: str) -> str:
    """Text as a block of code in Markdown, with a fence that it does not hold."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{visible(text)}\n{fence}\n"


def is_name(name: str) -> bool:
    """Whether something is a name with dots, as Python imports it: nothing else is ever put into code."""
    return all(part.isidentifier() and not keyword.iskeyword(part) for part in name.split("."))


def string_literal(name: str) -> str:
    """A name as a string of Python code; letters that are not ASCII are escaped, because some look like others.

    Raises:
        ValueError: it is no name, see :func:`is_name`.
    """
    if not is_name(name):
        raise ValueError(f"{name!r} is no name")
    return f'"{ascii(name)[1:-1]}"'
