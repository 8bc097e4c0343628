"""Patched against plain PEFT on one architecture: errors, counts and, if asked for, times."""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from patchkit.testing.lora import add_lora
from patchkit.testing.measure import Cost, measure_step
from patchkit.testing.parity import Inputs, Run, clear_gradients, relative_error, run
from patchkit.testing.tiny_inputs import tiny_inputs
from patchkit.testing.tiny_models import tiny_model

SMALL: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
}
"""Changes to the tiny text models for comparisons: large enough that a LoRA rank is small beside the hidden size."""

# Towers without a projector of their own yield the text model's hidden size.
_VISION_WIDTH = {"qwen2_vl": {"hidden_size": 256}, "qwen2_5_vl": {"out_hidden_size": 256}}
# A scaling that is no power of two: multiplying by one rounds nothing and would hide an order of operations.
RANK, ALPHA, BATCH, LENGTH = 8, 11, 2, 64


@dataclass(frozen=True)
class Comparison:
    """One architecture, patched against plain PEFT, with LoRA on every text projection.

    Attributes:
        name: of the tiny model, a key of ``patchkit.testing.TINY_MODELS`` or that of a plugin's architecture.
        levels: for each of qkv, o and mlp, the level of every such part; empty where there is none.
        output_error: largest relative error of logits and loss.
        gradient_error: largest relative error of any gradient; infinite if the sets of gradients differ.
        plain: cost of one forward and backward of plain PEFT.
        patched: cost of the same, patched.
        seconds: median seconds of one forward and backward, (plain, patched), if timed.
    """

    name: str
    levels: dict[str, str]
    output_error: float
    gradient_error: float
    plain: Cost
    patched: Cost
    seconds: tuple[float, float] | None = None


def compare_architecture(
    name: str, *, device: str = "cpu", dtype: torch.dtype = torch.float32, steps: int = 0
) -> Comparison:
    """Build a small random model with adapters, patch a copy, and compare.

    Args:
        name: a key of ``patchkit.testing.TINY_MODELS``.
        device: where to run.
        dtype: of the base weights.
        steps: how many steps of each kind to time, in turn; 0 for none.
    """
    overrides = SMALL | ({"vision_config": _VISION_WIDTH[name]} if name in _VISION_WIDTH else {})
    model = add_lora(tiny_model(name, **overrides), r=RANK, lora_alpha=ALPHA)
    inputs = tiny_inputs(name, model, batch=BATCH, length=LENGTH)
    return compare_patched(name, model, inputs, device=device, dtype=dtype, steps=steps)


def compare_patched(
    name: str,
    model: nn.Module,
    inputs: Inputs,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    steps: int = 0,
) -> Comparison:
    """Patch a copy of a model that has adapters, and compare.

    Args:
        name: what to call it.
        model: is moved, cast and put into train mode.
        inputs: keyword arguments of its ``forward``, with ``labels`` unless it computes a loss without.
        device: where to run.
        dtype: of the base weights.
        steps: how many steps of each kind to time, in turn; 0 for none.
    """
    import patchkit  # the public face loads the flow that this package is used to test

    plain = model.to(device=device, dtype=dtype).train()
    inputs = {key: _moved(value, device, dtype) for key, value in inputs.items()}
    patched = copy.deepcopy(plain)
    report = patchkit.apply(patched)
    reference, candidate = run(plain, inputs), run(patched, inputs)
    levels = {
        part: "/".join(sorted({row.level for row in report.rows if row.part == part})) for part in ("qkv", "o", "mlp")
    }
    return Comparison(
        name,
        levels,
        _largest_error(reference.outputs, candidate.outputs),
        _gradient_error(reference, candidate),
        measure_step(plain, inputs),
        measure_step(patched, inputs),
        _time((plain, patched), inputs, steps) if steps else None,
    )


def _moved(value: Any, device: str, dtype: torch.dtype) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(device, dtype) if value.is_floating_point() else value.to(device)


def _largest_error(reference: object, candidate: object) -> float:
    assert isinstance(reference, dict)
    assert isinstance(candidate, dict)
    return max(relative_error(candidate[key], value) for key, value in reference.items() if value.is_floating_point())


def _gradient_error(reference: Run, candidate: Run) -> float:
    if reference.gradients.keys() != candidate.gradients.keys():
        return float("inf")
    return _largest_error(reference.gradients, candidate.gradients)


def _time(models: tuple[nn.Module, nn.Module], inputs: Inputs, steps: int) -> tuple[float, float]:
    """Median seconds of a step of each model. They take turns, so a machine that slows down slows both."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for step in range(steps + 1):
        for model, times in zip(models, seconds, strict=True):
            clear_gradients(model)
            _wait()
            start = time.perf_counter()
            model(**{"use_cache": False} | dict(inputs)).loss.backward()
            _wait()
            if step:  # the first one warms up
                times.append(time.perf_counter() - start)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def _wait() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
