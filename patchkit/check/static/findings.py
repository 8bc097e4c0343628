"""The static stage: every registered block of a release is rewritten, as text, and what came of it is noted.

Outcomes depend on the class's source alone, so they are kept in the cache under its hash: what did not change between
two releases is rewritten once. Imports neither torch nor transformers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from patchkit.arch.registry import architectures, find, foreign_description
from patchkit.arch.spec import Architecture, Block, Part
from patchkit.cache.storage import OUTCOMES, cache_directory, read_ours, warn_once, write_whole
from patchkit.check.static.verdicts import ABSENT, PartOutcome
from patchkit.errors import CacheError, RewriteError
from patchkit.rewrite import REWRITE_VERSION
from patchkit.rewrite.sites import Rewritten
from patchkit.trust.ledger import Key
from patchkit.upstream.classes import ClassEntry, ClassTable, class_table
from patchkit.upstream.identity import source_hash
from patchkit.upstream.release import Release, module_path
from patchkit.upstream.text import failures_of

_MOST_HEIRS = 64
"""How many classes that inherit from a block are rewritten; in transformers there are three at most."""


@dataclass(frozen=True)
class Finding:
    """One class of one architecture in one release.

    Attributes:
        release: version of transformers.
        architecture: its name.
        block: the class that the architecture file names.
        class_name: that class, or one that inherits from it and has a ``forward`` of its own.
        owner: qualified name of the class whose body defines its ``forward``; empty if there is none.
        path: file of that class in the release, or where it should be.
        line: its first line; 0 if it is not there.
        source: hash of its source; empty if it is not there.
        parts: the outcome of every part that it should have.
        rewritten: hash of the rewritten method; empty if nothing was rewritten.
    """

    release: str
    architecture: str
    block: str
    class_name: str
    owner: str
    path: str
    line: int
    source: str
    parts: Mapping[Part, PartOutcome]
    rewritten: str = ""


def key_of_finding(finding: Finding, rewrite: int = REWRITE_VERSION) -> Key:
    """What a numeric proof of the class of a finding is of.

    Args:
        finding: of a class whose source is known.
        rewrite: version of the rewriter.
    """
    architecture = architectures().get(finding.architecture)  # records may be of a plugin that is gone
    named = [block for block in architecture.blocks if block.class_name == finding.block] if architecture else []
    description = foreign_description(architecture, named[0]) if architecture and named else ""
    return Key(finding.owner, finding.source, rewrite, description=description)


def findings_of(release: Release, architecture: Architecture) -> list[Finding]:
    """Rewrite every block of an architecture on the source of a release; also the classes that inherit from one.

    An architecture without blocks gives one finding without parts, which says whether the release has it.

    Raises:
        ReleaseError: a file of the release cannot be read.
    """
    if not architecture.blocks:
        path = module_path(architecture.module)
        try:
            line = 0 if release.read(path) is None else 1
        except RewriteError:  # it is there, and nothing is looked for in it
            line = 1
        return [Finding(release.version, architecture.name, "", "", "", path, line, "", {})]
    return [finding for block in architecture.blocks for finding in _findings_of_block(release, architecture, block)]


def findings_named(release: Release, architecture: str) -> list[Finding]:
    """:func:`findings_of` by name, for processes: what is sent to them stays small."""
    return findings_of(release, find(architecture))


def block_named(architecture: Architecture, class_name: str) -> Block:
    """The block of an architecture with this class name."""
    return next(block for block in architecture.blocks if block.class_name == class_name)


def findings_of_lost(release: Release, architecture: str, why: str) -> list[Finding]:
    """The findings where something ended the process that examined an architecture: its blocks are there, unmatched."""
    described = find(architecture)
    path = module_path(described.module)
    return [_missing(release, described, block, path, f"{path}:1: {why}", absent=False) for block in described.blocks]


def _findings_of_block(release: Release, architecture: Architecture, block: Block) -> Iterator[Finding]:
    path = module_path(architecture.module)
    try:
        source = release.read(path)
        if source is None:
            yield _missing(release, architecture, block, path, f"the release has no {path}")
            return
        table = class_table(source, path)
    except RewriteError as error:
        yield _missing(release, architecture, block, path, str(error), absent=False)
        return
    if block.class_name not in table.classes:
        yield _missing(release, architecture, block, path, f"{path} has no class {block.class_name}")
        return
    heirs = table.heirs(block.class_name)
    for name in [block.class_name, *heirs[:_MOST_HEIRS]]:
        yield _finding_of_class(release, architecture, block, name)
    for name in heirs[_MOST_HEIRS:]:
        why = f"{path}:{table.classes[name].line}: only {_MOST_HEIRS} classes that inherit from one are rewritten"
        yield replace(_missing(release, architecture, block, path, why, absent=False), class_name=name)


def _missing(
    release: Release, architecture: Architecture, block: Block, path: str, why: str, *, absent: bool = True
) -> Finding:
    reasons = (f"{ABSENT}{why}" if absent else why,)
    outcomes = {part: PartOutcome(reasons=reasons) for part in block.parts}
    return Finding(release.version, architecture.name, block.class_name, block.class_name, "", path, 0, "", outcomes)


def _naming(name: str, path: str, error: str) -> str:
    """An error with its place, which those of one class's text lack."""
    return error if error.startswith(path) else f"{path}: class {name}: {error}"


