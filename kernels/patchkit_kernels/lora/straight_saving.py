"""What the straight-line functions keep of projections of one input, and the way from there to the general backward.

They keep what :mod:`.saving` says, and t in any case: t and B, and where the input needs a gradient
A and W. What backward does not read stays on the context, as there.

Under autocast, a float32 W is cast in forward, and read again in backward. PEFT keeps the bfloat16 copy of every W.
Here it is kept where the rows are few (:data:`FEW_ROWS`), and made again where they are many: of a layer of an 8B llama
it is 436 MB, beside some 400 MB that these functions keep of 4096 tokens, and making it again takes, as predicted, 319
microseconds of a layer's 5900 (1.3 GB at 4.1 TB/s). A base in bfloat16 costs neither.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from patchkit_kernels.lora.bare_operations import bare
from patchkit_kernels.lora.call import AdapterNeeds, Call, Grads, Kept, Needs
from patchkit_kernels.lora.projection import Adapter, Precision, Projection
from patchkit_kernels.lora.straight import Trained, stacked
from patchkit_kernels.ops.casts import cast_one
from patchkit_kernels.ops.dropout import pack_mask
from patchkit_kernels.ops.dropout_once import UNPACKED
from patchkit_kernels.ops.registration import dispatch_modes

_Kept = TypeVar("_Kept")

FEW_ROWS = 1024
"""Rows up to which a copy of W in the dtype of its products is kept. By how much PEFT is slower grows with the rows, in
the layer above by some 0.43 microseconds each. Up to 740 of them that is less than the cast takes, and a step would be
slower than PEFT's. Predicted, not measured on a device.
"""

FEW_STACKED = 2**13
"""Elements of the A's of one input up to which they are kept stacked, for few rows: at most 32 KB of float32.

With eight times as many, gemma-3-1b would keep 0.7 % more of 512 tokens. Where A is that large, stacking it again is a
small part of a step.
"""

_top_hooks: Callable[[bool], Any] = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda ignore: None)
"""The hooks that are told of saved tensors; None if there are none."""


def is_of_few_rows(x: Tensor) -> bool:
    """Whether copies of W are kept for this input ``[..., in]``."""
    return x.numel() <= FEW_ROWS * x.shape[-1]


def keeps_more(x: Tensor) -> bool:
    """Whether a context keeps small tensors for this input ``[..., in]`` that are no saved tensors.

    It has few rows, and there are no hooks that say what becomes of saved tensors: a checkpoint keeps nothing.
    """
    return is_of_few_rows(x) and _top_hooks(False) is None


def masks_to_keep(masks: Sequence[Tensor], count: int) -> Sequence[Tensor]:
    """Masks as they are saved: where such hooks are, in bits, and each adapter's own.

    A checkpoint compares them with those that are made again, perhaps in a dispatch mode, where they are kept so.
    """
    return masks if not masks or _top_hooks(False) is None else apart(masks, count)


def mask_to_keep(mask: Tensor | None) -> Tensor | None:
    """The same of one adapter."""
    return None if mask is None else masks_to_keep((mask,), 1)[0]


def unless_hooked(small: _Kept | None) -> _Kept | None:
    """A small tensor, or some, to be kept on a context; None where there are such hooks."""
    return small if small is None or _top_hooks(False) is None else None


def cast_to_keep(read: Tensor, x: Tensor) -> Tensor | None:
    """What adapters have read of x, if it is kept: a cast of as few elements as what dropout has left of them."""
    return read if read.dtype is not x.dtype and read.numel() <= UNPACKED else None


def stack_to_keep(stack: Tensor | None, x: Tensor) -> Tensor | None:
    """The A's of one input on top of each other, if they are kept for it: few elements, for few rows."""
    return stack if stack is not None and stack.numel() <= FEW_STACKED and keeps_more(x) else None


def with_stack(given: Trained, dtype: torch.dtype, x: Tensor) -> Trained:
    """The same with the A's stacked in this dtype of their products, to be kept, if it is so for this input.

    They are few elements (:data:`FEW_STACKED`), and no adapter reads an input of its own.
    """
    if len(given.scalings) == 1 or given.dropouts[0] or not keeps_more(x):
        return given
    if sum([factor.numel() for factor in given.factors_a]) > FEW_STACKED:
        return given
    return given._replace(stack=bare(stacked, given, dtype))


