"""What comes of running a tiny model: whether it says anything, and errors in one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from patchkit.errors import TinyModelError
from patchkit.testing.random_state import seeded

_LONGEST_REASON = 200


def in_short(error: BaseException) -> str:
    """An error in one line of bounded length."""
    text = " ".join(str(error).split())
    if len(text) > _LONGEST_REASON:
        text = text[: _LONGEST_REASON - 3] + "..."
    return text if isinstance(error, TinyModelError) else f"{type(error).__name__}: {text}"


def first_tensor(outputs: Any) -> Tensor | None:
    """The logits of a model's outputs, or else the first floating-point tensor that is not the loss."""
    logits = getattr(outputs, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    return next((tensor for tensor in all_tensors(outputs) if tensor.ndim > 0), None)


def all_tensors(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors of a model's outputs, in their order."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from all_tensors(entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from all_tensors(entry)


def require_a_step(model: nn.Module, inputs: Mapping[str, Any]) -> None:
    """Run a forward and a backward pass, and drop the gradients.

    Raises:
        TinyModelError: outputs are not finite or all alike, or no parameter gets a finite gradient other than zero.
    """
    with seeded(0):
        outputs = model(**inputs)
    found = first_tensor(outputs)
    if found is None:
        raise TinyModelError("its outputs hold no tensor")
    if found.isnan().any() or found.isposinf().any():
        raise TinyModelError("its outputs are not finite")
    finite = found.detach().float()
    finite = finite[finite > -1e30]  # logits of tokens that a model rules out
    if finite.numel() < 2 or not finite.std() > 1e-4:
        raise TinyModelError("its outputs are all alike")
    loss = getattr(outputs, "loss", None)
    scalar = loss if isinstance(loss, Tensor) and loss.requires_grad else found.float().clamp_min(-1e4).square().mean()
    scalar.sum().backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad(set_to_none=True)
    if not any(gradient.count_nonzero() for gradient in gradients):
        raise TinyModelError("no parameter gets a gradient")
    if not all(torch.isfinite(gradient).all() for gradient in gradients):
        raise TinyModelError("gradients are not finite")
