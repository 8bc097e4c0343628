"""One call of several projections of one input: the words for what it needs, keeps, passes back and returns.

Everything stands in the order of the projections, and within one in the order of its adapters. What flows back runs
through a projection's adapters from the last to the first, and stands in that order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from patchkit_kernels.lora.projection import Adapter, Precision, Projection


class AdapterNeeds(NamedTuple):
    """Which tensors of an adapter need a gradient."""

    lora_a: bool
    lora_b: bool
    bias: bool
    factor: bool


class Needs(NamedTuple):
    """Which tensors of a projection need a gradient."""

    weight: bool
    bias: bool
    adapters: tuple[AdapterNeeds, ...]

    @property
    def any(self) -> bool:
        """Whether any tensor needs one."""
        return self.weight or self.bias or any(map(any, self.adapters))


class Call(NamedTuple):
    """Several projections of one input.

    Attributes:
        projections: any number, with or without adapters, and with g in the place of every magnitude.
        needs: of each projection.
        precision: see :class:`~patchkit_kernels.lora.projection.Precision`.
    """

    projections: Sequence[Projection]
    needs: Sequence[Needs]
    precision: Precision


class Kept(NamedTuple):
    """What forward makes of one adapter, and of that, what is kept for backward.

    Attributes:
        mask: of dropout, one bit for each element of x (:mod:`patchkit_kernels.ops.dropout`); None if none was drawn.
            Stored, not drawn again: that would need the generator's state of that moment, which ``torch.compile`` and
            CUDA graphs do not have, and a bit is a sixteenth of a bfloat16 element.
        reduced: t, ``[tokens, rank]``. It is kept where dB needs it and x and A are not both there to make it again.
        direction: of DoRA, what g scales, ``[tokens, out]``. It is kept where the magnitude is trained: making it again
            would cost the product with W, and PEFT keeps two tensors of this size.
    """

    mask: Tensor | None = None
    reduced: Tensor | None = None
    direction: Tensor | None = None


class TermGradient(NamedTuple):
    """What an adapter's term makes of e, the gradient of the sum of the terms up to it.

    Attributes:
        total: e of the sum before the term, ``[tokens, out]``.
        low_rank: dl, ``[tokens, out]``.
        dropped_product: of DoRA with dropout, the gradient of ``d(x) W^T``, ``[tokens, out]``.
        factor: of DoRA with a trained magnitude, dg, ``[out]``.
    """

    total: Tensor
    low_rank: Tensor
    dropped_product: Tensor | None = None
    factor: Tensor | None = None


class AdapterFlow(NamedTuple):
    """What flows back through one adapter.

    Attributes:
        adapter: as in forward.
        needs: which of its tensors need a gradient.
        kept: of forward.
        term: what its term made of e.
        reduced: dt, ``[tokens, rank]``, if dx or dA needs it.
    """

    adapter: Adapter
    needs: AdapterNeeds
    kept: Kept
    term: TermGradient
    reduced: Tensor | None


class ProjectionFlow(NamedTuple):
    """What flows back through one projection.

    Attributes:
        projection: as in forward.
        needs: which of its tensors need a gradient.
        output: dy, ``[tokens, out]``.
        base: e of ``x W^T``, ``[tokens, out]``.
        adapters: from the last to the first.
    """

    projection: Projection
    needs: Needs
    output: Tensor
    base: Tensor
    adapters: list[AdapterFlow]


class Flow(NamedTuple):
    """What flows back through a call, and is used again for the gradients of its tensors.

    Attributes:
        x: dx ``[tokens, in]``, or None if it is not needed.
        projections: None where nothing flows back: such a projection's tensors get no gradient, as in autograd.
        stacked: dt of the adapters without dropout side by side, ``[tokens, sum of ranks]``; None if none is needed.
        precision: as in forward.
    """

    x: Tensor | None
    projections: list[ProjectionFlow | None]
    stacked: Tensor | None
    precision: Precision


class AdapterGrads(NamedTuple):
    """The gradients of an adapter's tensors; None where none is needed."""

    lora_a: Tensor | None
    lora_b: Tensor | None
    bias: Tensor | None
    factor: Tensor | None


class Grads(NamedTuple):
    """The gradients of a projection's tensors; None where none is needed."""

    weight: Tensor | None
    bias: Tensor | None
    adapters: list[AdapterGrads]
