"""Cross-entropy of rows of logits, and its gradient written over them: what one chunk of a fused loss needs.

For a row z of logits, the label t and the float32 numbers a (a scale) and c (a soft cap, which a model may lack)::

    y      = a z, or c tanh(a z / c)                       Gemma 2, https://arxiv.org/abs/2408.00118, section 2
    loss   = log sum exp y - y_t                           0 for a label that is ignored
    dy     = f (exp(y - log sum exp y) - onehot(t))        0 for a label that is ignored
    dz     = a dy, or a (1 - (y / c)^2) dy

with f, the gradient of the loss over the number that the sum of losses is divided by. The maximum of a row is found
beside the sum of exponentials in one pass (Milakov and Gimelshein 2018, https://arxiv.org/abs/1805.02867), and a second
pass writes dz over z, as in published fused losses (Liger-Kernel, https://arxiv.org/abs/2410.10989, section 3.2).

Everything is computed in float32 and dz is rounded once. Upstream casts logits to float32 before the softmax, even
those in float64: a loss in float64 has to be asked for, as ``exact``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from patchkit_kernels.ops.registration import register_op
from patchkit_kernels.ops.triton_support import TRITON_DTYPES, device_guard, jit, tl

BLOCK = 4096
"""Columns that a program of 8 warps holds at once: 16 for each thread."""

WARPS = 8


@jit
def cross_entropy_kernel(
    logits_ptr: tl.tensor,
    target_ptr: tl.tensor,
    factor_ptr: tl.tensor,
    losses_ptr: tl.tensor,
    columns: tl.tensor,
    row_stride: tl.tensor,
    ignore_index: tl.tensor,
    scale: tl.tensor,
    softcap: tl.tensor,
    CAPPED: tl.constexpr,
    GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """The loss of one row; with ``GRADIENT`` dz over z, in its dtype."""
    # 64-bit before the product with the stride, which can pass 2**31 elements.
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * row_stride
    target = tl.load(target_ptr + row)
    if target == ignore_index:
        tl.store(losses_ptr + row, 0.0)
        if GRADIENT:
            for start in range(0, columns, BLOCK):
                column = start + tl.arange(0, BLOCK).to(tl.int64)
                zeros = tl.zeros([BLOCK], tl.float32).to(logits_ptr.dtype.element_ty)
                tl.store(row_ptr + column, zeros, mask=column < columns)
        return
    # A label out of range reads nothing: whoever calls has looked, or has an assertion on its way.
    is_label = (target >= 0) & (target < columns)
    chosen = tl.load(row_ptr + target, mask=is_label, other=0.0).to(tl.float32) * scale
    if CAPPED:
        chosen = softcap * _tanh(chosen / softcap)
    highest = -float("inf")
    total = 0.0
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK).to(tl.int64)
        y = tl.load(row_ptr + column, mask=column < columns, other=-float("inf")).to(tl.float32) * scale
        if CAPPED:
            y = tl.where(column < columns, softcap * _tanh(y / softcap), -float("inf"))
        else:
            y = tl.where(column < columns, y, -float("inf"))
        above = tl.maximum(highest, tl.max(y, 0))
        # Of -inf alone nothing is subtracted: exp(-inf - -inf) is no number, where the sum so far is 0.
        base = tl.where(above == -float("inf"), 0.0, above)
        total = total * tl.exp(highest - base) + tl.sum(tl.exp(y - base), 0)
        highest = above
    tl.store(losses_ptr + row, (highest - chosen) + tl.log(total))
    if GRADIENT:
        factor = tl.load(factor_ptr)
        for start in range(0, columns, BLOCK):
            column = start + tl.arange(0, BLOCK).to(tl.int64)
            z = tl.load(row_ptr + column, mask=column < columns, other=0.0).to(tl.float32) * scale
            if CAPPED:
                tanh = _tanh(z / softcap)
                gradient = tl.exp(softcap * tanh - highest) / total
            else:
                gradient = tl.exp(z - highest) / total
            gradient = tl.where(column == target, gradient - 1.0, gradient) * (factor * scale)
            if CAPPED:
                gradient *= 1.0 - tanh * tanh
            tl.store(row_ptr + column, gradient.to(logits_ptr.dtype.element_ty), mask=column < columns)


@jit
def _tanh(x: tl.tensor) -> tl.tensor:
    """Without Triton's library functions, which each backend keeps elsewhere. ``2 sigmoid(2x) - 1`` rounds near 0."""
    small = x * (1.0 - x * x * (1.0 / 3.0 - x * x * (2.0 / 15.0 - x * x * (17.0 / 315.0))))
    return tl.where(tl.abs(x) < 0.125, small, 2.0 * tl.sigmoid(2.0 * x) - 1.0)


def launch(
    logits: Tensor, target: Tensor, factor: Tensor, ignore_index: int, scale: float, softcap: float, gradient: bool
) -> Tensor:
    """Run the kernel on rows of adjacent elements of a dtype in TRITON_DTYPES; returns the losses in float32."""
    rows, columns = logits.shape
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    if rows:
        with device_guard(logits):
            cross_entropy_kernel[(rows,)](
                logits,
                target,
                factor,
                losses,
                columns,
                logits.stride(0),
                ignore_index,
                scale,
                softcap,
                CAPPED=softcap > 0,
                GRADIENT=gradient,
                BLOCK=BLOCK,
                num_warps=WARPS,
            )
    return losses


