"""Proving the blocks of one model: which classes are patched, which checks they pass, and the proof that comes of it.

There is one harness, ``patchkit.testing``; this file runs it on both occasions (``patchkit check`` and ``apply``) and
says of each class what it showed. A check compares whole models. Where one fails, it is run again with one class
patched at a time, so that the fault is laid at the right door.
"""

from __future__ import annotations

import copy
import datetime
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import peft
import torch
import transformers
from torch import nn

from patchkit.arch.discovery import Found
from patchkit.arch.spec import Block
from patchkit.binding.classes import patched_class
from patchkit.binding.patch import Refusal
from patchkit.binding.swap import swap
from patchkit.check.numeric.outcomes import Status
from patchkit.module_tree import PATCH
from patchkit.planning.language_models import language_models
from patchkit.planning.levels import rows_of
from patchkit.planning.survey import Candidate, survey
from patchkit.testing import CheckResult, Findings, Inputs, Patcher, Reverter, run_checks
from patchkit.testing.checks.precision import TOTALS
from patchkit.trust.key import key_of
from patchkit.trust.ledger import Key, Proof, Stage


@dataclass(frozen=True)
class Subject:
    """A class that is to be proven.

    Attributes:
        key: its key in the ledger.
        original: the upstream class, of which the model has instances.
        patched: the patched class.
        block: the entry of the architecture file.
    """

    key: Key
    original: type[nn.Module]
    patched: type[nn.Module]
    block: Block


@dataclass(frozen=True)
class Trial:
    """What the checks showed of one class.

    Attributes:
        subject: the class.
        levels: the level at which each of its parts ran: ``{"qkv": "fused", "o": "fused"}``.
        results: of every check, with this class patched, alone or beside others.
    """

    subject: Subject
    levels: Mapping[str, str]
    results: tuple[CheckResult, ...]

    @property
    def status(self) -> Status:
        """``failed`` if a check failed; ``inapplicable`` if the first did not pass, or all ran at upstream level."""
        if any(result.status == "failed" for result in self.results):
            return "failed"
        # What passes where upstream itself cannot go forward and backward is next to nothing.
        shown = bool(self.results) and self.results[0].passed
        return "passed" if shown and set(self.levels.values()) - {"upstream"} else "inapplicable"

    @property
    def reason(self) -> str:
        """In one line, what is wrong; empty if it passed."""
        if self.status == "passed":
            return ""
        told = sorted((result for result in self.results if self.fault(result)), key=lambda one: one.status != "failed")
        return f"{told[0].check}: {self.fault(told[0])}" if told else "all of it runs at upstream level"

    @staticmethod
    def fault(result: CheckResult) -> str:
        """In one line, why a check failed or is inapplicable; empty if it passed."""
        if result.status == "inapplicable":
            return result.reason
        if result.passed:
            return ""
        problems = result.findings.problems
        # Of a traceback, the last line says what happened.
        return problems[0].strip().splitlines()[-1] if problems else str(result.worst)

    def proof(self, stage: Stage) -> Proof:
        """What goes into the ledger.

        Raises:
            ValueError: it is not ``passed``.
        """
        if self.status != "passed":
            raise ValueError(f"{self.subject.key.class_name} is not proven: {self.reason}")
        errors = {result.check: _reached(result) for result in self.results if result.passed}
        today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
        return Proof(self.subject.key, stage, dict(self.levels), errors, versions(), today)


def versions() -> dict[str, str]:
    """The versions that a proof is made with."""
    # Of the modules that run, whatever distribution is installed beside them; without "+cpu" and the like: the build is
    # no part of the release.
    found = {one.__name__: str(one.__version__).split("+")[0] for one in (transformers, torch, peft)}
    return {**found, "python": platform.python_version()}


def subjects_of(model: nn.Module) -> tuple[list[Subject], dict[type[nn.Module], str]]:
    """The classes of a model that ``patchkit.apply`` would patch, and those it recognises but cannot patch, with why.

    Args:
        model: unpatched. Vision blocks count where they carry adapters.
    """
    subjects: dict[type[nn.Module], Subject] = {}
    left: dict[type[nn.Module], str] = {}
    for found in blocks_of(model):
        cls = type(found.module)
        if cls in subjects or cls in left:
            continue
        key, patched = key_of(cls, found.module), patched_class(cls, found.block, frozenset(found.block.parts))
        if isinstance(patched, Refusal):
            left[cls] = "; ".join(sorted({skip.reason for skip in patched.skips}))
        elif isinstance(key, str):
            left[cls] = key
        else:
            subjects[cls] = Subject(key, cls, patched, found.block)
    return list(subjects.values()), left


