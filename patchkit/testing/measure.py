"""What a step costs, counted rather than timed: bytes kept for backward, matrix-product FLOPs, dispatched operations.

Counts are exact and the same on every machine, so they can be tested. ``torch.utils.flop_counter.FlopCounterMode`` is
not used because it installs global module hooks, which patchkit honours by leaving the hooked modules alone.
"""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from patchkit.estimation.operations import computes, flops_of
from patchkit.testing.parity import Inputs, clear_gradients


@dataclass(frozen=True)
class OpCount:
    """Operations that reached the dispatcher below autograd.

    Attributes:
        ops: all of them.
        compute_ops: without views, allocations and queries: those that read or write tensor data.
    """

    ops: int
    compute_ops: int


@dataclass(frozen=True)
class Cost:
    """The cost of one forward and backward.

    Attributes:
        bytes_kept: bytes held between forward and backward, see :func:`saved_bytes`.
        flops: of matrix products, convolutions and fused attention, see :func:`count_flops`.
        ops: operations dispatched, views included.
        compute_ops: see :class:`OpCount`.
    """

    bytes_kept: int
    flops: int
    ops: int
    compute_ops: int


def saved_bytes(forward: Callable[[], Any], *, exclude: Iterable[nn.Module | Tensor] = ()) -> int:
    """Bytes that autograd keeps for backward when ``forward`` returns.

    Each storage counts once and whole, however many views of it are saved. Not seen are tensors that an autograd
    function keeps as plain attributes of its context, and inputs of checkpointed layers.

    Args:
        forward: its result must hold the graph (a loss, or outputs).
        exclude: modules whose parameters and buffers, and tensors whose storages, are not counted: they exist anyway.
    """
    with _SavedTensors(exclude) as saved:
        result = forward()
        kept = saved.bytes_kept()
    del result
    return kept


def count_flops(fn: Callable[[], Any]) -> int:
    """Floating-point operations of the matrix products in ``fn``: 2 · m · n · k each, backward included if it runs one.

    Formulas are those of ``torch.utils.flop_counter.flop_registry``, to which a custom operator can be added with
    ``register_flop_formula``. Elementwise operations count as none.
    """
    counter = OperationCounter()
    with counter:
        fn()
    return counter.flops


def count_ops(fn: Callable[[], Any]) -> OpCount:
    """Operations dispatched by ``fn``, backward included if it runs one. A custom operator counts as one."""
    counter = OperationCounter()
    with counter:
        fn()
    return OpCount(counter.ops, counter.compute_ops)


def measure_step(model: nn.Module, inputs: Inputs) -> Cost:
    """The cost of one forward and backward of a model with upstream's output object.

    Args:
        model: in the mode to be measured. Its gradients are dropped.
        inputs: keyword arguments of its ``forward``, with ``labels``.
    """
    clear_gradients(model)
    tensors = [value for value in inputs.values() if isinstance(value, Tensor)]
    counter = OperationCounter()
    with counter, _SavedTensors([model, *tensors]) as saved:
        loss: Tensor = model(**{"use_cache": False} | dict(inputs)).loss
        kept = saved.bytes_kept()
        loss.backward()  # type: ignore[no-untyped-call]
    clear_gradients(model)
    return Cost(kept, counter.flops, counter.ops, counter.compute_ops)


class _Handle:
    """What autograd holds in place of a saved tensor; it dies with the graph node that saved it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


class _SavedTensors:
    def __init__(self, exclude: Iterable[nn.Module | Tensor]) -> None:
        self.handles: weakref.WeakSet[_Handle] = weakref.WeakSet()
        self.excluded = {_storage(tensor) for item in exclude for tensor in _tensors(item)}
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def __enter__(self) -> _SavedTensors:
        self.hooks.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.hooks.__exit__(*exception)

    def _pack(self, tensor: Tensor) -> _Handle:
        handle = _Handle(tensor)
        self.handles.add(handle)
        return handle

    @staticmethod
    def _unpack(handle: _Handle) -> Tensor:
        return handle.tensor

    def bytes_kept(self) -> int:
        """Bytes of the distinct storages that live graph nodes hold now."""
        gc.collect()  # graphs that nobody holds any more may be kept alive by reference cycles
        tensors = [handle.tensor for handle in self.handles]
        sizes: dict[int, int] = {_storage(tensor): tensor.untyped_storage().nbytes() for tensor in tensors}
        return sum(size for storage, size in sizes.items() if storage not in self.excluded)


def _tensors(item: nn.Module | Tensor) -> Iterator[Tensor]:
    if isinstance(item, Tensor):
        yield item
    else:
        yield from item.parameters()
        yield from item.buffers()


def _storage(tensor: Tensor) -> int:
    # The storage's own identity: empty storages share the data pointer 0.
    return int(tensor.untyped_storage()._cdata)


class OperationCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations that are dispatched, and changes none: parts run fused below it.

    Attributes:
        flops: of matrix products, see :func:`count_flops`.
        ops: all operations.
        compute_ops: see :class:`OpCount`.
        by_operation: how often each ran.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops: int = 0
        self.ops: int = 0
        self.compute_ops: int = 0
        self.by_operation: Counter[Any] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.ops += 1
        self.by_operation[func] += 1
        self.compute_ops += computes(func, out)
        self.flops += flops_of(func, args, dict(kwargs or {}), out)
        return out
