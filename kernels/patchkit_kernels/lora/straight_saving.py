"""What the straight-line functions keep of projections of one input, and the way from there to the general backward.

They keep what :mod:`.saving` says, and t in any case: t and B, and where the input needs a gradient
A and W. What backward does not read stays on the context, as there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from patchkit_kernels.lora.call import AdapterNeeds, Call, Grads, Kept, Needs
from patchkit_kernels.lora.projection import Adapter, Precision, Projection
from patchkit_kernels.lora.straight import Trained


def to_keep(given: Trained, ts: Sequence[Tensor], masks: Sequence[Tensor], *, x_needed: bool) -> list[Tensor | None]:
    """What to save, for :func:`restored`."""
    if not x_needed:
        return [*ts, *masks, *given.factors_b]
    weights = [weight if isinstance(weight, Tensor) else None for weight in given.weights]
    return [*ts, *masks, *given.factors_b, *given.factors_a, *weights]


def count_kept(given: Trained) -> int:
    """How many tensors :func:`to_keep` saves where the input needs a gradient."""
    return len(given.scalings) * (5 if given.dropouts[0] else 4)


def restored(saved: Sequence[Any], given: Trained) -> tuple[tuple[Sequence[Tensor], Sequence[Tensor]], Trained]:
    """t and the mask of each, and the projections, from what :func:`to_keep` saved."""
    count = len(given.scalings)
    ts, saved = saved[:count], saved[count:]
    masks: Sequence[Tensor] = ()
    if given.dropouts[0]:
        masks, saved = saved[:count], saved[count:]
    factors_a, weights = given.factors_a, given.weights
    if len(saved) > count:
        factors_a, kept = list(saved[count : 2 * count]), saved[2 * count :]
        weights = [stored if weight is None else weight for weight, stored in zip(kept, weights, strict=True)]
    values = (factors_a, list(saved[:count]), given.scalings, weights, given.biases, given.dropouts)
    return (ts, masks), tuple.__new__(Trained, values)


def projections_of(given: Trained, factors: Sequence[Tensor]) -> list[Projection]:
    """The projections with these tensors in the place of theirs: every A, then every B."""
    count = len(given.scalings)
    rows = zip(*given[2:], factors[:count], factors[count:], strict=True)
    return [
        Projection(weight, bias, (Adapter(a, b, scaling, dropout=dropout),))
        for scaling, weight, bias, dropout, a, b in rows
    ]


def call_of(
    given: Trained,
    kept: tuple[Sequence[Tensor], Sequence[Tensor]],
    needed: Sequence[bool],
    precision: Precision,
) -> tuple[Call, list[list[Kept]]]:
    """The same for the general functions.

    Args:
        given: the projections.
        kept: t and, with dropout, the mask of each.
        needed: whether each A, and then each B, needs a gradient.
        precision: see :class:`~patchkit_kernels.lora.projection.Precision`.
    """
    (ts, masks), count = kept, len(given.scalings)
    needs = [
        Needs(False, False, (AdapterNeeds(*pair, False, False),))
        for pair in zip(needed[:count], needed[count:], strict=True)
    ]
    call = Call(projections_of(given, (*given.factors_a, *given.factors_b)), needs, precision)
    drawn: Sequence[Tensor | None] = masks or [None] * count
    return call, [[Kept(mask, t, None)] for mask, t in zip(drawn, ts, strict=True)]


def factor_grads(found: Sequence[Grads | None]) -> list[Tensor | None]:
    """The gradient of each A, and then of each B, from what the general backward gives."""
    pairs = [(None, None) if one is None else one.adapters[0][:2] for one in found]
    return [pair[i] for i in range(2) for pair in pairs]
