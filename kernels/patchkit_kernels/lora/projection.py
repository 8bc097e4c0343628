"""Linear projections and their LoRA adapters as tensors: the words in which the fused functions are written.

A projection is ``x W^T + b``; each of its adapters adds to that, one after the other, in PEFT's order::

    t   = d(x) A^T                                   [tokens, rank], d being dropout or nothing
    l   = s (t B^T + c)                              [tokens, out]
    LoRA   r <- r + l                                Hu et al. 2021, section 4.1
    DoRA   r <- r + (g - 1) (r - b) + g l            Liu et al. 2024, section 4.3; without dropout
           r <- r + (g - 1) d(x) W^T + g l           with dropout
           g = m / |W + s (B A + c 1^T)|             row-wise norm, a constant to autograd

as in PEFT's ``lora.Linear`` and ``DoraLinearLayer``. Each line has a file or a pair of functions, the gradient beside
the forward: t and l stand in :mod:`patchkit_kernels.lora.low_rank`, the three sums in
:mod:`patchkit_kernels.lora.terms`, g in :mod:`patchkit_kernels.lora.dora_factor`.
:mod:`patchkit_kernels.lora.forward` and :mod:`patchkit_kernels.lora.backward` put them together for several projections
of one input, and :mod:`patchkit_kernels.lora.saving` says what is kept in between.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class QuantizedWeight(Protocol):
    """A weight ``[out, in]`` that is stored in another form. It is never trained.

    What it computes goes through the library that made it, and nothing of that is kept.
    """

    def linear(self, x: Tensor) -> Tensor:
        """``x W^T + b`` for ``[..., in]``, as that library computes it, in x's dtype; the bias b included."""

    def dense(self) -> Tensor:
        """W ``[out, in]`` in a floating dtype."""

    def compute_dtype(self, given: torch.dtype) -> torch.dtype:
        """The dtype of its products for an input of dtype ``given``."""

    @property
    def by_rows(self) -> bool:
        """Whether each row of what ``linear`` gives depends on that row of x alone, so that x may come in parts."""

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)``."""

    @property
    def device(self) -> torch.device:
        """Where it is stored."""


class Adapter(NamedTuple):
    """One LoRA or DoRA adapter of a projection.

    Attributes:
        lora_a: A, ``[rank, in]``.
        lora_b: B, ``[out, rank]``.
        scaling: s.
        bias: c, ``[out]``, the bias of B, or None.
        magnitude: m, ``[out]``, of DoRA; None for LoRA.
        dropout: probability with which an element of this adapter's input is dropped in this call; 0 draws nothing.
    """

    lora_a: Tensor
    lora_b: Tensor
    scaling: float = 1.0
    bias: Tensor | None = None
    magnitude: Tensor | None = None
    dropout: float = 0.0

    @property
    def factor(self) -> Tensor | None:
        """g, ``[out]``: inside the fused functions ``with_factors`` has put it in the place of the magnitude."""
        return self.magnitude


class Projection(NamedTuple):
    """A linear projection with its active adapters, in the order in which they are added.

    Attributes:
        weight: W, ``[out, in]``, or what stands for it.
        bias: b, ``[out]``, or None.
        adapters: none for a projection without adapter.
    """

    weight: Tensor | QuantizedWeight
    bias: Tensor | None = None
    adapters: tuple[Adapter, ...] = ()


class Precision(NamedTuple):
    """The dtypes in which PEFT computes.

    Attributes:
        base: of the products with W. W's dtype, the compute dtype of a quantised W, or autocast's.
        lora: of the products with A and B. Theirs (PEFT keeps adapters in float32 over a bfloat16 base unless told
            otherwise), or autocast's. The sum of both parts is made in the wider of the two and rounded once.
        output: of every output.
        drawn: of the input that dropout is drawn for. On some devices the random stream depends on it.
    """

    base: torch.dtype
    lora: torch.dtype
    output: torch.dtype
    drawn: torch.dtype

    @property
    def products(self) -> tuple[torch.dtype, torch.dtype]:
        """What projections without adapter have in common with their neighbours: dtypes of products and outputs."""
        return self.base, self.output


def dense_weight(projection: Projection) -> Tensor:
    """W ``[out, in]``, dequantised if need be."""
    weight = projection.weight
    return weight if isinstance(weight, Tensor) else weight.dense()


def dropout_scale(probability: float) -> float:
    """What the elements that stay are multiplied with, ``1 / (1 - p)``; 0 if none stays."""
    return 0.0 if probability == 1.0 else 1.0 / (1.0 - probability)


def sum_dtype(projection: Projection, precision: Precision) -> torch.dtype:
    """The dtype in which the parts of one projection are added up."""
    wide = torch.promote_types(precision.output, precision.lora)
    for adapter in projection.adapters:
        if adapter.magnitude is not None:
            # PEFT's DoRA adds small corrections to a product that is already rounded. Scaling the sum itself must not
            # round it once more.
            return torch.promote_types(wide, torch.float32)
    return wide


def present(tensor: Tensor | None) -> Tensor:
    """The tensor, which is not None where this is asked for."""
    assert tensor is not None  # narrows the type; every caller has looked
    return tensor
