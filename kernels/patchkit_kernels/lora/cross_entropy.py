"""The cross-entropy of a projection's outputs, the head of a language model, without ever holding all of them.

Logits of ``[tokens, vocabulary]`` are by far the largest tensor of a training step, and upstream keeps them more than
once: as the head gives them, cast to float32, and as a softmax. Here tokens are taken a chunk at a time, and of a chunk
the logits, the losses and the gradient, which is written over the logits, exist one after the other. The gradient of a
scalar is known but for one factor as soon as the loss is, so dx and the gradients of the head's tensors are made in
forward, and backward multiplies them: Liger-Kernel, https://arxiv.org/abs/2410.10989, section 3.2, and Wijmans et al.
2024, https://arxiv.org/abs/2411.09009, section 4. So the products with W are two, as upstream.

What of an adapter is of the rank's width is made for all tokens at once: t, with the masks of dropout, and dt, so that
masks are drawn as PEFT draws them, and dA is one product. Gradients that are sums over tokens are summed over chunks in
float32 at least, and rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from patchkit_kernels.lora.arguments import Structure, flatten, flatten_grads, needs_of, structure_of, unflatten
from patchkit_kernels.lora.call import Call, Kept
from patchkit_kernels.lora.chunk_sums import ChunkSums
from patchkit_kernels.lora.differentiable import differentiable_backward, wants_ordinary_operations, without_autocast
from patchkit_kernels.lora.dora_factor import with_factors
from patchkit_kernels.lora.forward import draw_masks, project_again, project_rows
from patchkit_kernels.lora.low_rank import reduce
from patchkit_kernels.lora.projection import Precision, Projection
from patchkit_kernels.lora.saving import keep, kept, read_by_backward
from patchkit_kernels.lora.shapes import as_rows, with_leading
from patchkit_kernels.ops.cross_entropy import cross_entropy_

LEAST_TOKENS = 128
"""Tokens of a chunk at least: W is read twice for each chunk, and a product of fewer rows is a wait for it."""


_ONCE = (
    "with memory= the loss does not keep what its second derivative (create_graph=True) and batched gradients are made "
    "of; apply patchkit without memory=, or without loss=True, for these"
)


class Form(NamedTuple):
    """What is made of logits z on the way to the loss, see :mod:`patchkit_kernels.ops.cross_entropy`.

    Attributes:
        ignore_index: the label of tokens that do not count.
        scale: a.
        softcap: c; 0 for none.
        exact: whether float64 logits are not cast to float32.
    """

    ignore_index: int = -100
    scale: float = 1.0
    softcap: float = 0.0
    exact: bool = False


class LoraCrossEntropy(torch.autograd.Function):
    """See this file's docstring."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        target: Tensor,
        divisor: Tensor,
        structure: Structure,
        constants: tuple[tuple[torch.dtype, ...], tuple[Any, ...], bool],
        *tensors: Any,
    ) -> Tensor:
        """The loss, a scalar; saves x, what backward multiplies, and what a second derivative is made of."""
        ctx.structure, ctx.constants = structure, constants[:2]
        precision, form = Precision(*constants[0]), Form(*constants[1])
        x_needed, needed = _of_arguments(ctx.needs_input_grad)
        call = Call(unflatten(tensors, structure), needs_of(needed, structure), precision)
        # In half precision a gradient that is not scaled yet would lose what the scale of the loss is there to save.
        ctx.late = torch.float16 in (precision.base, precision.output)
        adapters = [adapter for projection in call.projections for adapter in projection.adapters]
        masks = draw_masks(x, adapters, precision)
        factor = divisor.reciprocal()
        wanted = not ctx.late and (x_needed or any(needed))
        losses, d_x, found = sweep(x, target, factor, call, form, masks, x_needed=x_needed, gradient=wanted)
        read = keep(ctx, tensors, read_by_backward(call, x_needed=x_needed))
        ctx.save_for_backward(x if constants[2] or ctx.late else None, target, divisor, *masks, d_x, *found, *read)
        return losses.sum() / divisor

    @staticmethod
    @without_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """The gradients of x and of every tensor that needs one."""
        x, target, divisor, *saved = ctx.saved_tensors
        structure, precision, form = ctx.structure, Precision(*ctx.constants[0]), Form(*ctx.constants[1])
        x_needed, needed = _of_arguments(ctx.needs_input_grad)
        count = sum(len(options) for _, options in structure)
        masks, d_x, saved = saved[:count], saved[count], saved[count + 1 :]
        found, tensors = saved[: len(needed)], kept(ctx, saved[len(needed) :])
        if wants_ordinary_operations([grad]):
            if x is None:
                raise RuntimeError(_ONCE)

            def again(x: Tensor, *tensors: Tensor | None) -> list[Tensor]:
                made = [[Kept(mask) for mask in masks]]
                (logits,) = project_again(x, unflatten(tensors, structure), precision, made)
                return [ordinary_loss(logits, target, divisor, form)]

            d_x, *found = differentiable_backward(again, (x, *tensors), (x_needed, *needed), [grad])
            return _to_arguments(d_x, found)
        if ctx.late:
            call = Call(unflatten(tensors, structure), needs_of(needed, structure), precision)
            factor = (grad / divisor).to(divisor.dtype)
            _, d_x, found = sweep(x, target, factor, call, form, masks, x_needed=x_needed, gradient=True)
            return _to_arguments(d_x, found)
        # The gradient of the loss has no dimension, and so does not change the dtype of what it multiplies.
        return _to_arguments(_times(d_x, grad), [_times(one, grad) for one in found])


