"""Which of several ways of computing the same runs, where only a device can tell which is faster: one table.

What is written beside each is a prediction (a roofline over traced operations of a llama of 8B parameters), not a
measurement. :func:`choosing` tries another choice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple


class Choices(NamedTuple):
    """The ways.

    Attributes:
        bf16x3: whether products of bfloat16 rows with float32 adapters run on tensor cores, in pieces
            (:mod:`patchkit_kernels.lora.bf16x3`), and not in float32 on copies of the rows. Predicted for q/k/v, o and
            the MLP of one layer, forward and backward, rank 16, in microseconds: 1319 to 1005 at 512 tokens, 8371 to
            5755 at 4096, 33285 to 22818 at 16384. Not measured.
        bf16x3_elements: the least number of elements of the rows for which it does. It takes some ten launches more for
            a block, which a small model waits for; below a million elements, the copies that it saves are a few
            microseconds. Not measured.
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
        emulated: whether all this also runs on a CPU, with the same operands and sums, for tests. It is slow.
    """

    bf16x3: bool = True
    bf16x3_elements: int = 2**20
    low_rank_first: bool = False
    one_pass_rank: int = 0
    in_activation_rank: int = 0
    emulated: bool = False


_chosen = Choices()


def chosen() -> Choices:
    """What is chosen now."""
    return _chosen


@contextmanager
def choosing(**changes: Any) -> Iterator[Choices]:
    """Choose otherwise, for everything that runs inside, in any thread.

    Raises:
        ValueError: there is no choice of this name.
    """
    global _chosen
    before = _chosen
    _chosen = before._replace(**changes)
    try:
        yield _chosen
    finally:
        _chosen = before
