"""Which fused functions really ran: a level that is only promised, or chosen and then not used, would not show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from patchkit import layers
from patchkit.runtime import blocks, embedding

FUSED_FUNCTIONS = ("lora_projections", "lora_linear", "lora_gated_mlp")
"""What the patched parts call: for q/k/v together, for one projection alone, for a gated MLP."""


@contextmanager
def fused_calls() -> Iterator[list[str]]:
    """Record the calls of the fused functions by every model of this process, for the time of a ``with`` block.

    A forward that is run again by gradient checkpointing counts again. What ``torch.compile`` traces counts once for
    each trace, and not when the compiled code runs. Not for several threads.

    Yields:
        A list that grows at each call by a name of :data:`FUSED_FUNCTIONS`, by ``lora_embedding`` for an adapted
        embedding, and by ``lora_linear`` for an adapted head.
    """
    calls: list[str] = []
    places = [(blocks, name) for name in FUSED_FUNCTIONS]
    places += [(layers, "lora_linear"), (embedding, "lora_embedding")]
    originals = [getattr(module, name) for module, name in places]
    for (module, name), function in zip(places, originals, strict=True):
        setattr(module, name, _recorded(function, name, calls))
    try:
        yield calls
    finally:
        for (module, name), function in zip(places, originals, strict=True):
            setattr(module, name, function)


def _recorded(function: Callable[..., Any], name: str, calls: list[str]) -> Callable[..., Any]:
    def record() -> bool:
        calls.append(name)
        return True

    # Traced, a list that grows would be a reason to compile again at each step.
    record = torch.compiler.assume_constant_result(record)  # type: ignore[no-untyped-call]

    def call(*args: Any, **kwargs: Any) -> Any:
        record()
        return function(*args, **kwargs)

    return call
