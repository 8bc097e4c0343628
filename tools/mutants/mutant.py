"""A mutant: one fault at one place of one file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property


def digest(text: str) -> str:
    """A short hash of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        file: path of the source file from the repository's root, with ``/``.
        line: of the place, from 1.
        column: of the place, from 0.
        operator: name of the operator that made it.
        function: qualified name of the function or class around it; empty at the top of the module.
        occurrence: how many mutants of the same operator in this function stand before it.
        text: hash of the file that it changes.
        code: gives the code that is changed and what it becomes, each in one line.
        make: makes the file's text with the fault in it.
    """

    file: str
    line: int
    column: int
    operator: str
    function: str
    occurrence: int
    text: str
    code: Callable[[], tuple[str, str]] = field(repr=False, compare=False)
    make: Callable[[], str] = field(repr=False, compare=False)

    @property
    def key(self) -> str:
        """What results are kept under: the place in exactly this text."""
        place = f"{self.file}:{self.line}:{self.column}"
        return f"{place}:{self.function}:{self.operator}:{self.occurrence}:{self.text}"

    @cached_property
    def description(self) -> tuple[str, str, str, str, str]:
        """File, function, operator, and the code before and after: the same when other lines of the file change."""
        return self.file, self.function, self.operator, *self.code()

    def rank(self, seed: int) -> str:
        """Its place in the order that a seed gives; it depends on no other function."""
        return digest("\0".join([str(seed), self.file, self.function, self.operator, str(self.occurrence)]))
