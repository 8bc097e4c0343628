"""Questions about the sizes of launches: for each kernel, which tile is the fastest on this device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from patchkit.tuning.questions import Candidate, Question, Setting
from patchkit_kernels.ops import gated_low_rank, gated_low_rank_backward, low_rank_backward
from patchkit_kernels.ops.activations import GATED
from patchkit_kernels.ops.launch_sizes import GRID, LAUNCH_SIZES

RANK = 16
TOLERANCE = 2.0**-7
"""Two tiles add the same products in another order: a bfloat16 result may be rounded to the other neighbour."""

_BF16, _FP32 = torch.bfloat16, torch.float32


class Load(NamedTuple):
    """A launch.

    Attributes:
        run: launches, and returns the results.
        prepare: makes again what the kernel writes over.
    """

    run: Callable[[], Sequence[Tensor]]
    prepare: Callable[[], object] | None = None


def tiles(field: str, setting: Setting) -> Question:
    """What is asked about a field of :class:`~patchkit_kernels.ops.launch_sizes.LaunchSizes`: one of its grid."""
    loads = [load for make, dtype in _LOADS[field] for load in make(setting, dtype)]
    return Question(f"{ABOUT[field]}: tile", tuple([_candidate(field, size, loads) for size in GRID[field]]), TOLERANCE)


def draw(device: str, *shape: int, dtype: torch.dtype = _BF16, seed: int = 0) -> Tensor:
    """Numbers of order 0.1 on the device: zeros run faster than numbers do."""
    generator = torch.Generator(device).manual_seed(seed)
    return (torch.randn(*shape, device=device, generator=generator) * 0.1).to(dtype)


def _candidate(field: str, size: Any, loads: Sequence[Load]) -> Candidate:
    def run() -> list[Tensor]:
        with LAUNCH_SIZES.changed(**{field: size}):
            return [result for load in loads for result in load.run()]

    def prepare() -> None:
        for load in loads:
            if load.prepare is not None:
                load.prepare()

    return Candidate(str(size), run, prepare)


def _elementwise(setting: Setting, dtype: torch.dtype) -> list[Load]:
    _, _, columns, tokens = setting.shape
    gate, up, grad = (draw(setting.device, tokens, columns, dtype=dtype, seed=seed) for seed in range(3))
    kernel, kept = GATED["silu"], grad.clone()
    return [
        Load(lambda: [kernel.launch(gate, up)]),
        Load(lambda: [grad, *kernel.launch_backward_recompute(grad, gate, up)], lambda: grad.copy_(kept)),
    ]


def _one_pass(setting: Setting, dtype: torch.dtype) -> list[Load]:
    _, _, columns, tokens = setting.shape
    dy = draw(setting.device, tokens, columns)
    factor = draw(setting.device, columns, RANK, dtype=dtype, seed=1)
    reduced = draw(setting.device, tokens, RANK, dtype=dtype, seed=2)
    return [Load(lambda: low_rank_backward.launch(dy, factor, reduced, 2.0))]


def _gated(setting: Setting, dtype: torch.dtype) -> list[Load]:
    gate, up, reduced, factors = _operands(setting, dtype)
    kept = gate.clone(), up.clone()

    def run() -> list[Tensor]:
        hidden, t_down = gated_low_rank.launch(gate, up, reduced[:2], factors, [2.0, 2.0], "silu")
        return [gate, up, hidden, t_down]

    def prepare() -> None:
        gate.copy_(kept[0])
        up.copy_(kept[1])

    return [Load(run, prepare)]


def _gated_backward(setting: Setting, dtype: torch.dtype) -> list[Load]:
    gate, up, reduced, factors = _operands(setting, dtype)
    grad = draw(setting.device, *gate.shape, seed=9)
    kept = grad.clone()

    def run() -> list[Tensor]:
        found = gated_low_rank_backward.launch(grad, gate, up, reduced, factors, [2.0, 2.0], "silu")
        return [grad, *found]

    return [Load(run, lambda: grad.copy_(kept))]


def _operands(setting: Setting, dtype: torch.dtype) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Gate and up; t of both and dt of down; B of both and A of down."""
    _, _, columns, tokens = setting.shape
    gate, up = (draw(setting.device, tokens, columns, seed=seed) for seed in range(2))
    reduced = [draw(setting.device, tokens, RANK, dtype=dtype, seed=2 + i) for i in range(3)]
    shapes = ((columns, RANK), (columns, RANK), (RANK, columns))
    factors = [draw(setting.device, *shape, dtype=dtype, seed=5 + i) for i, shape in enumerate(shapes)]
    return gate, up, reduced, factors


Make = Callable[[Setting, torch.dtype], "list[Load]"]

_LOADS: dict[str, tuple[tuple[Make, torch.dtype], ...]] = {
    "elementwise": ((_elementwise, _BF16),),
    "low_rank_backward": ((_one_pass, _BF16), (_one_pass, _FP32)),
    "gated_low_rank": ((_gated, _BF16), (_gated, _FP32)),
    "gated_low_rank_backward": ((_gated_backward, _BF16),),
    "gated_low_rank_backward_float32": ((_gated_backward, _FP32),),
}
"""What each field is measured with: rows in bfloat16, and adapters in this dtype."""

ABOUT = {
    "elementwise": "activations",
    "low_rank_backward": "dt and dB in one pass",
    "gated_low_rank": "rank-r products in an MLP's activation",
    "gated_low_rank_backward": "the same, backward",
    "gated_low_rank_backward_float32": "the same, backward, float32 adapters",
}
