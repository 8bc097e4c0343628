"""Text as an attacker writes it, and two judges of output: of what a terminal obeys, and GitHub's runner."""

from __future__ import annotations

import re
import unicodedata

from hypothesis import strategies as st

ATTACKS = (
    "\x1b[2J\x1b[1;1Hverified: 3 rewritten",
    "\x1b]0;title\x07",
    "\x1b]8;;https://example.org\x1b\\link\x1b]8;;\x1b\\",
    "\x9b31m",
    "drifted\b\b\b\b\b\b\bfine   ",
    "drifted\rfine",
    "if access \u202e\u2066# no\u2069 \u2066:",
    "\u200b::error::zero width",
    "\ud800",
    "\udcff",
    "\0",
    "\ufffe\uffff",
    "\u2028verified\u2029",
    "::error file=a.py,line=1::message",
    "  ::add-mask::verified",
    "a\n::set-output name=code::0",
    "a\r::stop-commands::token",
    "a\r\n\u3000::warning::x",
    "##[error]x",
    "# ##[add-mask]x",
    "####[group]x",
    "##[##[error]",
    ":\b:error::x",
    "#\b#[error]",
    "]]>",
    "</script><script>alert(1)</script><!--",
    "| a | `b` | <b> | [c](https://example.org) | ![d](e) | *f* | _g_ | @everyone | https://example.org | www.a.org | &lt;",
    "```\n# heading\n",
    '"; import os; "',
    "line\nverified: everything",
)


def _joined(text: str) -> str:
    """Two halves of a surrogate pair beside each other as the character that they make: JSON cannot tell them apart."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


texts = st.one_of(
    st.sampled_from(ATTACKS),
    st.text(st.characters()),
    st.lists(st.sampled_from([*ATTACKS, ":", "#", "[", "]", "\n", " ", "`", "|", "\\", "&", "%", ","])).map("".join),
).map(_joined)


def controls(text: str) -> set[str]:
    """Characters that a terminal obeys, or that hide, turn or break text."""
    return {char for char in text if unicodedata.category(char) in {"Cc", "Cf", "Cs", "Zl", "Zp"}} - {"\n", "\t"}


def obeyed(text: str) -> list[str]:
    """The lines that GitHub's runner takes for commands, by ActionCommand.cs, whatever they are called."""
    lines = re.split(r"[\r\n]", text)
    new = [line for line in lines if re.match(r"\s*::.*?::", re.sub(r"[^\x20-\x7e\s]", "", line))]
    return new + [line for line in lines if "##[" in re.sub(r"[^\x21-\x7e]", "", line)]
