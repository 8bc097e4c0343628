"""A small random model and a batch for it, in the place of your own."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from patchkit.testing import tiny_inputs, tiny_model


def small(name: str = "llama", **sizes: Any) -> tuple[Any, dict[str, Tensor]]:
    """A model without adapters, and inputs with labels."""
    model = tiny_model(name, **sizes)
    return model, tiny_inputs(name, model)


def train(model: nn.Module, batch: dict[str, Tensor], steps: int = 3) -> list[float]:
    """The loss of each of a few steps of AdamW."""
    from torch.optim import AdamW

    optimizer = AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses
