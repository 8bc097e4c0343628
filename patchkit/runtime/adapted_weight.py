"""What stands in the place of an adapted parameter while its module runs: W and its adapters, not multiplied out.

PEFT puts ``W + s D`` there. Upstream's ``forward`` indexes that, transposes it and multiplies with it, by functions of
torch, and what stands here answers these: a product with W, plus low-rank products. Everything else that is asked of
it, or done with it, gets the tensor that PEFT would have put there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from patchkit.runtime import fused
from patchkit.runtime.precision import precision_of
from patchkit_kernels.lora.projection import Adapter, Precision, Projection
from patchkit_kernels.lora.stack import StackAdapter
from patchkit_kernels.lora.stack_products import Batched, Gathered, Grouped, StackProducts

_INDICES = frozenset({torch.int64, torch.int32})
_GROUPED_FALLBACK = "transformers::grouped_mm_fallback"
_NAMED = frozenset({"bias", "offs", "out_dtype"})
"""The arguments that products may be given by name."""


class _StandIn:
    """Stands for a tensor, which is only made if something asks for it."""

    @property
    def dense(self) -> Tensor:
        """The tensor, made once."""
        raise NotImplementedError

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """What torch runs in place of a function that was given one of these as an argument."""
        kwargs = kwargs or {}
        product = _product_of(function) if kwargs.keys() <= _NAMED else None
        found = None if product is None else product(function, *args, **kwargs)
        if found is not None:
            return found
        return function(*map(_as_tensor, args), **{name: _as_tensor(value) for name, value in kwargs.items()})

    def __getattr__(self, name: str) -> Any:
        """What a tensor has and this does not say itself."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.dense, name)

    def __getitem__(self, index: Any) -> Any:
        """Of the tensor."""
        return self.dense[index]


