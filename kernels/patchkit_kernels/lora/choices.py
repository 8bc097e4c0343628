"""Which of several ways of computing the same runs, where only a device can tell which is faster: one table.

What is written beside each is a prediction (a roofline over traced operations of a llama of 8B parameters), not a
measurement. :func:`choosing` tries another choice; :mod:`patchkit.tuning` measures them on a device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from patchkit_kernels.ops.current import Current


class Choices(NamedTuple):
    """The ways.

    Attributes:
        bf16x3: whether products of bfloat16 rows with float32 adapters run on tensor cores, in pieces
            (:mod:`patchkit_kernels.lora.bf16x3`), and not in float32 on copies of the rows. Predicted for q/k/v, o and
            the MLP of one layer, forward and backward, rank 16, in microseconds: 1319 to 1005 at 512 tokens, 8371 to
            5755 at 4096, 33285 to 22818 at 16384. Not measured.
        least_elements: the least number of elements of the rows for which this runs, and what ``one_pass_rank`` and
            ``in_activation_rank`` choose: what takes a device less time and the host more. The pieces take some ten
            launches more for a block, which a small model waits for; below a million elements, the copies that they
            save are a few microseconds. Not measured.
        low_rank_first: whether, in these products, the adapter's part of y is written first, and the product with W
            added to it while it is in registers. Predicted: 86 microseconds less at 4096 tokens (a read of every y).
            Not switched on: the adapter's part is rounded where PEFT rounds the other, so that the error is lower where
            W gives more of y, but up to 1.41 of PEFT's where the adapter does.
        one_pass_rank: the greatest rank for which dt and dB are made in one pass over dy by a kernel of ours
            (:mod:`patchkit_kernels.ops.low_rank_backward`), for one adapter on each projection and no dropout; 0 for
            none. Predicted at rank 16 and 4096 tokens: a pass over every dy less, 352 MB, and 176 MB of partial sums
            more, so 50 microseconds of 5755 at best; nothing is gained from rank 32 on. Not switched on: a kernel that
            reaches four fifths of a library's rate loses more than that.
        in_activation_rank: the greatest rank for which the rank-r products that read gate, up and hidden of a gated MLP
            are made inside the activation's kernels (:mod:`patchkit_kernels.ops.gated_low_rank`), for one adapter on
            each of gate, up and down, projected apart, and no dropout; 0 for none. Predicted, beside dt and dB in one
            pass, in microseconds of some 5550 of a layer at 4096 tokens: 230 less at rank 16, 286 more at rank 128. Not
            measured, and not switched on.
        emulated: whether all this also runs on a CPU, with the same operands and sums, for tests. It is slow. The
            number of elements does not matter then.
    """

    bf16x3: bool = True
    least_elements: int = 2**20
    low_rank_first: bool = False
    one_pass_rank: int = 0
    in_activation_rank: int = 0
    emulated: bool = False


CHOICES = Current(Choices())
"""What is chosen now."""

choosing = CHOICES.changed
"""Choose otherwise for a time: see :meth:`~patchkit_kernels.ops.current.Current.changed`."""


def chosen() -> Choices:
    """What is chosen now."""
    return CHOICES.value


def for_a_device(rows: Tensor, elements: int | None = None) -> bool:
    """Whether what takes a device less time and the host more is for these rows.

    Args:
        rows: ``[..., n]``.
        elements: if given, of other rows of this device, that are asked about.
    """
    choices = CHOICES.value
    if choices.emulated:
        return True
    if not rows.is_cuda:
        return False
    # A graph is not made for one size, and has no launches to wait for.
    return torch.compiler.is_compiling() or (elements or rows.numel()) >= choices.least_elements
