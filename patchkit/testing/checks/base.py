"""What a check is, and how one is registered.

Most checks are *scenarios*: a generator that takes a model and yields named runs. It is run on an unpatched copy first,
then on a patched one, and the runs are compared pair by pair, so the two sides cannot drift apart. The others take the
:class:`Case` and return findings.
"""

from __future__ import annotations

import copy
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from patchkit.testing.parity import FP32_TOLERANCE, Findings, Inputs, Measurement, Run, compare_runs, run
from patchkit.testing.random_state import preserved_random_state

Patcher = Callable[[nn.Module], object]
"""Patches a model in place and returns whatever it reports."""

Reverter = Callable[[nn.Module], object]
"""Undoes a :data:`Patcher`, in place."""

Scenario = Callable[[nn.Module, Inputs], Iterator[tuple[str, Run]]]
"""Yields (stage, run) pairs. May change the model: it gets a copy of its own."""

# Parameters. Measured with the tiny models: 10 to 60 times faster in one thread of a busy machine with two cores.
_SMALL_MODEL = 10_000_000

CheckStatus = Literal["passed", "failed", "inapplicable"]


class InapplicableError(Exception):
    """This model or this setting cannot show what the check is about; also: upstream itself fails here."""


@dataclass(frozen=True)
class CheckResult:
    """The outcome of one check on one model.

    Attributes:
        check: name of the check.
        status: ``inapplicable`` where the unpatched model cannot do it, or shows no effect that could be compared.
        findings: what was measured and what is wrong.
        reason: why the check is inapplicable.
        patch_result: what the patch returned last (the report of ``patchkit.apply``).
        patched_modules: names of the modules whose class or instance ``forward`` the patch changed.
        seconds: wall time.
    """

    check: str
    status: CheckStatus
    findings: Findings = field(default_factory=Findings)
    reason: str = ""
    patch_result: object = None
    patched_modules: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether the check ran and found nothing wrong. An inapplicable check has not passed."""
        return self.status == "passed"

    @property
    def worst(self) -> Measurement | None:
        """The measurement furthest beyond, or closest to, its limit."""
        return self.findings.worst

    def __str__(self) -> str:
        lines = [f"{self.check}: {self.status}{f' ({self.reason})' if self.reason else ''}"]
        lines += [f"  {problem}" for problem in self.findings.problems]
        failed = [measurement for measurement in self.findings.measurements if not measurement.passed]
        lines += [f"  {measurement}" for measurement in sorted(failed, key=lambda m: -m.error / m.limit)]
        if not failed and self.worst is not None:
            lines.append(f"  worst: {self.worst}")
        return "\n".join(lines)


@dataclass
class Case:
    """One model under test, never changed itself: both sides are copies of it.

    Attributes:
        model: the unpatched model, usually a PEFT model with contributing adapters.
        inputs: keyword arguments of its ``forward``, with ``labels``.
        patch: patches a copy in place.
        revert: undoes the patch; ``None`` makes the checks that need it inapplicable.
        patch_result: what the latest call of ``patch`` returned.
        patched_modules: see :class:`CheckResult`.
    """

    model: nn.Module
    inputs: Inputs
    patch: Patcher
    revert: Reverter | None = None
    patch_result: object = None
    patched_modules: tuple[str, ...] = ()

    def unpatched(self) -> nn.Module:
        """A copy that nobody has patched."""
        return copy.deepcopy(self.model)

    def patched(self, model: nn.Module | None = None) -> nn.Module:
        """A patched copy, or the given model patched in place."""
        model = self.unpatched() if model is None else model
        before = {name: _identity(module) for name, module in model.named_modules()}
        self.patch_result = self.patch(model)
        self.patched_modules = tuple(
            name for name, module in model.named_modules() if _identity(module) != before.get(name)
        )
        return model


Judge = Callable[[Case], Findings]


@dataclass(frozen=True)
class Check:
    """A named, callable part of the parity contract.

    Attributes:
        name: as in :data:`patchkit.testing.CHECKS`.
        description: one line, what is equal to what.
        judge: does the work; raises :class:`InapplicableError` where there is nothing to compare.
    """

    name: str
    description: str
    judge: Judge

    def __call__(
        self, model: nn.Module, inputs: Inputs, patch: Patcher | None = None, *, revert: Reverter | None = None
    ) -> CheckResult:
        """Run the check on copies of ``model``.

        Args:
            model: unpatched; left as it is.
            inputs: keyword arguments of its ``forward``, with ``labels``.
            patch: default :func:`patchkit.apply`.
            revert: default :func:`patchkit.revert` if ``patch`` is the default, else none.

        An exception of the patch or of the patched model is a failure of the check, with its traceback as problem.
        So is a :func:`patchkit.apply` that changes no module. At which level the parts run is the caller's to assert,
        on ``patch_result``.
        """
        own = patch is None
        if patch is None:
            import patchkit  # the public face loads the flow that this package is used to test

            patch, revert = patchkit.apply, revert or patchkit.revert
        case = Case(model, inputs, patch, revert)
        start = time.perf_counter()
        reason = ""
        try:
            with _few_threads(model), preserved_random_state(model):
                findings = self.judge(case)
            if own and not case.patched_modules:
                findings += Findings(problems=("patchkit.apply changed no module: nothing was tested",))
            status: CheckStatus = "passed" if findings.passed else "failed"
        except InapplicableError as error:
            status, findings, reason = "inapplicable", Findings(), str(error)
        except Exception:
            # What the code under test may raise is open; the caller gets every other check's result nevertheless.
            status, findings = "failed", Findings(problems=(traceback.format_exc(),))
        return CheckResult(
            check=self.name,
            status=status,
            findings=findings,
            reason=reason,
            patch_result=case.patch_result,
            patched_modules=case.patched_modules,
            seconds=time.perf_counter() - start,
        )


CHECKS: dict[str, Check] = {}
"""Every check by name."""


def check(name: str, description: str) -> Callable[[Judge], Judge]:
    """Register a function from :class:`Case` to findings as a check."""

    def register(judge: Judge) -> Judge:
        CHECKS[name] = Check(name, description, judge)
        return judge

    return register


def scenario(name: str, description: str, *, tolerance: float = FP32_TOLERANCE) -> Callable[[Scenario], Scenario]:
    """Register a scenario as a check: in float32, every run within ``tolerance`` of upstream's."""

    def register(play: Scenario) -> Scenario:
        def judge(case: Case) -> Findings:
            reference = play_upstream(play, case)
            findings = Findings()
            candidate = case.patched(cast_parameters(case.unpatched(), torch.float32))
            runs = play(candidate, cast_inputs(case.inputs, torch.float32))
            try:
                for (stage, expected), (_, found) in zip(reference, runs, strict=True):
                    findings += compare_runs(expected, found, tolerance, stage=stage)
            except InapplicableError as error:
                # Upstream could, or showed a difference that the patched model does not.
                findings += Findings(problems=(f"after patching: {error}",))
            return findings

        CHECKS[name] = Check(name, description, judge)
        return play

    return register