def cross_entropy_reference(
    logits: Tensor,
    target: Tensor,
    factor: Tensor,
    ignore_index: int,
    scale: float,
    softcap: float,
    gradient: bool,
    exact: bool,
) -> Tensor:
    """:func:`cross_entropy_` in torch, with two more tensors of the size of the logits at most."""
    y = logits.to(torch.promote_types(logits.dtype, torch.float32))
    y = y * scale if scale != 1.0 else y
    slope = None
    if softcap > 0:
        tanh = torch.tanh(y / softcap)
        y, slope = tanh * softcap, 1.0 - tanh * tanh if gradient else None
    y = y if exact else y.float()
    counts = target != ignore_index
    labels = torch.where(counts, target, 0).unsqueeze(1)
    # Upstream's own operation: over a large vocabulary its sum rounds by far more than the rest of a loss does.
    logarithms = torch.log_softmax(y, 1)
    losses = logarithms.gather(1, labels).neg_().squeeze(1)
    if gradient:
        d_y = logarithms.exp_()
        d_y.scatter_add_(1, labels, torch.full_like(d_y[:, :1], -1.0))
        d_y.mul_(factor.to(d_y.dtype) * scale)
        d_y = d_y if slope is None else slope.mul_(d_y)
        logits.copy_(d_y.masked_fill_(~counts.unsqueeze(1), 0.0))
    return losses.masked_fill(~counts, 0.0)


def _check(logits: Tensor, target: Tensor) -> None:
    fits = logits.ndim == 2 and target.shape == logits.shape[:1] and target.dtype == torch.int64
    if not fits or logits.shape[1] == 0 or (logits.stride(1) != 1 and logits.shape[1] != 1):
        raise ValueError(
            "patchkit::cross_entropy_ takes logits [n, vocabulary], rows of adjacent elements, and int64 labels [n], "
            f"but got {list(logits.shape)} with strides {logits.stride()} and {target.dtype} {list(target.shape)}"
        )


def _losses_like(logits: Tensor, exact: bool) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32) if exact else torch.float32


def _reference(
    logits: Tensor,
    target: Tensor,
    factor: Tensor,
    ignore_index: int,
    scale: float,
    softcap: float,
    gradient: bool,
    exact: bool,
) -> Tensor:
    _check(logits, target)
    if not len(target):
        return logits.new_empty(0, dtype=_losses_like(logits, exact))
    return cross_entropy_reference(logits, target, factor, ignore_index, scale, softcap, gradient, exact)


def _kernel(
    logits: Tensor,
    target: Tensor,
    factor: Tensor,
    ignore_index: int,
    scale: float,
    softcap: float,
    gradient: bool,
    exact: bool,
) -> Tensor:
    if logits.dtype not in TRITON_DTYPES:
        return _reference(logits, target, factor, ignore_index, scale, softcap, gradient, exact)
    _check(logits, target)
    return launch(logits, target.contiguous(), factor, ignore_index, scale, softcap, gradient)


def _fake(
    logits: Tensor,
    target: Tensor,
    factor: Tensor,
    ignore_index: int,
    scale: float,
    softcap: float,
    gradient: bool,
    exact: bool,
) -> Tensor:
    _check(logits, target)
    return logits.new_empty(logits.shape[0], dtype=_losses_like(logits, exact))


_op = register_op(
    "cross_entropy_(Tensor(a!) logits, Tensor target, Tensor factor, int ignore_index, float scale, float softcap, "
    "bool gradient, bool exact) -> Tensor",
    _reference,
    _fake,
    _kernel,
)


def cross_entropy_(
    logits: Tensor,
    target: Tensor,
    factor: Tensor,
    *,
    ignore_index: int = -100,
    scale: float = 1.0,
    softcap: float = 0.0,
    gradient: bool = True,
    exact: bool = False,
) -> Tensor:
    """The loss of every row, and its gradient written over the logits: the op ``patchkit::cross_entropy_``.

    It has no derivative: the logits are a buffer of a forward or backward that autograd does not look into.

    Args:
        logits: z, ``[n, vocabulary]``, rows of adjacent elements.
        target: labels, int64 ``[n]``, each ``ignore_index`` or in ``[0, vocabulary)``.
        factor: f, a tensor of one element on the same device, float32 or float64.
        ignore_index: the label of rows that do not count.
        scale: a.
        softcap: c; 0 for none.
        gradient: whether dz is written; else the logits stay as they are.
        exact: whether float64 logits are computed with in float64, and not in float32 as upstream does.

    Returns:
        ``[n]`` in float32; in float64 for such logits if ``exact``.

    Raises:
        ValueError: the shapes do not fit, or the labels are no int64.
    """
    losses: Tensor = _op(logits, target, factor, ignore_index, scale, softcap, gradient, exact)
    return losses
