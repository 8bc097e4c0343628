"""What a whole training step of a small model takes on the host, patched against plain PEFT.

The blocks of a layer are a part of a step: attention, norms, the loss and the optimiser are the same in both. A model
as small as these is decided by the host's work on a GPU too. Times are for a table that a person reads, not for a test.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from patchkit.testing.block_costs import ALPHA, BLOCK_PRECISIONS, RANK, BlockPrecision, with_patched
from patchkit.testing.lora import add_lora
from patchkit.testing.tiny_models import tiny_model

LAYERS = 4
SIZES = ((64, 4), (64, 32), (256, 4), (1024, 4))
"""Hidden sizes and tokens: few, so that the products of bfloat16, slow on many CPUs, do not decide."""


class StepTime(NamedTuple):
    """Median microseconds of the processor for one step, plain and patched; ``spread`` is of their ratio.

    The spread is half the distance of the quartiles of the ratios of steps that were neighbours in time.
    """

    hidden: int
    tokens: int
    precision: str
    dropout: float
    plain: float
    patched: float
    spread: float


def step_pair(
    hidden: int, tokens: int, precision: BlockPrecision, *, dropout: float = 0.0
) -> tuple[Callable[[], float], Callable[[], float]]:
    """A training step of a llama of :data:`LAYERS` layers with AdamW, plain and patched; each gives its loss.

    Args:
        hidden: the width of the model; its MLP is 1.75 times as wide.
        tokens: of the one sequence.
        precision: see :class:`~patchkit.testing.block_costs.BlockPrecision`.
        dropout: of every adapter.
    """
    sizes: dict[str, Any] = {"hidden_size": hidden, "intermediate_size": hidden * 7 // 4, "num_hidden_layers": LAYERS}
    adapted = add_lora(tiny_model("llama", **sizes), r=RANK, lora_alpha=ALPHA, lora_dropout=dropout)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, adapted.config.vocab_size, (1, tokens), generator=generator)
    plain, patched = with_patched(adapted, precision)
    return _step(plain, ids, precision), _step(patched, ids, precision)


def _step(model: nn.Module, ids: torch.Tensor, precision: BlockPrecision) -> Callable[[], float]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-4)

    def step() -> float:
        with precision.region():
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss)

    return step


def step_time(hidden: int, tokens: int, precision: str, dropout: float, *, steps: int) -> StepTime:
    """Time steps of both, in turns of one, whose order changes; the first five of each are not counted."""
    pair = step_pair(hidden, tokens, BLOCK_PRECISIONS[precision], dropout=dropout)
    times: list[tuple[float, float]] = []
    for turn in range(steps + 5):
        taken = [0.0, 0.0]
        for which in (0, 1) if turn % 2 else (1, 0):
            start = time.thread_time_ns()
            pair[which]()
            taken[which] = (time.thread_time_ns() - start) / 1000
        if turn >= 5:
            times.append((taken[0], taken[1]))
    plain, patched = (statistics.median(column) for column in zip(*times, strict=True))
    low, _, high = statistics.quantiles([ours / theirs for theirs, ours in times], n=4)
    return StepTime(hidden, tokens, precision, dropout, plain, patched, (high - low) / 2)


def step_times(steps: int) -> Iterator[StepTime]:
    """Every size in every precision, without dropout and with it."""
    for hidden, tokens in SIZES:
        for precision in BLOCK_PRECISIONS:
            for dropout in (0.0, 0.1):
                yield step_time(hidden, tokens, precision, dropout, steps=steps)
