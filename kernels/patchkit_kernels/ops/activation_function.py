"""One activation: what it computes, in Triton and in torch. Each stands in a file of its own, as ``silu.py``.

Its ops are made from it: :mod:`patchkit_kernels.ops.plain_activation` and
:mod:`patchkit_kernels.ops.gated_activation`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class ActivationFunction:
    """An activation ``act`` and its derivative ``act'``, element by element.

    Attributes:
        name: the op of ``act(x)`` is ``patchkit::<name>``.
        gated_name: that of ``act(gate) * up`` is ``patchkit::<gated_name>``.
        value: ``@jit`` function, fp32 block ``x`` to ``act(x)``.
        value_and_gradient: ``@jit`` function, fp32 blocks ``(x, grad)`` to ``(act(x), grad * act'(x))``. Where torch
            selects rather than multiplies, at the kink of a ReLU, so does it: an infinite ``grad`` becomes 0.
        function: ``act`` in torch, in the operations and dtypes of upstream's module; twice differentiable. The result
            is a new tensor.
        gradient_: ``(grad, x)`` in torch: writes ``grad * act'(x)`` over ``grad`` and returns it; the same operations
            in the same order as autograd of ``function``, so the same bits.
    """

    name: str
    gated_name: str
    value: Any
    value_and_gradient: Any
    function: Callable[[Tensor], Tensor]
    gradient_: Callable[[Tensor, Tensor], Tensor]
