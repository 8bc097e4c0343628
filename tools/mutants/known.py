"""Faults that no test found when they were tried; each must be found now."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from tools.mutants.configuration import read_toml
from tools.mutants.mutant import Mutant, digest

LISTED = Path(__file__).with_name("known.toml")
OPERATOR = "known"


class KnownFaultError(Exception):
    """An entry does not fit the source any more."""


def known_mutants(root: Path, listed: Path = LISTED) -> list[Mutant]:
    """The faults in a file, each as a mutant whose function is its name.

    Args:
        root: the repository's root.
        listed: the TOML file: ``name``, ``effect``, ``file``, and the text ``before``, found once in it, and ``after``.

    Raises:
        KnownFaultError: the source has not that text exactly once: the entry must follow what the source became.
    """
    return [_mutant(root, **entry) for entry in read_toml(listed).get("fault", ())]


def _mutant(root: Path, name: str, effect: str, file: str, before: str, after: str) -> Mutant:
    text = (root / file).read_text("utf-8")
    if text.count(before) != 1:
        raise KnownFaultError(f"{file} has {before!r} {text.count(before)} times, for the fault {name!r}: {effect}")
    start = text.index(before)
    line, column = text.count("\n", 0, start) + 1, start - (text.rfind("\n", 0, start) + 1)
    code = partial(_code, before, after)
    return Mutant(file, line, column, OPERATOR, name, 0, digest(text), code, partial(text.replace, before, after))


def _code(before: str, after: str) -> tuple[str, str]:
    return " ".join(before.split()), " ".join(after.split())
