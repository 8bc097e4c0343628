"""What single operations of the dispatcher are: whether they touch data, and how many FLOPs they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

# Tensor-valued, aliasing nothing, and yet without work on data.
_FREE = frozenset(
    {"_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh"}
)


def computes(func: Any, out: Any) -> bool:
    """Whether an operation that was dispatched reads or writes data of tensors: no view, allocation or query."""
    if func._overloadpacket.__name__ in _FREE:
        return False
    if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(out)):
        return "local_scalar_dense" in func.__name__  # .item() reads data; sizes and devices do not
    returns = func._schema.returns
    is_view = bool(returns) and all(value.alias_info and not value.alias_info.is_write for value in returns)
    return not is_view


def flops_of(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> int:
    """Floating-point operations of a matrix product, convolution or fused attention; 0 of anything else.

    A multiplication and an addition are two. Formulas are those of ``torch.utils.flop_counter.flop_registry``, to which
    a custom operator can be added with ``register_flop_formula``. As there, a mask saves nothing, also not the half
    that causal attention leaves out.
    """
    packet = getattr(func, "_overloadpacket", None)
    formula = flop_registry.get(packet) or _EXTRA_FORMULAS.get(packet)
    return int(formula(*args, **kwargs, out_val=out)) if formula else 0


def _matrix_vector_flops(matrix: Tensor, vector: Tensor, *_: Any, **__: Any) -> int:
    return 2 * matrix.numel()


def _cpu_attention_flops(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """query, key, value: [batch, heads, seq, head_dim]. Two products; the mask saves none."""
    batch_heads, queries = math.prod(query.shape[:2]), query.shape[2]
    return 2 * batch_heads * queries * key.shape[2] * (query.shape[3] + value.shape[3])


def _cpu_attention_backward_flops(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> int:
    """Five products: the scores once more, and the gradients of value, probabilities, query and key."""
    batch_heads, queries = math.prod(query.shape[:2]), query.shape[2]
    return 2 * batch_heads * queries * key.shape[2] * (3 * query.shape[3] + 2 * value.shape[3])


_ATEN = torch.ops.aten
# What the registry lacks: forms that compute the same as registered ones.
_EXTRA_FORMULAS: dict[Any, Callable[..., int]] = {
    _ATEN.addmm_: flop_registry[_ATEN.addmm],
    _ATEN.baddbmm_: flop_registry[_ATEN.baddbmm],
    _ATEN.mv: _matrix_vector_flops,
    _ATEN.dot: _matrix_vector_flops,
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _cpu_attention_flops,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _cpu_attention_backward_flops,
}
