"""Upstream's source as text: its lines, its syntax tree, and the one error that reading it ends in.

Nobody reviewed this text. Everything that reads it comes here, so that each failure is of one kind and names its place.
"""

from __future__ import annotations

import ast
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from patchkit.errors import PatchkitError, RewriteError

NOT_PARSED = "the source does not parse"
"""How the message begins where a text is no Python."""


def split_lines(source: str) -> list[str]:
    """The lines of a text with their ends, as Python's tokenizer counts them."""
    # newline="" splits where the tokenizer does; str.splitlines would also split at form feeds.
    return list(io.StringIO(source, newline=""))


@contextmanager
def failures_of(filename: str, what: str, line: int = 1) -> Iterator[None]:
    """Turn every failure of work on text that somebody else wrote into a RewriteError; errors of patchkit pass.

    Such text can exceed each limit there is, in any function that reads it, and must not end more than its own class.

    Args:
        filename: where the text is from; empty if nobody knows, and then the message names no place.
        what: what failed: ``the source does not parse``.
        line: where, unless the failure says it.

    Raises:
        RewriteError: something failed.
    """
    try:
        yield
    except PatchkitError:
        raise
    except SyntaxError as error:
        raise RewriteError(f"{place(filename, error.lineno or line)}{what}: {error.msg}") from error
    except (RecursionError, MemoryError) as error:
        raise RewriteError(f"{place(filename, line)}{what}: it is nested too deeply, or too large") from error
    except Exception as error:
        raise RewriteError(f"{place(filename, line)}{what}: {type(error).__name__}: {error}") from error


def place(filename: str, line: int) -> str:
    """How a message begins that names a place: ``a.py:1: ``. Nothing for a text whose file nobody knows."""
    return f"{filename}:{line}: " if filename else ""


def parsed(source: str, filename: str = "") -> ast.Module:
    """The tree of a text. It is shared with whoever asks next, so nobody may change it.

    Args:
        source: text of a module.
        filename: what to call it in an error message.

    Raises:
        RewriteError: it does not parse, or is nested too deeply.
    """
    with failures_of(filename, NOT_PARSED):
        return _tree(source)


def parsed_alone(source: str, filename: str = "") -> list[ast.stmt]:
    """The statements of a piece of a text, such as a class, which may be indented as a whole. They are not kept.

    Args:
        source: whole lines.
        filename: what to call it in an error message.

    Raises:
        RewriteError: it does not parse, or is nested too deeply.
    """
    indented = source.lstrip("\r\n\f")[:1] in {" ", "\t"}
    with failures_of(filename, NOT_PARSED):
        # Dedenting the text instead would change strings of several lines.
        body = _parse(f"if 1:\n{source}" if indented else source).body
    if not indented:
        return body
    (wrapper,) = body
    assert isinstance(wrapper, ast.If)
    return wrapper.body


@lru_cache(maxsize=4)
def _tree(source: str) -> ast.Module:
    """What :func:`parsed` gives. Attention and MLP stand in one file, and the towers of a model in two."""
    return _parse(source)


def _parse(source: str) -> ast.Module:
    # Upstream's invalid escapes are not the user's business, and under -W error they would be syntax errors.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(source)