def play_upstream(play: Scenario, case: Case) -> list[tuple[str, Run]]:
    """The runs of an unpatched float32 copy.

    Raises:
        InapplicableError: upstream itself cannot do it.
    """
    try:
        model = cast_parameters(case.unpatched(), torch.float32)
        return list(play(model, cast_inputs(case.inputs, torch.float32)))
    except InapplicableError:
        raise
    except Exception as error:
        raise InapplicableError(f"upstream fails: {type(error).__name__}: {error}") from error


def run_upstream(model: nn.Module, inputs: Inputs, **options: Any) -> Run:
    """:func:`patchkit.testing.run` of an unpatched model.

    Raises:
        InapplicableError: upstream itself fails.
    """
    try:
        return run(model, inputs, **options)
    except Exception as error:
        raise InapplicableError(f"upstream fails: {type(error).__name__}: {error}") from error


def cast_parameters(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast floating parameters in place, and leave buffers, as ``from_pretrained(dtype=...)`` does."""
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)
    return model


def cast_inputs(inputs: Inputs, dtype: torch.dtype) -> dict[str, Any]:
    """The same inputs with floating tensors in ``dtype``."""
    return {
        key: value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for key, value in inputs.items()
    }


def require_method(model: nn.Module, name: str, what: str) -> Any:
    """The method ``name`` of the model.

    Raises:
        InapplicableError: saying that the model is not ``what``.
    """
    method = getattr(model, name, None)
    if not callable(method):
        raise InapplicableError(f"{type(model).__name__} is not {what}")
    return method


@contextmanager
def _few_threads(model: nn.Module) -> Iterator[None]:
    """One thread for a small model on the CPU: its operations are shorter than waking a second thread takes."""
    parameters = list(model.parameters())
    small = all(parameter.device.type == "cpu" for parameter in parameters)
    small = small and sum(parameter.numel() for parameter in parameters) < _SMALL_MODEL
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if small else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _identity(module: nn.Module) -> tuple[type, object]:
    return type(module), vars(module).get("forward")
