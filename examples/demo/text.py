"""The training text: some of Python's reference manual, which every Python carries for ``help()``."""

from __future__ import annotations

import random
from pydoc_data.topics import topics
from typing import Any

import torch

EPOCHS = 3
"""How often the text is read: a short run learns more of a short text."""


def batches(tokenizer: Any, *, steps: int, batch: int, length: int, seed: int) -> torch.Tensor:
    """Batches of the manual, read :data:`EPOCHS` times in different order.

    Args:
        tokenizer: a tokenizer of transformers.
        steps: how many batches.
        batch: sequences in each.
        length: tokens in a sequence.
        seed: decides which part of the manual, and the orders.

    Returns:
        Token ids, ``[steps, batch, length]``.
    """
    sequences = blocks(tokenizer, count=-(-steps // EPOCHS) * batch, length=length, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    order = torch.cat([torch.randperm(len(sequences), generator=generator) for _ in range(EPOCHS)])
    return sequences[order[: steps * batch]].view(steps, batch, length)


def blocks(tokenizer: Any, *, count: int, length: int, seed: int) -> torch.Tensor:
    """The manual's topics in random order, tokenized, joined and cut into blocks.

    Args:
        tokenizer: a tokenizer of transformers.
        count: how many blocks.
        length: tokens in each.
        seed: decides the order of the topics.

    Returns:
        Token ids, ``[count, length]``; each block starts with the beginning-of-text token, which Gemma needs. If the
        manual is too short, it starts again from its beginning.
    """
    texts = [text for _, text in sorted(topics.items())]
    random.Random(seed).shuffle(texts)
    needed = count * (length - 1)
    tokens: list[int] = []
    while len(tokens) < needed:
        for text in texts:
            tokens += tokenizer(text, add_special_tokens=False)["input_ids"]
            if len(tokens) >= needed:
                break
    beginnings = torch.full((count, 1), tokenizer.bos_token_id)
    return torch.cat([beginnings, torch.tensor(tokens[:needed]).view(count, length - 1)], dim=1)
