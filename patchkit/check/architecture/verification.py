"""Everything that is asked of an architecture by its own test: the static stage, the numeric one, and what is amiss."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from torch import nn

from patchkit.arch.registry import find, registered_also
from patchkit.arch.spec import Architecture, Block, Part
from patchkit.check.architecture.hints import read_beside
from patchkit.check.architecture.surroundings import undescribed
from patchkit.check.numeric.clean_room import in_clean_room
from patchkit.check.numeric.outcomes import ArchitectureOutcome, joined
from patchkit.check.numeric.proving import versions
from patchkit.check.numeric.tiny_instances import comparable
from patchkit.check.numeric.worker import check_model, check_tiny
from patchkit.check.results.evidence import Evidence
from patchkit.check.static.drift import diagnose
from patchkit.check.static.findings import Finding, Owner, block_named, findings_of, owner_of_forward
from patchkit.check.static.verdicts import PartOutcome
from patchkit.errors import ArchitectureError, RewriteError
from patchkit.testing import Inputs, tiny_inputs_for
from patchkit.testing.tiny.architectures import tiny_names
from patchkit.testing.tiny_models import initialise
from patchkit.upstream.release import Release, installed_release, module_path

NUMBERS = "numbers"
"""What is verified of a block beside its parts."""


@dataclass(frozen=True)
class Verdict:
    """What was found of one thing that is verified.

    Attributes:
        block: the class that the architecture names; empty for what concerns none of them.
        what: a part of the block, or :data:`NUMBERS`.
        said: what was found, in one line.
        problems: what is wrong, a line each; empty if nothing is.
    """

    block: str
    what: str
    said: str
    problems: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.block} {self.what}: {self.said}".lstrip()]
        return "\n".join([*lines, *(f"    {problem}" for problem in self.problems)])


@dataclass(frozen=True)
class Verification:
    """What was found of an architecture.

    Attributes:
        architecture: its name.
        release: the package that was read, with its version.
        verdicts: one for each part of each block, then one for the numbers of each class in each tiny model.
        notes: what is worth knowing and no fault, a line each.
    """

    architecture: str
    release: str
    verdicts: tuple[Verdict, ...]
    notes: tuple[str, ...] = ()

    @property
    def failed(self) -> tuple[Verdict, ...]:
        """The verdicts with problems."""
        return tuple(verdict for verdict in self.verdicts if verdict.problems)

    def of(self, block: str, what: str) -> tuple[Verdict, ...]:
        """The verdicts on one thing."""
        return tuple(one for one in self.verdicts if (one.block, one.what) == (block, what))

    def require(self) -> None:
        """Make sure that there is no problem.

        Raises:
            ArchitectureError: there is one.
        """
        if self.failed or not self.verdicts:
            raise ArchitectureError(str(self))

    def __str__(self) -> str:
        state = f"{len(self.failed)} of {len(self.verdicts)} verdicts are faults" if self.failed else "verified"
        if not self.verdicts:
            state = "nothing to verify: it has no blocks"
        lines = [f"architecture {self.architecture!r}, {self.release}: {state}", *map(str, self.verdicts)]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def verification(
    architecture: Architecture | str, model: nn.Module | None = None, inputs: Inputs | None = None
) -> Verification:
    """Verify an architecture with what is installed, in this process.

    Args:
        architecture: a name that is registered, or an architecture, registered or not.
        model: see :func:`patchkit.testing.verify_architecture`.
        inputs: likewise.

    Raises:
        PatchkitError: there is no such architecture, it collides with another one, or its package is not installed.
    """
    described = find(architecture) if isinstance(architecture, str) else architecture
    with registered_also(described):
        return _verified(described, model, inputs)


def _verified(architecture: Architecture, model: nn.Module | None, inputs: Inputs | None) -> Verification:
    release = installed_release(architecture.module.partition(".")[0])
    towers = [architecture] if architecture.blocks else [find(name) for name in architecture.text_models[:1]]
    found = [(tower, finding) for tower in towers for finding in findings_of(release, tower)]
    findings = [finding for _, finding in found]
    verdicts = [verdict for tower, finding in found for verdict in _of_parts(release, tower, finding)]
    if any(part.rules for finding in findings for part in finding.parts.values()):
        outcome = in_clean_room(partial(_numbers, architecture, model, inputs))
        verdicts += _of_numbers(findings, Evidence(release, findings).weighed(outcome))
    notes = tuple(note for tower in towers for note in undescribed(release, tower))
    return Verification(architecture.name, f"{release.package} {release.version}", tuple(verdicts), notes)


# ---- the static stage


def _of_parts(release: Release, architecture: Architecture, finding: Finding) -> Iterator[Verdict]:
    block = block_named(architecture, finding.block)
    owner = owner_of_forward(release, architecture.module, finding.class_name) if finding.line else ""
    heir = f" in {finding.class_name}" if finding.class_name != finding.block else ""
    for part, outcome in finding.parts.items():
        rules = " + ".join(dict.fromkeys(outcome.rules))
        said = f"rewritten by {rules}" if outcome.rules else "not rewritten"
        if outcome.rules and outcome.reasons:
            said = f"{said}, not whole: {'; '.join(outcome.reasons)}"
        if isinstance(owner, Owner):
            problems = tuple(_problems(owner, block, part, outcome))
        else:
            problems = tuple(_not_found(release, architecture, finding, part))
        yield Verdict(finding.block, part, f"{said}{heir} ({finding.path}:{finding.line or 1})", problems)


def _problems(owner: Owner, block: Block, part: Part, outcome: PartOutcome) -> Iterator[str]:
    """What is wrong with one part. That rules take only some of it is no fault where no other words make it whole."""
    reading = read_beside(block, owner.text, owner.entry.name, module_path(owner.module))
    if outcome.whole:
        if reading.swapped and part == "qkv":  # the numbers are equal all the same
            yield from reading.said
    elif not outcome.rules:
        yield from outcome.reasons
        yield from reading.said
    elif _is_whole(owner, reading.derived, part):
        yield from reading.said or ("its structure says the same, and is rewritten whole",)


def _is_whole(owner: Owner, block: Block | None, part: Part) -> bool:
    """Whether one rule takes all of a part with this description."""
    if block is None or part not in block.parts:
        return False
    try:
        rewritten = owner.rewrite(block)
    except RewriteError:
        return False
    return any(site.part == part for site in rewritten.sites) and all(skip.part != part for skip in rewritten.skips)


def _not_found(release: Release, architecture: Architecture, finding: Finding, part: Part) -> Iterator[str]:
    yield from finding.parts[part].reasons
    block = block_named(architecture, finding.block)
    edit = diagnose(release, architecture, block, finding, part, None).edit
    if edit is not None:
        yield f"{edit.after} instead of {edit.before} would be rewritten"


# ---- the numeric stage


def _numbers(architecture: Architecture, model: nn.Module | None, inputs: Inputs | None) -> ArchitectureOutcome:
    if model is None:
        return joined([check_model(architecture.name, name) for name in tiny_names(architecture) or ("",)])
    name = type(model).__name__
    try:
        tiny = copy.deepcopy(model).train()
        initialise(tiny)
        whole, inputs = comparable(tiny, tiny_inputs_for(tiny) if inputs is None else inputs)
    except Exception as error:  # it is anybody's code
        why = f"{name} does not run: {type(error).__name__}: {error}"
        return ArchitectureOutcome(architecture.name, versions(), problems={name: why})
    return check_tiny(architecture, name, whole, inputs)


def _of_numbers(findings: Iterable[Finding], outcome: ArchitectureOutcome) -> Iterator[Verdict]:
    named = {finding.owner: finding.block for finding in findings}
    for block in outcome.blocks:
        errors = [one.error for name, one in block.checks.items() if one.error is not None and "float16" not in name]
        passed = sum(check.status == "passed" for check in block.checks.values())
        levels = ", ".join(f"{part} {level}" for part, level in block.levels.items())
        said = f"{block.status} in {block.model} ({levels}): {passed} of {len(block.checks)} checks"
        if errors and block.status == "passed":
            said = f"{said}, worst error {max(errors):.1e}"
        class_name = named.get(block.class_name, block.class_name.rpartition(".")[2])
        yield Verdict(class_name, NUMBERS, said, () if block.status == "passed" else (block.reason,))
    for name, reason in (outcome.unpatched or {}).items():
        yield Verdict(name if name in named.values() else "", NUMBERS, f"{name} is not patched", (reason,))
    for name, problem in (outcome.problems or {}).items():
        shown = named.get(name, name)
        yield Verdict(shown if shown in named.values() else "", NUMBERS, f"{name}: not shown", (problem,))