class AdaptedWeight(_StandIn):
    """Stands for ``W + sum of s L R``.

    Args:
        weight: W, ``[m, n]``, or a stack of such matrices ``[E, m, n]``; frozen.
        adapters: L ``[m, r]``, R ``[r, n]`` and s of each; of a stack ``[E, m, r]`` and ``[E, r, n]``.
    """

    def __init__(self, weight: Tensor, adapters: Sequence[StackAdapter]) -> None:
        self._weight, self._adapters = weight, tuple(adapters)

    @cached_property
    def dense(self) -> Tensor:
        """``W + sum of s L R``, in W's dtype, whatever autocast says."""
        total = self._weight
        with torch.autocast(total.device.type, enabled=False):
            for left, right, scaling in self._adapters:
                add: Any = torch.addmm if total.dim() == 2 else torch.baddbmm
                total = add(total, left, right, alpha=scaling)
        return total

    @property
    def shape(self) -> torch.Size:
        """That of W; likewise below."""
        return self._weight.shape

    @property
    def dtype(self) -> torch.dtype:
        """What the tensor says that this stands for."""
        return self._weight.dtype

    @property
    def device(self) -> torch.device:
        """What the tensor says that this stands for."""
        return self._weight.device

    def data_ptr(self) -> int:
        """Where W is stored: asked for by who wants to know how it is aligned for a product."""
        return self._weight.data_ptr()

    def transpose(self, first: int, second: int) -> Any:
        """Of the last two dimensions."""
        dims = self._weight.dim()
        if {first % dims, second % dims} != {dims - 2, dims - 1}:
            return self.dense.transpose(first, second)
        turned = [StackAdapter(right.mT, left.mT, scaling) for left, right, scaling in self._adapters]
        return AdaptedWeight(self._weight.mT, turned)

    def t(self) -> Any:
        """Of a matrix."""
        return self.transpose(0, 1)

    @property
    def T(self) -> Any:  # noqa: N802
        """Of a matrix."""
        return self.transpose(0, 1) if self._weight.dim() == 2 else self.dense.T

    @property
    def mT(self) -> Any:  # noqa: N802
        """The last two dimensions exchanged."""
        return self.transpose(-2, -1)

    def float(self) -> Any:
        """In float32."""
        return self._cast(torch.float32)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """In another dtype."""
        one = args[0] if len(args) == 1 and not kwargs else None
        return self._cast(one) if isinstance(one, torch.dtype) else self.dense.to(*args, **kwargs)

    def type(self, *args: Any, **kwargs: Any) -> Any:
        """In another dtype."""
        one = args[0] if len(args) == 1 and not kwargs else None
        return self._cast(one) if isinstance(one, torch.dtype) else self.dense.type(*args, **kwargs)

    def _cast(self, dtype: torch.dtype) -> AdaptedWeight:
        if dtype == self._weight.dtype:
            return self
        cast = [StackAdapter(left.to(dtype), right.to(dtype), scaling) for left, right, scaling in self._adapters]
        return AdaptedWeight(self._weight.to(dtype), cast)

    def __getitem__(self, index: Any) -> Any:
        """One matrix of a stack, or one for each of many indices."""
        if self._weight.dim() == 3:
            if isinstance(index, Tensor) and index.dtype in _INDICES:
                if index.dim() == 1:
                    return SelectedWeight(self, index)
                index = int(index) if index.dim() == 0 else index
            if type(index) is int:
                return self._matrix(index)
        return self.dense[index]

    def _matrix(self, index: int) -> AdaptedWeight:
        chosen = [
            StackAdapter(left[index], right[index], scaling)
            for (left, right), (_, _, scaling) in zip(self._unbound, self._adapters, strict=True)
        ]
        return AdaptedWeight(self._weight[index], chosen)

    @cached_property
    def _unbound(self) -> list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
        """L and R of every matrix: their gradients become one stack, where each index by itself would make a stack."""
        return [(left.unbind(), right.unbind()) for left, right, _ in self._adapters]

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor | None:
        """``x (W + sum of s L R)^T + b`` of a matrix; None if it is not known how."""
        precision = self._precision(x)
        if precision is None or not _is_plain(bias, self._weight, len(self._weight)):
            return None
        adapters = tuple([Adapter(right, left, scaling) for left, right, scaling in self._adapters])
        return fused.lora_linear(x, Projection(self._weight, bias, adapters), precision)

    def stacked(self, x: Tensor, products: StackProducts, dtype: torch.dtype | None = None) -> Tensor:
        """Rows times the matrices of the stack, in W's dtype or another one."""
        dtype = self._weight.dtype if dtype is None else dtype
        adapters = [StackAdapter(left.to(dtype), right.to(dtype), scaling) for left, right, scaling in self._adapters]
        return fused.lora_stack(x.to(dtype), self._weight, adapters, products)

    def _precision(self, x: object) -> Precision | None:
        if not isinstance(x, Tensor) or self._weight.dim() != 2 or x.dim() < 2:
            return None
        dtype = self._weight.dtype
        found = precision_of(x.dtype, _autocast(x), dtype, dtype, stored=False, adapter_precision="peft")
        return found if isinstance(found, Precision) else None


class SelectedWeight(_StandIn):
    """Stands for matrices of a stack, one for each index: ``[rows, m, n]``.

    Args:
        stack: the stack.
        indices: integers ``[rows]``.
    """

    def __init__(self, stack: AdaptedWeight, indices: Tensor) -> None:
        self.stack, self.indices = stack, indices

    @cached_property
    def dense(self) -> Tensor:
        """The tensor that this stands for."""
        return self.stack.dense[self.indices]


def _product_of(function: object) -> Callable[..., Tensor | None] | None:
    """What computes a function of torch with one of these as its last factor, or with None as its answer does not."""
    known = _PRODUCTS.get(function) if function in _PRODUCTS else None
    if known is None and getattr(function, "_qualified_op_name", None) == _GROUPED_FALLBACK:
        return _grouped
    return known


