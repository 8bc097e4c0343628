"""One forward and backward, and how two of them are compared.

The reference is always a run of an unpatched copy, made before anything is patched: a comparison of a patched model
with itself passes whatever the patch does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from patchkit.testing.random_state import seeded

FP32_TOLERANCE = 1e-5
"""Largest relative error of an output, a loss or a gradient in float32."""

CURVE_TOLERANCE = 1e-4
"""Largest relative error of any loss of a training curve in float32."""

LOW_PRECISION_RATIO = 1.1
"""Largest error in bfloat16 or float16, as a multiple of upstream's own error against the float64 truth."""

Inputs = Mapping[str, Any]
"""Keyword arguments of a model's ``forward``, ``labels`` included."""

IGNORED_LABEL = -100
"""Positions with this label do not count in the loss."""

EMBEDS_GRADIENT = "inputs_embeds"
"""Name under which a run keeps the gradient of the embeddings."""


@dataclass(frozen=True)
class Run:
    """What one forward and, if asked for, backward gave.

    Attributes:
        outputs: tensors by name, detached: ``logits`` ([tokens, vocab], padding left out) unless the model gave none,
            ``loss`` (scalar).
        gradients: by parameter name, in the parameter's shape and dtype, and those of inputs where asked for.
        without_gradient: names of trainable parameters that got none.
    """

    outputs: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor] = field(default_factory=dict)
    without_gradient: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Measurement:
    """One compared number.

    Attributes:
        name: what was compared: ``logits``, ``loss``, ``gradient of <parameter>``.
        error: the relative error ‖candidate − reference‖ / ‖reference‖, or the ratio of two errors; NaN counts as inf.
        limit: largest allowed ``error``.
        passed: whether the limit is held. Usually ``error <= limit``; a noisy estimate may be given its uncertainty.
        note: how ``error`` was estimated, where that is not obvious.
    """

    name: str
    error: float
    limit: float
    passed: bool
    note: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.error:.3g} (limit {self.limit:.3g}){' ' + self.note if self.note else ''}"


@dataclass(frozen=True)
class Findings:
    """The outcome of a comparison.

    Attributes:
        measurements: everything that was measured, passed or not.
        problems: what is wrong and is not a number: a missing gradient, another dtype, other tokens, an exception.
    """

    measurements: tuple[Measurement, ...] = ()
    problems: tuple[str, ...] = ()

    def __add__(self, other: Findings) -> Findings:
        return Findings(self.measurements + other.measurements, self.problems + other.problems)

    @property
    def passed(self) -> bool:
        """Nothing is wrong and something was compared."""
        compared = bool(self.measurements)
        return compared and not self.problems and all(measurement.passed for measurement in self.measurements)

    @property
    def worst(self) -> Measurement | None:
        """The measurement that is furthest beyond, or closest to, its limit."""
        return max(self.measurements, key=lambda m: (not m.passed, m.error / m.limit), default=None)


def relative_error(candidate: Tensor, reference: Tensor) -> float:
    """‖candidate − reference‖ / ‖reference‖ in float64: 0 if both are zero or empty, inf for NaN or another shape."""
    if candidate.shape != reference.shape:
        return math.inf
    candidate, reference = candidate.detach().double(), reference.detach().double().to(candidate.device)
    difference = torch.linalg.vector_norm(candidate - reference).item()
    norm = torch.linalg.vector_norm(reference).item()
    if difference == 0.0:
        return 0.0
    error = difference / norm if norm else math.inf
    return math.inf if math.isnan(error) else error


def run(
    model: nn.Module,
    inputs: Inputs,
    *,
    backward: bool = True,
    input_gradients: bool = False,
    seed: int = 0,
    autocast: torch.dtype | None = None,
    loss_scale: float = 1.0,
    forward: Callable[..., Any] | None = None,
    **extra: Any,
) -> Run:
    """One forward and backward. Gradients that the parameters had are dropped, before and after.

    Args:
        model: a model with upstream's output object (``logits``, ``loss``), in the mode that should be tested.
        inputs: keyword arguments; ``labels`` are needed for ``backward``.
        backward: ``False`` for outputs only.
        input_gradients: also keep the gradient of the token embeddings (as ``inputs_embeds``) and of every floating
            input. Frozen models then have a gradient too, and the first layer's input gradient is seen.
        seed: of the global random state, for dropout; afterwards that is as it was before.
        autocast: run the forward under ``torch.autocast`` with this dtype.
        loss_scale: the loss is multiplied by this before the backward, as a ``GradScaler`` does; gradients are
            left scaled.
        forward: called in place of ``model``, e.g. its compiled form.
        extra: further keyword arguments of the call, e.g. ``adapter_names``.

    Raises:
        ValueError: ``backward`` without a loss.
    """
    clear_gradients(model)
    watched: dict[str, Tensor] = {}
    if input_gradients:
        inputs = {key: _leaf(value, watched, key) for key, value in inputs.items()}
    with seeded(seed, model):
        with _watch_embeddings(model, watched) if input_gradients else nullcontext(), _autocast(inputs, autocast):
            outputs = (model if forward is None else forward)(**{"use_cache": False} | dict(inputs) | extra)
        if not backward:
            return Run(_outputs(outputs, inputs))
        if outputs.loss is None:
            raise ValueError("a backward needs a loss: give the inputs labels")
        (outputs.loss * loss_scale).backward()
    gradients, without_gradient = collect_gradients(model)
    gradients |= {name: tensor.grad for name, tensor in watched.items() if tensor.grad is not None}
    clear_gradients(model)
    return Run(_outputs(outputs, inputs), gradients, without_gradient)


