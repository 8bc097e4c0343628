"""The work of an operation in floating-point operations: of products of matrices, convolutions and attention.

A multiplication and an addition are two. Operations on single elements count as none: they wait for memory. Formulas
are those of ``torch.utils.flop_counter.flop_registry``, to which a custom operator can be added with
``register_flop_formula``. As there, a mask saves nothing, also not the half that causal attention leaves out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry


def flops_of(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> int:
    """What an operation that was dispatched does; 0 for one without a formula.

    Args:
        func: the operator's overload.
        args: what it was given; likewise kwargs.
        kwargs: by name.
        out: what it gave.
    """
    packet = getattr(func, "_overloadpacket", None)
    formula = flop_registry.get(packet) or _EXTRA_FORMULAS.get(packet)
    return int(formula(*args, **kwargs, out_val=out)) if formula else 0


def _matrix_vector_flops(matrix: Tensor, vector: Tensor, *_: Any, **__: Any) -> int:
    return 2 * matrix.numel()


def _cpu_attention_flops(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """query, key, value: [batch, heads, seq, head_dim]. Two products."""
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
