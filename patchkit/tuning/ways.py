"""Questions about ways of computing the same: see :mod:`patchkit_kernels.lora.choices`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from patchkit.tuning.launches import draw
from patchkit.tuning.questions import Candidate, Question, Setting, Shape
from patchkit_kernels.lora.choices import choosing
from patchkit_kernels.lora.gated_mlp import lora_gated_mlp
from patchkit_kernels.lora.linear import lora_linear
from patchkit_kernels.lora.projection import Adapter, Precision, Projection

TOLERANCE = 0.02
"""How far results in one way may be from those in another: some roundings to bfloat16, which are 0.002 each."""

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""Of adapters over a base in bfloat16."""

Step = Callable[[], "list[Tensor]"]


def asked(
    title: str, setting: Setting, steps: Sequence[Step], ways: dict[str, dict[str, int]], **how: bool
) -> Question:
    """Which of several ways is the fastest for all of these steps, one after the other.

    Args:
        title: for people.
        setting: see :class:`~patchkit.tuning.questions.Setting`.
        steps: forward and backward of something each.
        ways: by label, what is chosen; the usual one first.
        how: of :class:`~patchkit.tuning.questions.Question`.
    """

    def candidate(label: str, chosen: dict[str, int]) -> Candidate:
        def run() -> list[Tensor]:
            with choosing(emulated=setting.rehearsal, **chosen):
                return [result for step in steps for result in step()]

        return Candidate(label, run)

    return Question(title, tuple([candidate(*way) for way in ways.items()]), TOLERANCE, **how)


def mlp_step(device: str, shape: Shape, rank: int, dtype: torch.dtype) -> Step:
    """Forward and backward of a gated MLP in bfloat16 with an adapter on each projection: y and every gradient.

    Args:
        device: as torch names it.
        shape: see :class:`~patchkit.tuning.questions.Shape`.
        rank: of every adapter.
        dtype: of the adapters.
    """
    _, hidden, wide, tokens = shape
    gate, up, down = (
        _projection(device, *sizes, rank, dtype, 3 * i + 2)
        for i, sizes in enumerate(((wide, hidden), (wide, hidden), (hidden, wide)))
    )
    precision = Precision(torch.bfloat16, dtype, torch.bfloat16, dtype)
    return _step(
        device, tokens, hidden, [gate, up, down], lambda x: lora_gated_mlp(x, [gate, up], down, "silu", precision)
    )


def projection_step(device: str, shape: Shape, rank: int, dtype: torch.dtype) -> Step:
    """The same of one projection, as wide as x."""
    _, hidden, _, tokens = shape
    one = _projection(device, hidden, hidden, rank, dtype, 2)
    precision = Precision(torch.bfloat16, dtype, torch.bfloat16, dtype)
    return _step(device, tokens, hidden, [one], lambda x: lora_linear(x, one, precision))


def _step(
    device: str, tokens: int, hidden: int, projections: Sequence[Projection], call: Callable[[Tensor], Tensor]
) -> Step:
    x, dy = draw(device, tokens, hidden).requires_grad_(), draw(device, tokens, hidden, seed=1)
    variables = [x, *[factor for one in projections for factor in one.adapters[0][:2]]]

    def step() -> list[Tensor]:
        y = call(x)
        return [y.detach(), *torch.autograd.grad(y, variables, dy)]

    return step


def _projection(device: str, outputs: int, inputs: int, rank: int, dtype: torch.dtype, seed: int) -> Projection:
    """Random, with an adapter whose part is as large as that of W."""
    lora_a, lora_b = (
        draw(device, *shape, dtype=dtype, seed=seed + 1 + i).requires_grad_()
        for i, shape in enumerate(((rank, inputs), (outputs, rank)))
    )
    return Projection(draw(device, outputs, inputs, seed=seed), None, (Adapter(lora_a, lora_b, 2.0),))
