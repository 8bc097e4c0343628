"""Which fused functions really ran: a level that is only promised, or chosen and then not used, would not show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from patchkit.runtime import fused

FUSED_FUNCTIONS = ("lora_projections", "lora_linear", "lora_gated_mlp")
"""What the patched parts call: for q/k/v together, for one projection alone, for a gated MLP."""


@contextmanager
def fused_calls() -> Iterator[list[str]]:
    """Record the calls of the fused functions by every model of this process, for the time of a ``with`` block.

    A forward that is run again by gradient checkpointing counts again. What ``torch.compile`` traces counts once for
    each trace, and not when the compiled code runs. Not for several threads.

    Yields:
        A list that grows at each call by a name of :data:`FUSED_FUNCTIONS`, by ``lora_embedding`` for an adapted
        embedding, by ``lora_linear`` for an adapted head, by ``lora_mlp`` for an MLP without a gate, and by
        ``lora_stack`` for a product with the stacked weights of experts.
    """
    calls: list[str] = []
    with each_fused_call(calls.append):
        yield calls


@contextmanager
def each_fused_call(note: Callable[[str], object]) -> Iterator[None]:
    """The same for a function that is called with each name."""
    originals = {name: getattr(fused, name) for name in fused.__all__}
    for name, function in originals.items():
        setattr(fused, name, _noted(function, name, note))
    try:
        yield
    finally:
        for name, function in originals.items():
            setattr(fused, name, function)


def _noted(function: Callable[..., Any], name: str, note: Callable[[str], object]) -> Callable[..., Any]:
    def record() -> bool:
        note(name)
        return True

    # Traced, a list that grows would be a reason to compile again at each step.
    record = torch.compiler.assume_constant_result(record)  # type: ignore[no-untyped-call]

    def call(*args: Any, **kwargs: Any) -> Any:
        record()
        return function(*args, **kwargs)

    return call