def _finding_of_class(release: Release, architecture: Architecture, block: Block, name: str) -> Finding:
    found = owner_of_forward(release, architecture.module, name)
    if isinstance(found, str):
        missing = _missing(release, architecture, block, module_path(architecture.module), found, absent=False)
        return replace(missing, class_name=name)
    path = module_path(found.module)
    try:
        with failures_of(path, f"class {name} cannot be examined", found.entry.line):
            source = found.entry.source
            outcome = _remembered(found, source, replace(block, class_name=found.entry.name))
    except RewriteError as error:
        missing = _missing(release, architecture, block, path, _naming(name, path, str(error)), absent=False)
        return replace(missing, class_name=name, line=found.entry.line)
    return Finding(
        release.version,
        architecture.name,
        block.class_name,
        name,
        f"{found.module}.{found.entry.name}",
        path,
        found.entry.line,
        source,
        outcome.parts,
        outcome.rewritten,
    )


# ---- which class defines forward


@dataclass(frozen=True)
class Owner:
    """The class whose body defines a ``forward``, and where it stands.

    Attributes:
        module: its module.
        text: text of that module.
        table: the classes of that module.
        entry: the class.
    """

    module: str
    text: str
    table: ClassTable
    entry: ClassEntry

    def rewrite(self, block: Block) -> Rewritten:
        """Rewrite its ``forward``. Lines are those of the module.

        Raises:
            RewriteError: see :func:`patchkit.rewrite.rewriter.rewrite`.
        """
        from patchkit.rewrite.rewriter import rewrite  # imports libcst: not needed where every outcome is remembered

        named = replace(block, class_name=self.entry.name)
        return rewrite(self.text, named, filename=module_path(self.module))


def owner_of_forward(release: Release, module: str, name: str) -> Owner | str:
    """Follow the bases of a class, also into other modules of the release, to the one that defines ``forward``.

    Depth first, from left to right, and each class once: bases may be repeated, and may even go round in a circle.

    Returns:
        The owner, or why it cannot be found.

    Raises:
        ReleaseError: a file of the release cannot be read.
    """
    why = ""
    modules: dict[str, tuple[str, ClassTable] | str] = {}
    waiting, seen = [(module, name)], set()
    while waiting:
        there, inner = place = waiting.pop()
        if place in seen:
            continue
        seen.add(place)
        if there not in modules:
            modules[there] = _module(release, there)
        known = modules[there]
        if isinstance(known, str):
            why = why or known
            continue
        text, table = known
        entry = table.classes.get(inner)
        if entry is None:
            why = why or f"{module_path(there)} has no class {inner}"
        elif entry.has_forward:
            return Owner(there, text, table, entry)
        else:
            why = (
                why or f"{module_path(there)}:{entry.line}: class {inner} has no forward, and no base with one is found"
            )
            waiting.extend(reversed([place for base in entry.bases if (place := _place(base, there, table))[0]]))
    return why


def _module(release: Release, module: str) -> tuple[str, ClassTable] | str:
    """Text and classes of a module, or why they cannot be had."""
    path = module_path(module)
    try:
        text = release.read(path)
        return f"the release has no {path}" if text is None else (text, class_table(text, path))
    except RewriteError as error:
        return str(error)


def _place(base: str, module: str, table: ClassTable) -> tuple[str, str]:
    """The module of a base, as it is written in ``module``, and its name there; no module if it lies elsewhere."""
    if base in table.classes:
        return module, base
    imported, name = table.imports.get(base, ("", base))
    return _absolute(imported, module), name


def _absolute(imported: str, module: str) -> str:
    """The absolute name of a module that ``module`` imports as ``..a.b``; empty if it lies outside of the package."""
    dots = len(imported) - len(imported.lstrip("."))
    if not dots:
        return imported if imported.split(".")[0] == module.split(".")[0] else ""
    return ".".join([*module.split(".")[:-dots], imported.lstrip(".")])


# ---- outcomes, by the hash of the source


@dataclass(frozen=True)
class _Outcome:
    parts: Mapping[Part, PartOutcome]
    rewritten: str
    lasting: bool = True


def _remembered(found: Owner, source: str, block: Block) -> _Outcome:
    """The outcome of rewriting a class, from the cache if its source was seen before."""
    key = hashlib.sha256(f"{source} {block!r} {REWRITE_VERSION}".encode()).hexdigest()
    try:
        place = cache_directory() / OUTCOMES / key[:2] / f"{key[2:]}.json"
        if (known := _kept_outcome(place)) is not None:
            return known
        outcome = _rewrite(found, block)
        if not outcome.lasting:
            return outcome
        kept = {part: [outcome.parts[part].rules, outcome.parts[part].reasons] for part in outcome.parts}
        write_whole(place, json.dumps({"parts": kept, "rewritten": outcome.rewritten}))
        return outcome
    except CacheError as error:
        warn_once("outcomes", f"the cache is not used, which takes longer: {error}")
        return _rewrite(found, block)


def _kept_outcome(place: Path) -> _Outcome | None:
    """What a file of the cache says; None if there is none, or it is not what this version keeps.

    Raises:
        CacheError: it cannot be read, or must not be believed.
    """
    try:
        data = json.loads(read_ours(place))
        parts = {part: PartOutcome(tuple(v[0]), tuple(v[1])) for part, v in data["parts"].items()}
        return _Outcome(parts, data["rewritten"])
    except CacheError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return None


def _rewrite(found: Owner, block: Block) -> _Outcome:
    try:
        rewritten = found.rewrite(block)
    except RewriteError as error:
        # How deep a recursion may go, and how much memory there is, differs from process to process.
        lasting = not isinstance(error.__cause__, (RecursionError, MemoryError))
        return _Outcome({part: PartOutcome(reasons=(str(error),)) for part in block.parts}, "", lasting)
    parts = {
        part: PartOutcome(
            tuple(site.rule for site in rewritten.sites if site.part == part),
            tuple(skip.reason for skip in rewritten.skips if skip.part == part),
        )
        for part in block.parts
    }
    return _Outcome(parts, source_hash(rewritten.method_source) if rewritten.sites else "")
