"""One projection of the structure that people train, without the lists of :mod:`.straight`.

An output projection, and every layer that no block holds, is alone. Its products are those of :mod:`.straight` and
:mod:`.straight_backward`, in the same order, and so are the bits. What goes through lists there takes a fifth of the
function's time where the tensors are small.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from patchkit_kernels.lora.bare_operations import applier, bare
from patchkit_kernels.lora.bf16x3 import bf16x3
from patchkit_kernels.lora.choices import chosen, for_a_device
from patchkit_kernels.lora.differentiable import wants_ordinary_operations, without_autocast
from patchkit_kernels.lora.projection import Precision, Projection, QuantizedWeight
from patchkit_kernels.lora.shapes import as_rows, shaped, shaped_as
from patchkit_kernels.lora.straight import Trained, low_rank, reads_in_epilogue, reduced_dropped
from patchkit_kernels.lora.straight_backward import add_dropped_, dropped_rows, to_drop
from patchkit_kernels.lora.straight_linear import general_gradients, gradients
from patchkit_kernels.lora.straight_saving import cast_to_keep, is_of_few_rows, keeps_more, mask_to_keep, unless_hooked
from patchkit_kernels.lora.wide_sums import through_factors_a
from patchkit_kernels.ops.casts import cast_one
from patchkit_kernels.ops.dropout_once import factors_of, scale_left
from patchkit_kernels.ops.registration import dispatch_modes


class TrainedOne(NamedTuple):
    """A projection; see :class:`~patchkit_kernels.lora.straight.Trained`.

    Attributes:
        cast_a: A in the dtype of its products, where backward is not to cast it again: see :func:`with_casts`.
        cast_b: B likewise.
    """

    lora_a: Tensor
    lora_b: Tensor
    weight: Tensor
    bias: Tensor | None
    scaling: float
    dropout: float
    cast_a: Tensor | None = None
    cast_b: Tensor | None = None


class Flow(NamedTuple):
    """What flows back through a projection, and is used again for the gradients of A and B.

    Attributes:
        rows: dy, ``[tokens, out]``, in the dtype of the adapter's products; so is B.
        factor_b: B, ``[out, rank]``.
        d_t: dt, ``[tokens, rank]``; where there are factors, multiplied with what is left of dropout's scale.
        factors: with dropout, what each element of x is multiplied with, where kernels do not multiply with bits.
    """

    rows: Tensor
    factor_b: Tensor
    d_t: Tensor
    factors: Tensor | None


def unwatched(x: Tensor, precision: Precision, *weights: Tensor | QuantizedWeight) -> bool:
    """Whether nothing looks at operations, and the arithmetic of rows is torch's own: else they are in lists.

    Args:
        x: ``[..., n]``.
        precision: of the products.
        weights: each ``[out, in]``, whose largest size is the width of the widest rows.
    """
    if torch.compiler.is_compiling() or dispatch_modes():
        return False
    choices = chosen()
    others = choices.one_pass_rank or choices.in_activation_rank
    if (precision.lora is precision.output and not others) or not (x.is_cuda or choices.emulated):
        return True
    elements = x.numel() // max(1, x.shape[-1]) * max([max(weight.shape) for weight in weights])
    return not (for_a_device(x, elements) if others else bf16x3(x, precision, elements))


def trained_one(projection: Projection) -> TrainedOne | None:
    """The same of a projection, if it is of this structure and its weight a tensor; else None."""
    weight, bias, adapters = projection
    if len(adapters) != 1 or not isinstance(weight, Tensor) or weight.requires_grad:
        return None
    lora_a, lora_b, scaling, lora_bias, magnitude, dropout = adapters[0]
    if lora_bias is not None or magnitude is not None or dropout == 1.0 or (bias is not None and bias.requires_grad):
        return None
    if not (lora_a.requires_grad and lora_b.requires_grad and lora_a.dtype is lora_b.dtype):
        return None
    return tuple.__new__(TrainedOne, (lora_a, lora_b, weight, bias, scaling, dropout, None, None))


def with_casts(given: TrainedOne, precision: Precision, x: Tensor, *, alone: bool = True) -> TrainedOne:
    """The same with A and B in the dtype of their products, for an input ``[..., in]`` of few rows.

    Such copies are small; autocast too keeps one of each as long as its region lasts. They are no saved tensors, so
    there are none where hooks say what becomes of these: a checkpoint keeps nothing. Without dropout, an A that is not
    ``alone`` is stacked with others. Of W see :func:`expanded`.
    """
    lora_a, lora_b, weight, bias, scaling, dropout, _, _ = given
    lora = precision.lora
    if lora_b.dtype is lora or not keeps_more(x):
        return given
    cast_a, cast_b = cast_one(lora_a, lora) if alone or dropout else None, cast_one(lora_b, lora)
    return tuple.__new__(TrainedOne, (lora_a, lora_b, weight, bias, scaling, dropout, cast_a, cast_b))


def a_of(given: TrainedOne, lora: torch.dtype) -> Tensor:
    """A, ``[rank, in]``, in this dtype of its products."""
    return cast_one(given.lora_a, lora) if given.cast_a is None else given.cast_a


def b_of(given: TrainedOne, lora: torch.dtype) -> Tensor:
    """B, ``[out, rank]``, in this dtype of its products."""
    return cast_one(given.lora_b, lora) if given.cast_b is None else given.cast_b


KeptOfOne = tuple[Tensor, "Tensor | None", "Tensor | None"]
"""t, with dropout the mask, and perhaps what the adapter has read."""


class TrainedProjection(torch.autograd.Function):
    """A projection, for which :func:`trained_one` has found what is given."""

    @staticmethod
    def forward(ctx: Any, call: tuple[TrainedOne, Precision], x: Tensor, lora_a: Tensor, lora_b: Tensor) -> Tensor:
        """``[..., out]``; keeps x, t and B, with dropout the mask, and where x needs a gradient A and W."""
        ctx.set_materialize_grads(False)
        given, precision = ctx.call = call
        x_needed = ctx.needs_input_grad[1]
        if x_needed:
            given = with_casts(given, precision, x)
        y, t, mask, weight, read = bare(projected, x, given, precision, x_needed)
        ctx.beside = given, unless_hooked(read)
        rest = (lora_a, weight) if x_needed else ()
        ctx.save_for_backward(x, t, mask_to_keep(mask), lora_b, *rest)
        return shaped(y, x)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
        """The gradients of x, A and B."""
        x, t, mask, lora_b, *rest = ctx.saved_tensors
        given, precision = ctx.call
        (given, read), ctx.beside = ctx.beside or (given, None), None  # freed with the saved tensors
        lora_a, _, weight, *others = given
        if rest:
            lora_a, weight = rest
        given = tuple.__new__(TrainedOne, (lora_a, lora_b, weight, *others))
        _, x_needed, *needed = ctx.needs_input_grad
        if grad is None or False in needed or dispatch_modes() or wants_ordinary_operations((grad,)):
            return (None, *_in_lists(grad, x, (t, mask), given, precision, (x_needed, *needed)))
        kept = t, mask, read
        found: tuple[Tensor | None, ...] = bare(_gradients, grad, x, kept, given, precision, x_needed)
        return (None, *found)


def projected(
    x: Tensor, given: TrainedOne, precision: Precision, keeps_w: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor | None]:
    """``y`` ``[tokens, out]`` of x ``[..., in]``, t ``[tokens, rank]``, with dropout the mask, and W: :func:`expanded`.

    And what the adapter has read, perhaps: see :func:`~patchkit_kernels.lora.straight.reduced_dropped` and
    :func:`~patchkit_kernels.lora.straight_saving.cast_to_keep`.
    """
    flat, factor, mask = rows_of(x, precision), a_of(given, precision.lora), None
    if given.dropout:
        (t,), (mask,), each = reduced_dropped(x, flat, (factor,), (given.dropout,), precision)
        read = None if each is None else each[0]
    else:
        lora_x = cast_one(flat, precision.lora)
        t, read = F.linear(lora_x, factor), cast_to_keep(lora_x, x)
    y, weight = expanded(cast_one(flat, precision.base), t, given, precision, keeps_w)
    return y, t, mask, weight, read


def rows_of(x: Tensor, precision: Precision) -> Tensor:
    """x as rows ``[tokens, in]``; cast once where products with W and with adapters are of one dtype."""
    return cast_one(as_rows(x), precision.base) if precision.lora is precision.base else as_rows(x)


def expanded(
    base_x: Tensor, t: Tensor, given: TrainedOne, precision: Precision, keeps_w: bool
) -> tuple[Tensor, Tensor]:
    """``y`` ``[tokens, out]`` from x ``[tokens, in]`` in the dtype of W's products, and t ``[tokens, rank]``.

    And W: if it is kept for backward and the rows are few, the copy that was made, see :mod:`.straight_saving`. It is
    made just before its product: the casts of a whole block would push one another out of the processor's caches.
    """
    _, _, kept, bias, scaling, _, _, _ = given
    base, lora, output, _ = precision
    up, weight = b_of(given, lora).t(), kept
    if weight.dtype is not base:
        weight = cast_one(weight, base)
        kept = weight if keeps_w and is_of_few_rows(base_x) else kept
    if bias is not None:
        bias = cast_one(bias, base)
    if lora is not output:
        return cast_one(F.linear(base_x, weight, bias), output).add_(torch.mm(t, up), alpha=scaling), kept
    if base is output and reads_in_epilogue(base_x):
        return low_rank(t, up, scaling, bias).addmm_(base_x, weight.t()), kept
    return cast_one(F.linear(base_x, weight, bias), output).addmm_(t, up, alpha=scaling), kept


def _gradients(
    grad: Tensor, x: Tensor, kept: KeptOfOne, given: TrainedOne, precision: Precision, x_needed: bool
) -> tuple[Tensor | None, Tensor, Tensor]:
    t, mask, _ = kept
    d_x, flow = flown_back(as_rows(grad), t, mask, given, precision, x.dtype if x_needed else None)
    found = factor_gradients(flow, as_rows(x), kept, given, precision)
    return None if d_x is None else shaped_as(d_x, x), *found


def flown_back(
    rows: Tensor, t: Tensor, mask: Tensor | None, given: TrainedOne, precision: Precision, dtype: torch.dtype | None
) -> tuple[Tensor | None, Flow]:
    """dx ``[tokens, in]`` in this dtype, None if it is not needed, from dy ``[tokens, out]``; and what flows back."""
    _, _, weight, _, scaling, dropout, _, _ = given
    base, lora, _, drawn = precision
    lora_rows, up, factors, total = cast_one(rows, lora), b_of(given, lora), None, None
    if mask is not None:
        factors = factors_of(mask, dropout, rows.shape[0], given.lora_a.shape[1], lora, drawn)
        if factors is not None:
            scaling = scaling * scale_left(dropout, lora, drawn)
    d_t = torch.addmm(t, lora_rows, up, beta=0, alpha=scaling)  # beta=0: t is not read
    if dtype is not None:
        factor, base_rows, weight = a_of(given, lora), cast_one(rows, base), cast_one(weight, base)
        if mask is None:
            total = through_factors_a(d_t, factor, dtype)
            if base is dtype:
                total.addmm_(base_rows, weight)
            else:
                total.add_(torch.mm(base_rows, weight))
        else:
            total = cast_one(torch.mm(base_rows, weight), dtype)
            add_dropped_(total, torch.mm(d_t, factor), mask, factors, dropout)
    return total, tuple.__new__(Flow, (lora_rows, up, d_t, factors))


def through_b(row: Tensor, t: Tensor, given: TrainedOne, lora: torch.dtype, d_t: Tensor) -> Tensor:
    """dB, of dy ``[tokens, out]``; dt ``[tokens, rank]`` is written into ``d_t``. Without dropout.

    Both at once, so that a copy of dy in the dtype of these products lives no longer than for them.
    """
    lora_row, factor_b, scaling = cast_one(row, lora), b_of(given, lora), given.scaling
    torch.addmm(t, lora_row, factor_b, beta=0, alpha=scaling, out=d_t)  # beta=0: t is not read
    d_b = torch.addmm(factor_b, lora_row.t(), t, beta=0, alpha=scaling)  # beta=0: B is not read
    return cast_one(d_b, given.lora_b.dtype)


def factor_gradients(
    flow: Flow, flat: Tensor, kept: KeptOfOne, given: TrainedOne, precision: Precision
) -> tuple[Tensor, Tensor]:
    """dA and dB, of x ``[tokens, in]``."""
    rows, factor_b, d_t, factors = flow
    t, mask, read = kept
    lora, stored = precision.lora, given.lora_b.dtype
    if read is not None:
        flat = read
    elif mask is not None:
        flat = dropped_rows(to_drop(flat, mask, factors, precision), mask, factors, given.dropout, lora)
    d_a = torch.mm(d_t.t(), cast_one(flat, lora))
    d_b = torch.addmm(factor_b, rows.t(), t, beta=0, alpha=given.scaling)  # beta=0: B is not read
    return (d_a, d_b) if stored is lora else (cast_one(d_a, stored), cast_one(d_b, stored))


def in_lists(each: Sequence[TrainedOne]) -> Trained:
    """The same for the functions of lists."""
    return Trained(
        [one.lora_a for one in each],
        [one.lora_b for one in each],
        [one.scaling for one in each],
        [one.weight for one in each],
        [one.bias for one in each],
        [one.dropout for one in each],
        dense=True,
    )


def _in_lists(
    grad: Tensor | None,
    x: Tensor,
    kept: tuple[Tensor, Tensor | None],
    given: TrainedOne,
    precision: Precision,
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Where not every gradient is given and wanted, they are to be differentiated, or something looks at operations."""
    t, mask = kept
    several, made = in_lists((given,)), ((t,), () if mask is None else (mask,))
    if grad is None or False in needed[1:] or wants_ordinary_operations((grad,)):
        return general_gradients((grad,), x, made, several, needed, precision)
    return gradients((grad,), x, made, several, precision, needed[0])


_apply = applier(TrainedProjection)


def apply_trained_one(given: TrainedOne, precision: Precision, x: Tensor) -> Tensor:
    """:class:`TrainedProjection` of x ``[..., in]``: ``[..., out]``."""
    if not torch.is_grad_enabled():  # nothing is kept
        return shaped(bare(projected, x, given, precision, False)[0], x)
    y: Tensor = _apply((given, precision), x, given.lora_a, given.lora_b)
    return y
