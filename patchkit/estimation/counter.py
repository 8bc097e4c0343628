"""Counts steps of one model: plain or patched, checkpointed or not, with as many tokens as one likes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from patchkit.api import apply
from patchkit.errors import PatchkitWarning
from patchkit.estimation.attention import count_attention
from patchkit.estimation.fake import shared_copy, without_data
from patchkit.estimation.layers import chosen, reduce_to, stack_of
from patchkit.estimation.step import Step, Way, count_step, extended


class Training(NamedTuple):
    """A way to train.

    Attributes:
        name: for people.
        options: those of ``patchkit.apply``; None for the unpatched model.
        way: see :class:`~patchkit.estimation.step.Way`.
    """

    name: str
    options: dict[str, Any] | None
    way: Way = Way()


def trainings(options: dict[str, Any], *, checkpointing: bool = True) -> Iterator[Training]:
    """The ways to train that are compared.

    Args:
        options: of ``patchkit.apply``, as they were given. With ``loss`` among them there are no ways without it.
        checkpointing: whether the model has gradient checkpointing.
    """
    named = ", ".join(f"{name}={value}" for name, value in options.items())
    models: list[tuple[str, dict[str, Any] | None]] = [
        ("plain", None),
        (f"patched, {named}" if named else "patched", options),
    ]
    if "loss" not in options:
        models.append((f"{models[-1][0]}, loss=True", {**options, "loss": True}))
    for name, of_apply in models:
        yield Training(name, of_apply)
        if checkpointing:
            yield Training(f"{name}, checkpointed", of_apply, Way(checkpointing=True))
    name, of_apply = models[-1]
    yield Training(f"{name}, offloaded", of_apply, Way(offload=True))
    if checkpointing:
        yield Training(f"{name}, checkpointed, offloaded", of_apply, Way(checkpointing=True, offload=True))


class Counter:
    """A copy of a model without data, with one layer of each kind.

    Args:
        model: with adapters; it is left as it is.
        batch: sequences.
        all_layers: leave no layer out.

    Attributes:
        partial: whether layers were left out.

    Raises:
        EstimateError: it cannot be copied.
    """

    def __init__(self, model: nn.Module, batch: int, *, all_layers: bool = False) -> None:
        self._mode = FakeTensorMode()
        self._batch = batch
        copied = without_data(model, self._mode)
        self._stack = stack_of(copied)
        self._kinds: Sequence[int] = () if self._stack is None else self._stack.kinds
        self._positions = tuple(range(len(self._kinds))) if all_layers else chosen(self._kinds)
        self.partial: bool = len(self._positions) < len(self._kinds)
        if self._stack is not None and self.partial:
            reduce_to(copied, self._stack, self._positions)
        self._masked = count_attention(copied)
        self._model = copied

    @contextmanager
    def prepared(self, training: Training) -> Iterator[tuple[Callable[[int], Step], int]]:
        """A function from tokens to the :class:`Step`, and how many parts with an adapter are not fused."""
        model, unfused = shared_copy(self._model), 0
        if training.options is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", PatchkitWarning)  # the number says it
                unfused = len(apply(model, **training.options).left)
        layers: Any = None if self._stack is None else model.get_submodule(self._stack.name)

        def run(tokens: int) -> Step:
            size = (self._batch, tokens)
            counted = count_step(model, layers, self._mode, size, training.way, masked=self._masked)
            return extended(counted, self._kinds, self._positions)

        yield run, unfused
