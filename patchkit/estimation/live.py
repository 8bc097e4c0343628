"""The bytes that live at each moment of a step, counted operation by operation, with what they were made for.

A storage lives from the operation whose result it is until nobody holds it: no graph node, no module, no variable. So
nothing of what is kept is missed: not what an autograd function keeps in its own way, not inputs of checkpoints.
"""

from __future__ import annotations

import sys
import weakref
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from patchkit.estimation.operations import flops_of

Phase = Literal["before", "forward", "loss", "backward", "after"]
"""Before the first layer, forward of a layer, what follows the layers and its backward, backward of a layer, rest."""

_CALLS = frozenset({nn.Module._call_impl.__code__})
_NOISE = torch.ops.aten.bernoulli_.float


class Segment(NamedTuple):
    """A part of a step: a phase, and in forward and backward of which layer."""

    phase: Phase
    layer: int = -1


class Held(NamedTuple):
    """What a storage was made for: the layer (-1 for none), and the part."""

    layer: int
    part: str


class Span(NamedTuple):
    """Of one segment: the bytes that live at its first operation, and at most."""

    start: int
    peak: int


class Roles(NamedTuple):
    """What modules are, by their identity.

    Attributes:
        layers: the number of each layer, in the order in which they run.
        parts: the part that a module within a layer is.
    """

    layers: Mapping[int, int]
    parts: Mapping[int, str]


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts storages that operations make, and changes none.

    The layer of an operation is read from the calls on Python's stack in forward, and in backward from the number of
    the graph node that runs. No hook is set, since patchkit leaves hooked modules to upstream.

    Args:
        existing: tensors that are there anyway.
        roles: see :class:`Roles`.

    Attributes:
        live: bytes that live now.
        host: of these, not counted in ``live``: what was moved to the host's memory, see :meth:`on_host`.
        spans: of each segment, in the order of time.
        flops: of each segment, see :func:`~patchkit.estimation.operations.flops_of`.
    """

    def __init__(self, existing: Iterable[Tensor], roles: Roles) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: int = 0
        self.host: int = 0
        self.spans: dict[Segment, Span] = {}
        self.flops: Counter[Segment] = Counter()
        self._roles = roles
        self._segment = Segment("before")
        self._part = "embedding"
        self._starts: list[int] = []  # the number of the first graph node of each layer, and of what follows them
        self._known: dict[int, tuple[int, Held, bool]] = {_key(one): (0, Held(-1, ""), False) for one in existing}
        self._onto_host = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self._locate()
        self.spans.setdefault(self._segment, Span(self.live, self.live))
        out = func(*args, **(kwargs or {}))
        self.flops[self._segment] += flops_of(func, args, kwargs or {}, out)
        if func is _NOISE:
            self._as_booleans(args[0])
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and _key(leaf) not in self._known:
                self._add(leaf.untyped_storage())
        return out

    @contextmanager
    def on_host(self) -> Iterator[None]:
        """For the time of a ``with`` block, new storages count as the host's memory."""
        self._onto_host = True
        try:
            yield
        finally:
            self._onto_host = False

    def kept(self) -> Counter[Held]:
        """Bytes that live now, by what they were made for; without the host's."""
        found: Counter[Held] = Counter()
        for size, held, host in self._known.values():
            if size and not host:
                found[held] += size
        return found

    def host_by_layer(self) -> Counter[int]:
        """Bytes that live in the host's memory now, by the layer that they were made for."""
        found: Counter[int] = Counter()
        for size, held, host in self._known.values():
            if host:
                found[held.layer] += size
        return found

    def _add(self, storage: Any) -> None:
        key, size = int(storage._cdata), int(storage.nbytes())
        self._known[key] = size, Held(self._segment.layer, self._part), self._onto_host
        weakref.finalize(storage, self._remove, key)
        if self._onto_host:
            self.host += size
            return
        self.live += size
        span = self.spans[self._segment]
        if self.live > span.peak:
            self.spans[self._segment] = Span(span.start, self.live)

    def _as_booleans(self, noise: Tensor) -> None:
        """Count what dropout draws as devices keep it, one byte for each element: ``native_dropout``."""
        size, held, host = self._known.get(_key(noise), (0, Held(-1, ""), True))
        if size and not host:
            self._known[_key(noise)] = noise.numel(), held, host
            self.live += noise.numel() - size

    def _remove(self, key: int) -> None:
        size, _, host = self._known.pop(key)
        if host:
            self.host -= size
        else:
            self.live -= size

    def _locate(self) -> None:
        """Set the segment and the part of the operation that is about to run."""
        node = torch._C._current_autograd_node()
        if node is None:
            self._locate_in_forward()
            return
        number = int(node._sequence_nr())
        if number >= 1 << 63:  # of a node that accumulates a gradient: it belongs to the one that gave it
            return
        layer = bisect_right(self._starts, number) - 1
        if layer < 0:
            self._segment = Segment("after")
        elif layer < len(self._roles.layers):
            self._segment = Segment("backward", layer)
        else:
            self._segment = Segment("loss")

    def _locate_in_forward(self) -> None:
        layer, part = self._called()
        count = len(self._roles.layers)
        if layer is None:
            if self._segment.phase == "forward" and self._segment.layer == count - 1:
                self._starts.append(_current_node())
                self._segment, self._part = Segment("loss"), "head and loss"
            return
        self._part = part
        if self._segment != ("forward", layer) and layer >= len(self._starts):
            self._starts += [_current_node()] * (layer + 1 - len(self._starts))
            self._segment = Segment("forward", layer)

    def _called(self) -> tuple[int | None, str]:
        """The layer that is being called, and the part of it."""
        layer, part = None, "residual stream"
        frame: Any = sys._getframe(3)
        while frame is not None:
            if frame.f_code in _CALLS:
                module = id(frame.f_locals.get("self"))
                part = self._roles.parts.get(module, part)  # the outermost counts: that is found last
                layer = self._roles.layers.get(module, layer)
            frame = frame.f_back
        return layer, part


def _current_node() -> int:
    """The number of the graph node of the operation that is dispatched: it was made just before."""
    return int(torch._C._autograd._get_sequence_nr()) - 1


def _key(tensor: Tensor) -> int:
    # The storage's own identity: empty storages share the data pointer 0.
    return int(tensor.untyped_storage()._cdata)
