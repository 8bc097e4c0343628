"""pytest with ``--patchkit-arch NAME``: a test for each part of each block of an architecture, and for its numbers.

    pytest --patchkit-arch acme

Found through the entry point ``pytest11``. Without the option nothing of patchkit but this file is imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from patchkit.arch.spec import Architecture
    from patchkit.check.architecture.verification import Verification
    from patchkit.errors import PatchkitError

_FOUND: pytest.StashKey[dict[str, Verification | PatchkitError]] = pytest.StashKey()
"""What was found of each architecture: its tests share one verification."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.getgroup("patchkit", "patchkit").addoption(
        "--patchkit-arch",
        action="append",
        default=[],
        metavar="NAME",
        help="verify this architecture (or glob): a test for each part of each block, and for its numbers; repeatable",
    )


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by -k and -m
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add the tests of the architectures that were asked for.

    Raises:
        pytest.UsageError: there is no such architecture.
    """
    if patterns := config.getoption("--patchkit-arch"):
        items += _items(session, patterns)


def _items(session: pytest.Session, patterns: list[str]) -> Iterator[ArchitectureItem]:
    from patchkit.arch.registry import find, select
    from patchkit.check.architecture.verification import NUMBERS
    from patchkit.errors import UnknownArchitectureError

    try:
        chosen = select(patterns)
    except UnknownArchitectureError as error:
        raise pytest.UsageError(f"--patchkit-arch: {error}") from error
    for architecture in chosen:
        blocks = architecture.blocks or tuple(b for name in architecture.text_models[:1] for b in find(name).blocks)
        for block in blocks:
            for what in (*block.parts, NUMBERS):
                name = f"{architecture.name}::{block.class_name}::{what}"
                yield ArchitectureItem.from_parent(
                    session,
                    name=name,
                    nodeid=f"patchkit::{name}",
                    architecture=architecture,
                    block=block.class_name,
                    what=what,
                )


class ArchitectureItem(pytest.Item):
    """One part of one block, or the numbers of a block.

    Attributes:
        architecture: whose block it is.
        block: the class that the architecture names.
        what: a part, or ``numbers``.
    """

    def __init__(self, *, architecture: Architecture, block: str, what: str, **options: Any) -> None:
        super().__init__(**options)
        self.architecture, self.block, self.what = architecture, block, what

    def runtest(self) -> None:
        """Look the verdict up; the first test of an architecture verifies all of it.

        Raises:
            ArchitectureError: there is a problem, or nothing was shown.
        """
        from patchkit.check.architecture.verification import NUMBERS
        from patchkit.errors import ArchitectureError, PatchkitError

        found = self._found()
        if isinstance(found, PatchkitError):
            raise found
        verdicts = found.of(self.block, self.what) or (found.of("", NUMBERS) if self.what == NUMBERS else ())
        if not verdicts:
            raise ArchitectureError(f"{self.block} {self.what}: nothing was shown")
        if any(verdict.problems for verdict in verdicts):
            raise ArchitectureError("\n".join(map(str, verdicts)))

    def _found(self) -> Verification | PatchkitError:
        from patchkit.check.architecture.verification import verification
        from patchkit.errors import PatchkitError

        kept = self.session.stash.setdefault(_FOUND, {})
        name = self.architecture.name
        if name not in kept:
            try:
                kept[name] = verification(name)
            except PatchkitError as error:  # that its package is not there is a fault of each of its tests
                kept[name] = error
        return kept[name]

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """What was found, without a traceback: it is of no code of the reader's."""
        from patchkit.errors import PatchkitError

        if isinstance(excinfo.value, PatchkitError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Where it is, for reports."""
        return self.path, None, self.name