def _linear(_: object, x: Any, weight: Any, bias: Any = None) -> Tensor | None:
    return weight.linear(x, bias) if type(weight) is AdaptedWeight else None


def _matmul(_: object, x: Any, weight: Any) -> Tensor | None:
    is_matrix = type(weight) is AdaptedWeight and len(weight.shape) == 2
    found: Tensor | None = weight.t().linear(x) if is_matrix else None
    return found


def _bmm(_: object, left: Any, right: Any) -> Tensor | None:
    if type(right) is AdaptedWeight:
        return _in_batches(left, right)
    if type(right) is SelectedWeight:  # [rows, 1, m] times [rows, m, n]
        found = _gathered(left, right, right.stack, 1)
        return None if found is None else found.unsqueeze(1)
    found = _gathered(right, left, left.stack.mT, 2) if type(left) is SelectedWeight else None
    return None if found is None else found.unsqueeze(2)


def _in_batches(x: Any, stack: AdaptedWeight) -> Tensor | None:
    dtype = _dtype_of_products(x, stack)
    fits = dtype is not None and len(stack.shape) == 3 and x.dim() == 3 and x.shape[0] == stack.shape[0]
    return stack.stacked(x, Batched(), dtype) if fits else None


def _gathered(x: Any, selected: SelectedWeight, stack: AdaptedWeight, vector: int) -> Tensor | None:
    """Vectors, that are matrices of one row or column, times the matrix that each selects."""
    dtype = _dtype_of_products(x, stack)
    if dtype is None or x.dim() != 3 or x.shape[vector] != 1 or x.shape[0] != selected.indices.shape[0]:
        return None
    return stack.stacked(x.squeeze(vector), Gathered(selected.indices), dtype)


def _grouped(
    function: Callable[..., Tensor],
    x: Any,
    stack: Any,
    offs: Any = None,
    bias: Any = None,
    out_dtype: Any = None,
) -> Tensor | None:
    plain = isinstance(x, Tensor) and x.dim() == 2 and isinstance(offs, Tensor) and bias is None and out_dtype is None
    if not plain or type(stack) is not AdaptedWeight or len(stack.shape) != 3 or x.dtype != stack.dtype:
        return None
    # A loop adds the adapter's product without rounding it first, but it needs the offsets, which a device has to send.
    native = function is _grouped_mm and (x.dtype == torch.float32 or x.device.type != "cpu")
    return stack.stacked(x, Grouped(offs, function, native=native))


def _dtype_of_products(x: Any, stack: AdaptedWeight) -> torch.dtype | None:
    """The dtype in which torch multiplies x with a stack; None if it would not, or it is not known."""
    if not isinstance(x, Tensor):
        return None
    autocast = _autocast(x)
    found = precision_of(x.dtype, autocast, stack.dtype, stack.dtype, stored=False, adapter_precision="peft")
    return found.base if isinstance(found, Precision) else None


def _autocast(x: Tensor) -> torch.dtype | None:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if kind != "meta" and torch.is_autocast_enabled(kind) else None


def _is_plain(bias: Any, weight: Tensor, size: int) -> bool:
    if bias is None:
        return True
    return isinstance(bias, Tensor) and bias.shape == (size,) and bias.dtype == weight.dtype


def _as_tensor(value: Any) -> Any:
    """An argument of a function of torch, with the tensors that these stand for."""
    if isinstance(value, _StandIn):
        return value.dense
    if isinstance(value, list | tuple):
        return type(value)(map(_as_tensor, value))
    return value


_grouped_mm: Any = getattr(torch, "_grouped_mm", None)  # since torch 2.8
_PRODUCTS: dict[Any, Callable[..., Tensor | None]] = {
    F.linear: _linear,
    torch.matmul: _matmul,
    Tensor.matmul: _matmul,
    Tensor.__matmul__: _matmul,
    torch.bmm: _bmm,
} | ({} if _grouped_mm is None else {_grouped_mm: _grouped})