def _times(made: Tensor | None, grad: Tensor) -> Tensor | None:
    return None if made is None else made * grad


def _of_arguments(needed: Sequence[bool]) -> tuple[bool, Sequence[bool]]:
    """Of what is said of each argument of the function, what is said of x and of the projection's tensors."""
    x, _target, _divisor, _structure, _constants, *tensors = needed
    return x, tensors


def _to_arguments(d_x: Tensor | None, d_tensors: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """A gradient for each argument: x, target, divisor, structure, constants, and the projection's tensors."""
    return d_x, None, None, None, None, *d_tensors


def lora_cross_entropy(
    x: Tensor,
    target: Tensor,
    projection: Projection,
    precision: Precision,
    *,
    divisor: Tensor | float | None = None,
    form: Form = Form(),  # noqa: B008 - a constant
    twice: bool = True,
) -> Tensor:
    """The cross-entropy of ``[..., in]`` after a projection to the vocabulary: the sum over tokens by a divisor.

    At no time is there more of the logits than a chunk of :func:`chunk_of` tokens. Between forward and backward x is
    kept, and gradients: of x, and of those tensors of the projection that need one.

    Args:
        x: ``[..., in]``, any leading shape with at least one token.
        target: labels int64, as many as tokens, each ``form.ignore_index`` or in ``[0, out)``. One out of range is an
            error on a CPU only if the caller looks for it.
        projection: with a dense weight; with or without adapters, frozen and trainable tensors in any mixture. DoRA
            with dropout is not computed here.
        precision: see :class:`~patchkit_kernels.lora.projection.Precision`.
        divisor: what the sum of losses is divided by; by default the number of labels that count.
        form: see :class:`Form`.
        twice: whether x is kept for second derivatives.

    Returns:
        A scalar in float32; float64 for float64 outputs if ``form.exact``. Differentiable any number of times; a second
        derivative holds all logits. Without ``twice`` a second derivative is a ``RuntimeError``.
    """
    (projection,) = with_factors((projection,), precision)
    target = target.reshape(-1)
    wide = torch.promote_types(precision.output, torch.float32) if form.exact else torch.float32
    if divisor is None:
        divided = (target != form.ignore_index).sum().to(wide)
    else:
        divided = torch.as_tensor(divisor, dtype=wide, device=x.device)
    loss: Tensor = LoraCrossEntropy.apply(  # type: ignore[no-untyped-call]
        x, target, divided, structure_of((projection,)), (tuple(precision), tuple(form), twice), *flatten((projection,))
    )
    return loss


def chunk_of(tokens: int, features: int, vocabulary: int) -> int:
    """How many tokens have their logits at the same time: those whose logits are no more than all hidden states.

    That is ``tokens * features / vocabulary``, as Liger-Kernel has it (``fused_linear_cross_entropy.py``), up to a
    power of two, and not below :data:`LEAST_TOKENS`.
    """
    share = -(-tokens * features // max(1, vocabulary))
    return max(LEAST_TOKENS, 1 << max(0, share - 1).bit_length())


def sweep(
    x: Tensor,
    target: Tensor,
    factor: Tensor,
    call: Call,
    form: Form,
    masks: Sequence[Tensor | None],
    *,
    x_needed: bool,
    gradient: bool,
) -> tuple[Tensor, Tensor | None, list[Tensor | None]]:
    """Go through the tokens once, a chunk at a time.

    Args:
        x: ``[..., in]``.
        target: ``[tokens]``.
        factor: what the gradient of the sum of losses is multiplied by, a tensor of one element.
        call: one projection, and which of its tensors need a gradient.
        form: see :class:`Form`.
        masks: of dropout, packed, for each adapter; None where nothing is dropped.
        x_needed: whether x needs a gradient.
        gradient: whether gradients are made.

    Returns:
        The loss of every token, dx or None, and the gradients of the projection's tensors in the order of ``flatten``.
    """
    (projection,), (needs,), precision = call
    flat = as_rows(x)
    reduced = reduce(flat, projection.adapters, masks, precision)
    # Cast once, and not for every chunk.
    cast = _cast(projection, precision)
    sums = ChunkSums(cast, needs, precision, flat, x_needed=x_needed) if gradient else None
    losses = []
    for part in _parts(flat.shape[0], chunk_of(flat.shape[0], flat.shape[1], projection.weight.shape[0])):
        made = [Kept(None, t[part]) for t in reduced]
        logits, made = project_rows(flat[part], cast, made, precision)
        losses.append(cross_entropy_(logits, target[part], factor, gradient=gradient, **form._asdict()))
        if sums is not None:
            sums.add(part, logits, made)
        del logits  # before those of the next chunk are made
    if sums is None:
        return torch.cat(losses), None, [None] * len(flatten((projection,)))
    d_x, grads = sums.result(projection, masks)
    found = flatten_grads([grads], structure_of((projection,)))
    return torch.cat(losses), None if d_x is None else with_leading(d_x, x), found


def _parts(tokens: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, tokens)) for start in range(0, tokens, size)]


def _cast(projection: Projection, precision: Precision) -> Projection:
    """The projection with W and every B in the dtypes of their products."""
    weight = projection.weight
    assert isinstance(weight, Tensor)  # narrows the type: a quantised weight is not computed here
    adapters = [one._replace(lora_b=one.lora_b.to(precision.lora)) for one in projection.adapters]
    return projection._replace(weight=weight.to(precision.base), adapters=tuple(adapters))


def ordinary_loss(logits: Tensor, target: Tensor, divisor: Tensor, form: Form) -> Tensor:
    """The same of whole logits ``[..., vocabulary]``, in operations that autograd differentiates."""
    y = logits.reshape(-1, logits.shape[-1]).to(torch.promote_types(logits.dtype, torch.float32)) * form.scale
    if form.softcap > 0:
        y = torch.tanh(y / form.softcap) * form.softcap
    y = y if form.exact else y.float()
    return F.cross_entropy(y, target, ignore_index=form.ignore_index, reduction="sum") / divisor