def blocks_of(model: nn.Module) -> list[Found]:
    """The blocks of a model that no other library owns, and the language models in it whose loss is patched."""
    seen = survey(model)
    candidates = [*seen.blocks, *language_models(seen, asked=False)]
    return [candidate.found for candidate in candidates if candidate.owner is None]


def prove(
    model: nn.Module,
    inputs: Inputs,
    subjects: Sequence[Subject],
    checks: Iterable[str],
    *,
    patch: Patcher | None = None,
    revert: Reverter | None = None,
) -> list[Trial]:
    """Run checks with these classes patched, and say what they show of each.

    Args:
        model: unpatched, with adapters that contribute; left as it is.
        inputs: keyword arguments of its ``forward``, with ``labels``.
        subjects: classes of which it has instances.
        checks: keys of ``patchkit.testing.CHECKS``; the first one has to pass.
        patch: patches a whole model, these classes among it; by default these classes and no others.
        revert: undoes it.
    """
    both = (patch, revert) if patch is not None else (patcher(subjects), unpatch)
    order = {name: index for index, name in enumerate(checks)}
    results = run_checks(model, inputs, both[0], revert=both[1], names=order)
    results.sort(key=lambda result: order[result.check])
    failed = [result.check for result in results if result.status == "failed"]
    return [
        Trial(subject, levels_of(model, subject), tuple(_seen(model, subject, result) for result in own))
        for subject, own in _attributed(model, inputs, subjects, results, failed)
    ]


def _attributed(
    model: nn.Module, inputs: Inputs, subjects: Sequence[Subject], results: list[CheckResult], failed: list[str]
) -> Iterable[tuple[Subject, list[CheckResult]]]:
    """The results of each class: of failed checks, those with this class patched alone, if that tells them apart."""
    if not failed or len(subjects) == 1:
        return [(subject, results) for subject in subjects]
    alone = {
        subject.key: {
            result.check: result
            for result in run_checks(model, inputs, patcher([subject]), revert=unpatch, names=failed)
        }
        for subject in subjects
    }
    # A check that fails with all classes patched and with none of them alone counts against all.
    told = {result.check for own in alone.values() for result in own.values() if result.status == "failed"}
    return [
        (subject, [alone[subject.key][one.check] if one.check in told else one for one in results])
        for subject in subjects
    ]


def patcher(subjects: Iterable[Subject]) -> Patcher:
    """A patch of exactly these classes."""
    targets = {subject.original: subject.patched for subject in subjects}

    def patch(model: nn.Module) -> None:
        swap([(module, targets[type(module)]) for module in model.modules() if type(module) in targets])

    return patch


def unpatch(model: nn.Module) -> None:
    """Undo what a :func:`patcher` did."""
    patched = [module for module in model.modules() if PATCH in vars(type(module))]
    swap([(module, vars(type(module))[PATCH].original) for module in patched])


def levels_of(model: nn.Module, subject: Subject) -> dict[str, str]:
    """The level of each part of a class in a model, in training; several are joined by a slash."""
    copied = copy.deepcopy(model).train()
    patcher([subject])(copied)
    levels: dict[str, set[str]] = {}
    for found in blocks_of(copied):
        if type(found.module) is subject.patched:
            for row in rows_of(Candidate.of(found), vars(subject.patched)[PATCH]):
                levels.setdefault(row.part, set()).add(row.level)
    return {part: "/".join(sorted(found)) for part, found in levels.items()}


def _seen(model: nn.Module, subject: Subject, result: CheckResult) -> CheckResult:
    """A passed check in which no module of this class was patched showed nothing of it."""
    names = {name for name, module in model.named_modules() if type(module) is subject.original}
    if not result.passed or names & set(result.patched_modules):
        return result
    return replace(result, status="failed", findings=Findings(problems=("no module of this class was patched",)))


def _reached(result: CheckResult) -> float:
    """The largest error. In low precision that of the totals: the ratio of a single tensor is a noisy estimate."""
    measurements = result.findings.measurements
    totals = [one.error for one in measurements if one.name in TOTALS]
    return max(totals if len(totals) == len(TOTALS) else [one.error for one in measurements])