def collect_gradients(model: nn.Module) -> tuple[dict[str, Tensor], frozenset[str]]:
    """Every gradient by parameter name, and the names of the trainable parameters that have none."""
    named = list(model.named_parameters())
    gradients = {name: parameter.grad for name, parameter in named if parameter.grad is not None}
    return gradients, frozenset(name for name, parameter in named if parameter.requires_grad and parameter.grad is None)


def clear_gradients(model: nn.Module) -> None:
    """Set every gradient to ``None``."""
    for parameter in model.parameters():
        parameter.grad = None


def compare_runs(reference: Run, candidate: Run, tolerance: float = FP32_TOLERANCE, *, stage: str = "") -> Findings:
    """Compare every output and every gradient, and the sets of parameters that have one.

    Args:
        reference: a run of the unpatched copy.
        candidate: a run of the patched copy on the same inputs and seed.
        tolerance: largest relative error of each tensor. Integer tensors (tokens) must be equal.
        stage: prefix of the names, where a check compares several runs.
    """
    prefix = f"{stage}: " if stage else ""
    problems = []
    for group in ("outputs", "gradients"):
        expected, found = set(getattr(reference, group)), set(getattr(candidate, group))
        problems += [f"{prefix}{group} of {name} missing, upstream has them" for name in sorted(expected - found)]
        problems += [f"{prefix}{group} of {name} found, upstream has none" for name in sorted(found - expected)]
    # Left over: a parameter without gradient on both sides that is trainable on one only.
    unused = (
        (reference.without_gradient ^ candidate.without_gradient) - set(reference.gradients) - set(candidate.gradients)
    )
    problems += [f"{prefix}{name} is trainable on one side only" for name in sorted(unused)]
    findings = Findings(problems=tuple(problems))
    for name, tensor in reference.outputs.items():
        if name in candidate.outputs:
            findings += _compare(prefix + name, tensor, candidate.outputs[name], tolerance)
    for name, tensor in reference.gradients.items():
        if name in candidate.gradients:
            findings += _compare(f"{prefix}gradient of {name}", tensor, candidate.gradients[name], tolerance)
    return findings


def identical_runs(reference: Run, candidate: Run) -> bool:
    """Whether every output and gradient is equal to the last bit."""
    same_names = (
        reference.outputs.keys() == candidate.outputs.keys()
        and reference.gradients.keys() == candidate.gradients.keys()
        and reference.without_gradient == candidate.without_gradient
    )
    return (
        same_names
        and all(torch.equal(tensor, candidate.outputs[name]) for name, tensor in reference.outputs.items())
        and all(torch.equal(tensor, candidate.gradients[name]) for name, tensor in reference.gradients.items())
    )


def compare_types(reference: Run, candidate: Run, *, stage: str = "") -> Findings:
    """Problems where a dtype or a shape is not upstream's; no measurements."""
    prefix = f"{stage}: " if stage else ""
    pairs = _common(reference.outputs, candidate.outputs) + _common(reference.gradients, candidate.gradients)
    return Findings(
        problems=tuple(
            f"{prefix}{name} is {found.dtype} {tuple(found.shape)}, upstream's {expected.dtype} {tuple(expected.shape)}"
            for name, expected, found in pairs
            if expected.dtype != found.dtype or expected.shape != found.shape
        )
    )


def _compare(name: str, reference: Tensor, candidate: Tensor, tolerance: float) -> Findings:
    findings = compare_types(Run({name: reference}), Run({name: candidate}))
    if reference.is_floating_point():
        error = relative_error(candidate, reference)
        return findings + Findings((Measurement(name, error, tolerance, error <= tolerance),))
    differing = int((reference != candidate).sum()) if reference.shape == candidate.shape else reference.numel()
    return findings + Findings((Measurement(name, float(differing), 0.5, not differing, "elements differ"),))


def _common(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[tuple[str, Tensor, Tensor]]:
    return [(name, tensor, second[name]) for name, tensor in first.items() if name in second]


def _leaf(value: Any, watched: dict[str, Tensor], key: str) -> Any:
    if not (isinstance(value, Tensor) and value.is_floating_point()):
        return value
    watched[key] = value.detach().clone().requires_grad_()
    return watched[key]


@contextmanager
def _watch_embeddings(model: nn.Module, watched: dict[str, Tensor]) -> Iterator[None]:
    """Keep the gradient of what the token embedding gives, if the model has one.

    Handing in ``inputs_embeds`` instead would not do: multimodal models find image positions by token.
    """

    def keep(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            output = output.requires_grad_() if output.is_leaf else output
            output.retain_grad()
            watched[EMBEDS_GRADIENT] = output
        return output

    try:
        embeddings = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):  # a vision model says so in one of these ways
        embeddings = None
    if not isinstance(embeddings, nn.Module):
        yield
        return
    handle = embeddings.register_forward_hook(keep)
    try:
        yield
    finally:
        handle.remove()


def _autocast(inputs: Inputs, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    if dtype is None:
        return nullcontext()
    device = next((value.device.type for value in inputs.values() if isinstance(value, Tensor)), "cpu")
    return torch.autocast(device, dtype=dtype)


def _outputs(outputs: Any, inputs: Inputs) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    if outputs.logits is not None:
        logits = outputs.logits.detach()
        mask = inputs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.shape == logits.shape[:2]:
            # What stands at padding is arbitrary, and NaN with some attention implementations.
            logits = logits[mask.bool()]
        found["logits"] = logits
    if outputs.loss is not None:
        found["loss"] = outputs.loss.detach()
    return found
