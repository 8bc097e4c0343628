"""The arbiter: what float64 says where float32 misses its tolerance, by conditioning, a kink, or another formula."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch

import patchkit
from patchkit.testing import FP32_TOLERANCE, compare_runs, run
from patchkit.testing.tiny.outcome import in_short

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from patchkit.testing import Inputs
    from patchkit.testing.parity import Run

_EXACT = 1e-9
"""In float64, relative: far above its rounding, far below any other formula.

Where the loss is computed without logits, it is the tolerance of float32: upstream casts logits of any dtype to
float32, so that two ways to sum a softmax differ by that rounding in a model of float64 too.
"""

_WORSE = 2.0
"""How much larger than upstream's own a float32 error may be where float64 had to decide: one draw is a noisy ratio."""

_ROUNDINGS = 6
"""How often upstream is run on parameters that are rounded otherwise, before an error counts as larger than its own."""

_ZERO = 1e-12
"""A gradient that is smaller in float64, relative to all gradients together, is zero and what is seen is rounding."""

_ZERO_IN_FLOAT32 = 1e-5
"""How large such a gradient may be in float32."""


class Verdict(NamedTuple):
    """What the arbiter found.

    Attributes:
        outcome: ``undecided`` where upstream does not run in float64, or differs from itself.
        error: the largest relative difference in float64.
        why: empty if they are equal.
    """

    outcome: Literal["equal", "different", "undecided"]
    error: float = 0.0
    why: str = ""


def arbitrate(
    reference: nn.Module, inputs: Inputs, expected: Run, found: Run, options: Mapping[str, Any] = MappingProxyType({})
) -> Verdict:
    """Whether a patched model that misses the tolerance of float32 computes what the unpatched one does.

    Both must hold: the formulas agree in float64, and in float32 the error against that truth is not larger than
    upstream's own by more than noise. Upstream's own is the largest that it has where each parameter is what it is or
    the next number: where a model amplifies rounding, one error says little of the next. A gradient that is zero has no
    relative error: it must be zero in both.

    Args:
        reference: the unpatched model, in float32.
        inputs: of both runs.
        expected: the unpatched model's run in float32.
        found: the patched model's.
        options: of ``patchkit.apply``.
    """
    exact = copy.deepcopy(reference).double()
    use_eager_experts(exact)
    in_single = inputs
    inputs = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    try:
        truth = like_found(_run(exact, inputs), found)
    except Exception as error:  # upstream computes with numbers that are float32 ones only
        return Verdict("undecided", why=f"float32 misses its tolerance, and float64 fails upstream: {in_short(error)}")
    patched = copy.deepcopy(exact)
    patchkit.apply(patched, trust="always", **options)
    zeros = _zeros(truth)
    ours = _run(patched, inputs)
    if (why := _not_zero(ours, zeros, _ZERO)) or (why := _not_zero(found, zeros, _ZERO_IN_FLOAT32)):
        return Verdict("different", why=why)
    truth, ours, expected, found = (_without(one, zeros) for one in (truth, ours, expected, found))
    exactly = FP32_TOLERANCE if _without_logits(found.outputs) else _EXACT
    findings = compare_runs(truth, ours, exactly)
    worst = findings.worst
    largest = float(f"{worst.error:.2g}") if worst else 0.0
    if not findings.passed:
        if not compare_runs(truth, _without(like_found(_run(exact, inputs), found), zeros), exactly).passed:
            return Verdict(
                "undecided", largest, "two runs of the unpatched model differ: it draws what no seed decides"
            )
        said = findings.problems[0] if findings.problems else str(worst)
        return Verdict("different", largest, f"in float64: {said}")
    mine, upstreams = _largest_error(truth, found), _largest_error(truth, expected)
    for draw in range(_ROUNDINGS):
        if mine <= _WORSE * upstreams:
            break
        other = _without(like_found(_run(_rounded_otherwise(reference, draw), in_single), found), zeros)
        upstreams = max(upstreams, _largest_error(truth, other))
    if mine > _WORSE * upstreams:
        return Verdict("different", largest, f"in float32 its error is {mine:.2g}, upstream's {upstreams:.2g}")
    return Verdict("equal", largest)


def like_found(expected: Run, found: Run) -> Run:
    """Upstream's run without the logits, where the patched model computes its loss without any."""
    if not _without_logits(found.outputs):
        return expected
    return replace(expected, outputs={name: one for name, one in expected.outputs.items() if name != "logits"})


def _without_logits(outputs: Mapping[str, Tensor]) -> bool:
    return "loss" in outputs and "logits" not in outputs


def _run(model: nn.Module, inputs: Inputs) -> Run:
    # Of a copy: some keep what a forward has computed, and cannot be copied any more then.
    return run(copy.deepcopy(model), inputs, input_gradients=False)


def _rounded_otherwise(model: nn.Module, seed: int) -> nn.Module:
    """A copy of which one half of all numbers are the next larger ones."""
    copied, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in copied.parameters():
            if parameter.is_floating_point():
                upwards = torch.rand(parameter.shape, generator=generator) < 0.5
                above = torch.nextafter(parameter, torch.full_like(parameter, float("inf")))
                parameter.copy_(torch.where(upwards, above, parameter))
    return copied


def _norm(gradients: Mapping[str, Tensor]) -> float:
    norms = [torch.linalg.vector_norm(gradient.double()) for gradient in gradients.values()]
    return float(torch.stack(norms).norm()) if norms else 0.0


def _zeros(truth: Run) -> frozenset[str]:
    """The gradients that are zero: those of keys and queries where every key is the same one, for instance."""
    most = _ZERO * _norm(truth.gradients)
    return frozenset(name for name, gradient in truth.gradients.items() if _norm({name: gradient}) <= most)


def _not_zero(found: Run, zeros: frozenset[str], share: float) -> str:
    """Which of the gradients that should be zero is none, or not."""
    for name in sorted(zeros & found.gradients.keys()):
        own, whole = _norm({name: found.gradients[name]}), _norm(found.gradients)
        if not own <= share * whole:
            return f"gradient of {name} is {own / whole:.2g} of all, upstream's is zero"
    return ""


def _without(outcome: Run, zeros: frozenset[str]) -> Run:
    kept = {name: gradient for name, gradient in outcome.gradients.items() if name not in zeros}
    return replace(outcome, gradients=kept)


def _largest_error(truth: Run, found: Run) -> float:
    worst = compare_runs(truth, found, float("inf")).worst
    return worst.error if worst is not None else 0.0


def use_eager_experts(model: nn.Module) -> None:
    """Grouped products of experts take no float64."""
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "_experts_implementation"):
            config._experts_implementation = "eager"
