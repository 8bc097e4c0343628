"""The scan: what every class of a release would be taken for by its structure alone, and what the rewriter makes of it.

Each file is read and parsed once, and nothing is imported. The result says the same of the same text, in a fixed order,
so that the scans of two releases can be compared line by line.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

from patchkit.arch.spec import Block, Part, description
from patchkit.check.static.verdicts import PartOutcome
from patchkit.derivation.derive import NO_LINEAR, derive_from_text
from patchkit.errors import RewriteError
from patchkit.upstream.classes import class_table
from patchkit.upstream.method_text import find_method
from patchkit.upstream.release import Release

_QUOTED = re.compile(r"`[^`]*`")


@dataclass(frozen=True)
class Scanned:
    """One class that defines ``forward`` and calls a linear layer there.

    Attributes:
        path: file of the class in the release.
        class_name: the class.
        line: its first line, 1-based.
        block: the description that its structure gives; None if it gives none.
        why: why there is none; empty if there is one.
        parts: what the rewriter makes of each part of the block.
    """

    path: str
    class_name: str
    line: int
    block: Block | None = None
    why: str = ""
    parts: Mapping[Part, PartOutcome] = field(default_factory=dict)

    @property
    def whole(self) -> bool:
        """Whether every part is rewritten by one rule that takes all of it."""
        return self.block is not None and all(self.parts[part].whole for part in self.block.parts)

    def __str__(self) -> str:
        """One line without numbers of lines, which are others in every release."""
        if self.block is None:
            return f"{self.path}: {self.class_name}: nothing: {self.why}"
        parts = "; ".join(f"{part}: {_said(self.parts[part])}" for part in self.block.parts)
        return f"{self.path}: {self.class_name}: {description(self.block)}: {parts}"


def _said(outcome: PartOutcome) -> str:
    rules = " ".join(outcome.rules)
    return "; ".join([*([rules] if rules else []), *outcome.reasons])


def scan(release: Release, *, progress: Callable[[int, int], None] = lambda done, of: None) -> list[Scanned]:
    """Scan every model file of a release, in the order of paths and of class names.

    Args:
        release: what to read.
        progress: is told how many of how many files are done.

    Raises:
        ReleaseError: a file of the release cannot be read.
    """
    found: list[Scanned] = []
    paths = release.model_files()
    for done, path in enumerate(paths):
        progress(done, len(paths))
        try:
            source = release.read(path)
        except RewriteError as error:
            found.append(Scanned(path, "", 1, why=str(error)))
            continue
        found.extend(scan_text(source or "", path))
    progress(len(paths), len(paths))
    return found


def scan_text(source: str, path: str) -> list[Scanned]:
    """Scan the classes of one file, in the order of their names. A file that does not parse is one entry that says so.

    Args:
        source: its text.
        path: what to call it.
    """
    try:
        classes = class_table(source, path).classes
    except RewriteError as error:
        return [Scanned(path, "", 1, why=str(error))]
    entries = (classes[name] for name in sorted(classes) if classes[name].has_forward)
    return [found for entry in entries if (found := _scan_class(source, path, entry.name, entry.line)) is not None]


def _scan_class(source: str, path: str, name: str, line: int) -> Scanned | None:
    try:
        derived = derive_from_text(source, name, path)
        if isinstance(derived, str):
            return None if derived == NO_LINEAR else Scanned(path, name, line, why=derived)
        forward = find_method(source, name, "forward", path).text
        parts = _outcomes(forward, replace(derived, class_name=_ALONE))
    except RewriteError as error:
        return Scanned(path, name, line, why=str(error))
    return Scanned(path, name, line, derived, parts=parts)


_ALONE = "Alone"
"""The class in which a method is rewritten without the rest of its file."""


@lru_cache(maxsize=1024)
def _outcomes(forward: str, block: Block) -> Mapping[Part, PartOutcome]:
    """What the rewriter makes of a method. Half of the methods of a release are copies of another one.

    Raises:
        RewriteError: see :func:`patchkit.rewrite.rewriter.rewrite`.
    """
    from patchkit.rewrite.rewriter import rewrite  # imports libcst: not needed where nothing is derived

    rewritten = rewrite(f"class {_ALONE}:\n{forward}", block)
    return {
        part: PartOutcome(
            tuple(site.rule for site in rewritten.sites if site.part == part),
            tuple(skip.reason for skip in rewritten.skips if skip.part == part),
        )
        for part in block.parts
    }


# ---- figures


@dataclass(frozen=True)
class Figures:
    """What a scan comes to.

    Attributes:
        proposed: how many classes are described, by kind.
        whole: of how many of them every part is rewritten whole, by kind.
        parts: how often each part is rewritten by which rules, as ``qkv: qkv-together``.
        reasons: how often a part is left or rewritten to less, as ``qkv: REASON``, without the code that it quotes.
        nothing: how often each reason is given for no description, likewise.
    """

    proposed: Counter[str]
    whole: Counter[str]
    parts: Counter[str]
    reasons: Counter[str]
    nothing: Counter[str]


def figures(scanned: Iterable[Scanned]) -> Figures:
    """Count what a scan has found."""
    counted = Figures(Counter(), Counter(), Counter(), Counter(), Counter())
    for one in scanned:
        if one.block is None:
            counted.nothing[_kind_of(one.why)] += 1
            continue
        kind = type(one.block).__name__
        counted.proposed[kind] += 1
        counted.whole[kind] += one.whole
        for part, text in _of_parts(one):
            counted.parts[f"{part}: {' '.join(sorted(set(one.parts[part].rules))) or 'nothing'}"] += not text
            if text:
                counted.reasons[f"{part}: {_kind_of(text)}"] += 1
    return counted


def _of_parts(one: Scanned) -> Iterator[tuple[Part, str]]:
    """Each part, once with nothing and once with each reason that is given for it."""
    for part, outcome in one.parts.items():
        yield part, ""
        yield from ((part, reason) for reason in outcome.reasons)


def _kind_of(reason: str) -> str:
    return _QUOTED.sub("`…`", reason)