def with_casts(given: Trained, precision: Precision, x: Tensor) -> Trained:
    """The same with every W in the dtype of its products, to be kept: for an input ``[..., in]`` of few rows."""
    base = precision.base
    for weight in given.weights if given.dense else ():
        if weight.dtype is not base:  # type: ignore[union-attr]
            break
    else:
        return given
    if not is_of_few_rows(x):
        return given
    return given._replace(weights=[cast_one(weight, base) for weight in given.weights])  # type: ignore[arg-type]


def to_keep(given: Trained, ts: Sequence[Tensor], masks: Sequence[Tensor], *, x_needed: bool) -> list[Tensor | None]:
    """What to save, for :func:`restored`."""
    masks = masks_to_keep(masks, len(ts))
    if not x_needed:
        return [*ts, *masks, *given.factors_b]
    if given.dense:
        return [*ts, *masks, *given.factors_b, *given.factors_a, *given.weights]  # type: ignore[list-item]
    weights = [weight if isinstance(weight, Tensor) else None for weight in given.weights]
    return [*ts, *masks, *given.factors_b, *given.factors_a, *weights]


def count_kept(given: Trained) -> int:
    """How many tensors :func:`to_keep` saves of one projection, where its input needs a gradient."""
    return 5 if given.dropouts[0] else 4


def restored(
    saved: Sequence[Any], given: Trained, stack: Tensor | None = None
) -> tuple[tuple[Sequence[Tensor], Sequence[Tensor]], Trained]:
    """t and the mask of each, and the projections, from what :func:`to_keep` saved; and the A's as one, if kept.

    There is one mask of all if :func:`~patchkit_kernels.ops.dropout_once.drop_together` has drawn them, and nothing has
    to see operations on each.
    """
    factors_a, _, scalings, weights, biases, dropouts, are_dense, _ = given
    count = len(scalings)
    ts, start = saved[:count], count
    masks: Sequence[Tensor] = ()
    if dropouts[0]:
        # Of t, B and perhaps A and W there are as many as projections; of masks as many, or one.
        start += 1 if count > 1 and len(saved) % count == 1 else count
        masks = saved[count:start]
        if len(masks) < count and dispatch_modes():
            masks = apart(masks, count)
    factors_b, rest = saved[start : start + count], saved[start + count :]
    if rest:
        factors_a = rest[:count]
        weights = rest[count:] if are_dense else _with_stored(rest[count:], weights)
    fields = factors_a, factors_b, scalings, weights, biases, dropouts, are_dense, stack
    return (ts, masks), tuple.__new__(Trained, fields)


def _with_stored(kept: Sequence[Tensor | None], weights: Sequence[Any]) -> list[Any]:
    return [stored if weight is None else weight for weight, stored in zip(kept, weights, strict=True)]


def apart(masks: Sequence[Tensor], count: int) -> Sequence[Tensor]:
    """The packed mask of each adapter, also if they are one after the other in one tensor, or are kept unpacked."""
    if not masks or masks[0].dtype is torch.uint8:
        return masks if len(masks) in (0, count) else masks[0].chunk(count)
    return [pack_mask(one != 0) for one in (masks if len(masks) == count else masks[0].unbind())]


def projections_of(given: Trained, factors: Sequence[Tensor]) -> list[Projection]:
    """The projections with these tensors in the place of theirs: every A, then every B."""
    count = len(given.scalings)
    rows = zip(*given[2:6], factors[:count], factors[count:], strict=True)
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
    drawn: Sequence[Tensor | None] = apart(masks, count) or [None] * count
    return call, [[Kept(mask, t, None)] for mask, t in zip(drawn, ts, strict=True)]


def factor_grads(found: Sequence[Grads | None]) -> list[Tensor | None]:
    """The gradient of each A, and then of each B, from what the general backward gives."""
    pairs = [(None, None) if one is None else one.adapters[0][:2] for one in found]
    return [pair[i] for i in range(2) for pair in pairs]
