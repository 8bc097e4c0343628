"""What a step moves and computes, operation by operation: the traced work from which a time can be modelled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from patchkit.estimation.operations import computes, flops_of

Kind = Literal["half product", "float32 product", "pointwise"]
"""A matrix product whose factors have 16 bits each, another one, or anything else that touches data."""


_OVERWRITE = frozenset({"fill_", "zero_", "copy_"})
"""They do not look at what was there before."""


class Work(NamedTuple):
    """One operation, or several that are alike.

    Attributes:
        kind: see :data:`Kind`.
        flops: of a matrix product; 0 of anything else.
        bytes: read and written, each tensor once: what a kernel moves at least.
    """

    kind: Kind
    flops: int
    bytes: int


class Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the work of every operation that is dispatched, and changes none.

    An op of patchkit is one operation, as it is one kernel on a GPU. Operations that compilers fuse stand alone, so
    that this is the work of a model that is not compiled.

    Attributes:
        work: how often each work was done.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.work: Counter[Work] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        out = func(*args, **given)
        if computes(func, out):
            self.work[_work(func, args, given, out)] += 1
        return out

    @property
    def operations(self) -> int:
        """How many read or write data."""
        return self.work.total()

    @property
    def flops(self) -> int:
        """Those of all matrix products."""
        return sum(one.flops * times for one, times in self.work.items())

    @property
    def bytes(self) -> int:
        """Read and written by all operations."""
        return sum(one.bytes * times for one, times in self.work.items())


def _work(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Work:
    flops, name = flops_of(func, args, kwargs, out), func._overloadpacket.__name__
    read = [leaf for leaf in tree_leaves((args, kwargs | {"out": None})) if isinstance(leaf, Tensor)]
    written = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
    kind: Kind = "pointwise"
    if flops:
        added = "addmm" in name or "addbmm" in name
        factors = read[1:3] if added else read[:2]
        kind = "half product" if all(one.element_size() == 2 for one in factors) else "float32 product"
        if added and kwargs.get("beta", 1) == 0:
            read = read[1:]  # the values of the addend are not looked at
    elif name in _OVERWRITE:
        read = read[1:]
    return Work(kind, flops, _bytes(read) + _bytes(written))


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Of these tensors; one that is expanded counts what is stored of it."""
    return sum(min(one.numel() * one.element_size(), int(one.untyped_storage().nbytes())) for one in tensors)
