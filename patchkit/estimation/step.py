"""One training step on tensors without data, and what the same step takes with all layers of the model."""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.utils.checkpoint import checkpoint

from patchkit.errors import EstimateError
from patchkit.estimation.layers import roles_of
from patchkit.estimation.live import Held, LiveBytes, Roles, Segment, Span

_ANSWERS_WITH_VALUES = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)


class Way(NamedTuple):
    """How a step is run.

    Attributes:
        checkpointing: with gradient checkpointing of every layer, without reentrance.
        offload: what is kept is moved to the host's memory: ``torch.autograd.graph.save_on_cpu`` around the step, or
            with checkpointing around what it keeps, as ``offload=True`` of transformers does it.
    """

    checkpointing: bool = False
    offload: bool = False


class Counted(NamedTuple):
    """What was counted of one step.

    Attributes:
        kept: bytes between forward and backward, by what they were made for.
        host: of these, bytes in the host's memory, by layer (-1 for none).
        spans: see :class:`~patchkit.estimation.live.LiveBytes`; likewise the next.
        flops: floating-point operations of each segment.
    """

    kept: Counter[Held]
    host: Counter[int]
    spans: dict[Segment, Span]
    flops: Counter[Segment]


class Step(NamedTuple):
    """What a step takes beyond parameters, optimizer states and the batch itself.

    Attributes:
        kept: bytes between forward and backward, by part.
        host: bytes of the host's memory between forward and backward.
        peak: bytes at most, in forward and backward, gradients included.
        flops: floating-point operations of forward and backward.
    """

    kept: dict[str, int]
    host: int
    peak: int
    flops: int


def count_step(
    model: nn.Module,
    layers: nn.ModuleList | None,
    mode: FakeTensorMode,
    size: tuple[int, int],
    way: Way,
    *,
    masked: bool,
) -> Counted:
    """Run forward and backward of a model on fake tensors.

    Args:
        model: see :func:`patchkit.estimation.fake.without_data`; its gradients are dropped.
        layers: its layers; None if it has none that are known.
        mode: of its tensors.
        size: sequences, and tokens of each.
        way: see :class:`Way`.
        masked: whether the model is given a mask of its tokens.

    Raises:
        EstimateError: the step asks for values, or cannot be run.
    """
    set_checkpointing(model, way.checkpointing)
    roles = Roles({}, {}) if layers is None else roles_of(layers)
    with mode:
        ids = torch.zeros(size, dtype=torch.int64)
        inputs = {"input_ids": ids, "labels": ids}
        if masked:
            inputs["attention_mask"] = torch.ones_like(ids)
    live = LiveBytes([*model.parameters(), *model.buffers(), *inputs.values()], roles)
    region = _on_host(live) if way.offload and not way.checkpointing else nullcontext()
    if way.offload and way.checkpointing:
        _checkpoint_on_host(model, live)
    try:
        with mode, live:
            with region:
                loss: Tensor = model(**inputs, use_cache=False).loss
            kept, host = live.kept(), live.host_by_layer()
            loss.backward()  # type: ignore[no-untyped-call]
    except _ANSWERS_WITH_VALUES as error:
        raise EstimateError(
            f"what {type(model).__name__} computes depends on values ({type(error).__name__}: {error}), "
            "so its memory is not known from shapes alone"
        ) from error
    except Exception as error:
        raise EstimateError(
            f"a step of {type(model).__name__} cannot be run on input_ids and labels of {list(size)} "
            f"({type(error).__name__}: {error})"
        ) from error
    finally:
        for parameter in model.parameters():
            parameter.grad = None
    return Counted(kept, host, live.spans, live.flops)


def set_checkpointing(model: nn.Module, wanted: bool) -> None:
    """Switch gradient checkpointing of every layer on or off.

    Raises:
        EstimateError: it is wanted and the model has none.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # newer releases have another name, older ones only this
            if wanted:
                model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
            else:
                model.gradient_checkpointing_disable()  # type: ignore[operator]
    except Exception as error:
        if wanted:
            raise EstimateError(f"{type(model).__name__} has no gradient checkpointing: {error}") from error


def _on_host(live: LiveBytes) -> AbstractContextManager[Any]:
    """What ``torch.autograd.graph.save_on_cpu`` does between a device and its host."""

    def pack(tensor: Tensor) -> Tensor:
        with live.on_host():
            return tensor.detach().clone()

    def unpack(moved: Tensor) -> Tensor:
        return moved.clone()

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


def _checkpoint_on_host(model: nn.Module, live: LiveBytes) -> None:
    def run(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        with _on_host(live):
            return checkpoint(function, *args, use_reentrant=False, **options)

    for module in model.modules():
        if "_gradient_checkpointing_func" in vars(module):
            vars(module)["_gradient_checkpointing_func"] = run


def extended(counted: Counted, kinds: Sequence[int], positions: Sequence[int]) -> Step:
    """What the step takes with all layers, of which those at some positions were run.

    A layer that was not run keeps, needs and leaves what the one of its kind does that stands between others. So at
    each moment of the longer step as much lives as in the shorter one, and what the layers before it keep, and what
    the gradients of those behind it take.

    Args:
        counted: of the shorter model.
        kinds: see :class:`~patchkit.estimation.layers.Stack`; empty where everything was run.
        positions: see :func:`~patchkit.estimation.layers.chosen`.
    """
    shown = _stand_ins(kinds, positions)
    times = Counter(shown)
    kept: Counter[str] = Counter()
    for (layer, part), size in counted.kept.items():
        kept[part] += size * (times[layer] if layer >= 0 else 1)
    host = sum(size * (times[layer] if layer >= 0 else 1) for layer, size in counted.host.items())
    flops = sum(work * (times[segment.layer] if segment.layer >= 0 else 1) for segment, work in counted.flops.items())
    return Step(dict(kept), host, _peak(counted.spans, shown), flops)


def _stand_ins(kinds: Sequence[int], positions: Sequence[int]) -> list[int]:
    """For each layer the number, in the shorter model, of the one that stands for it."""
    number = {position: index for index, position in enumerate(positions)}
    between = {kinds[position]: number[position] for position in reversed(positions[1:-1])}
    return [number[position] if position in number else between[kind] for position, kind in enumerate(kinds)]


def _peak(spans: dict[Segment, Span], shown: Sequence[int]) -> int:
    order = [
        Segment("before"),
        *(Segment("forward", layer) for layer in shown),
        Segment("loss"),
        *(Segment("backward", layer) for layer in reversed(shown)),
        Segment("after"),
    ]
    there = [segment for segment in order if segment in spans]
    following = list(spans)
    after = {one: spans[two].start for one, two in itertools.pairwise(following)}
    live = peak = 0
    for segment in there:
        start, highest = spans[segment]
        peak = max(peak, live + highest - start)
        live += after.get(segment, start) - start
    return peak
