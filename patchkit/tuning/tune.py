"""Asking a device everything that it can decide, and what follows from its answers."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import torch

from patchkit.tuning.launches import tiles
from patchkit.tuning.questions import Answer, Question, Setting, ask
from patchkit.tuning.record import IN_ACTIVATION_RANKS, LEAST_ELEMENTS, ONE_PASS_RANKS, Tuned
from patchkit.tuning.ways import PRECISIONS, asked, mlp_step, projection_step
from patchkit_kernels.lora.choices import choosing
from patchkit_kernels.ops.launch_sizes import GRID, LAUNCH_SIZES, LaunchSizes

RANK = 16
_NEVER = 2**62

AT_MOST = len(GRID) + 1 + len(LEAST_ELEMENTS) + len(PRECISIONS) * (len(ONE_PASS_RANKS) + len(IN_ACTIVATION_RANKS))
"""Questions."""

Asked = Callable[[Question], Answer]


def tune(
    setting: Setting, before: Callable[[str], None] | None = None, after: Callable[[Answer], None] | None = None
) -> Tuned:
    """Ask about the sizes of launches, and with the fastest of them about the ways of computing.

    Args:
        setting: the device and the sizes to measure at.
        before: is told the title of each question.
        after: is told each answer.

    Returns:
        What to use from now on. Nothing is changed yet, and nothing saved.
    """
    answers: list[Answer] = []

    def put(question: Question) -> Answer:
        if before is not None:
            before(question.title)
        answers.append(ask(question, setting))
        if after is not None:
            after(answers[-1])
        return answers[-1]

    sizes: dict[str, Any] = {}
    for field in GRID:
        sizes[field] = GRID[field][put(tiles(field, setting)).best]
    with LAUNCH_SIZES.changed(**sizes):
        choices = chosen_ways(setting, put)
    date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    return Tuned(setting.shape, date, LaunchSizes(**sizes), choices, tuple(answers))


def chosen_ways(setting: Setting, put: Asked) -> dict[str, int]:
    """Fields of :class:`~patchkit_kernels.lora.choices.Choices`, each found with those before it.

    Args:
        setting: as for :func:`tune`.
        put: asks a question.
    """
    chosen: dict[str, Any] = {"bf16x3": _in_pieces(setting, put)}
    if chosen["bf16x3"]:
        chosen["least_elements"] = _least_elements(setting, put)
    with choosing(**chosen):
        title = "dt and dB in one pass over dy"
        chosen["one_pass_rank"] = _greatest_rank(setting, put, "one_pass_rank", ONE_PASS_RANKS, title, alone=True)
    with choosing(**chosen):
        title = "rank-r products in an MLP's activation"
        ranks = IN_ACTIVATION_RANKS
        chosen["in_activation_rank"] = _greatest_rank(setting, put, "in_activation_rank", ranks, title, alone=False)
    return chosen


def _in_pieces(setting: Setting, put: Asked) -> bool:
    """Whether float32 adapters are multiplied in pieces on tensor cores where the device's time decides."""
    steps = [make(setting.device, setting.shape, RANK, torch.float32) for make in (mlp_step, projection_step)]
    ways: dict[str, dict[str, int]] = {
        "bfloat16 pieces": {"bf16x3": True, "least_elements": 0},
        "float32 copies of activations": {"bf16x3": False},
    }
    return put(asked("float32 adapters over bfloat16", setting, steps, ways)).best == 0


def _least_elements(setting: Setting, put: Asked) -> int:
    """From how many elements of an input on the device's time decides, and not the host's."""
    _, hidden, _, tokens = setting.shape
    least = tokens * hidden
    for elements in sorted(LEAST_ELEMENTS, reverse=True):
        if elements < least:
            shape = setting.shape._replace(tokens=max(1, elements // hidden))
            steps = [make(setting.device, shape, RANK, torch.float32) for make in (mlp_step, projection_step)]
            ways = {
                "float32 copies of activations": {"least_elements": _NEVER},
                "bfloat16 pieces": {"least_elements": 0},
            }
            title = f"the same with {shape.tokens} tokens, the host's time included"
            if put(asked(title, setting, steps, ways, host=True)).best == 0:
                break
            least = elements
    return least


def _greatest_rank(setting: Setting, put: Asked, choice: str, ranks: tuple[int, ...], title: str, alone: bool) -> int:
    """Up to which rank a way is faster with adapters of every dtype; 0 if it is at none."""
    greatest = 0
    for rank in ranks:
        for label, dtype in PRECISIONS.items():
            steps = [mlp_step(setting.device, setting.shape, rank, dtype)]
            if alone:
                steps.append(projection_step(setting.device, setting.shape, rank, dtype))
            ways: dict[str, dict[str, int]] = {"apart": {}, "together": {choice: rank}}
            if put(asked(f"{title}, rank {rank}, {label} adapters", setting, steps, ways)).best == 0:
                return greatest
        greatest = rank
    return greatest
