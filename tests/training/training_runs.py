"""A whole training as one comparable value: the loss of every step, how far every weight moved, what ran fused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from patchkit.testing import CURVE_TOLERANCE, FP32_TOLERANCE, fused_calls, relative_error

LAYERS = 2
"""Decoder layers of a tiny model."""


@dataclass
class Training:
    """What is left of a training.

    Attributes:
        losses: of each micro-batch, unrounded.
        updates: final minus initial value of each trainable parameter.
        calls: how often each fused function was called.
    """

    losses: list[float]
    updates: dict[str, Tensor]
    calls: Counter[str]


class RecordsLosses:
    """Put before a Trainer class: keeps the unrounded loss of every micro-batch."""

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = super().training_step(*args, **kwargs)  # type: ignore[misc]
        self.__dict__.setdefault("losses", []).append(loss.item())
        return loss


def observe(model: nn.Module, train: Callable[[], list[float]]) -> Training:
    """Run a training of the model; ``train`` returns the losses."""
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    with fused_calls() as calls:
        losses = train()
    after = dict(model.named_parameters())
    updates = {name: after[name].detach() - value for name, value in before.items()}
    return Training(losses, updates, Counter(calls))


def run_trainer(trainer: Any) -> Training:
    """``trainer.train()`` of a trainer with :class:`RecordsLosses`."""

    def train() -> list[float]:
        trainer.train()
        return trainer.losses

    return observe(trainer.model, train)


def assert_equal(patched: Training, plain: Training) -> None:
    """The same losses step for step and the same final weights, where there was something to differ in."""
    assert plain.calls == {}
    assert len(set(plain.losses)) > 1
    assert patched.losses[0] == pytest.approx(plain.losses[0], rel=FP32_TOLERANCE)
    assert patched.losses == pytest.approx(plain.losses, rel=CURVE_TOLERANCE)
    assert patched.updates.keys() == plain.updates.keys()
    for name, update in plain.updates.items():
        assert relative_error(patched.updates[name], update) < CURVE_TOLERANCE, name
        assert update.abs().max() > 0, f"{name} was not trained"


def total_error(training: Training, truth: Training) -> float:
    """The relative error of all weights' updates together."""
    names = sorted(truth.updates)
    together = [torch.cat([run.updates[name].double().flatten() for name in names]) for run in (training, truth)]
    return relative_error(*together)
