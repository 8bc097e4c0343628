"""Embeddings of random numbers, and PEFT's formula for them in ordinary operations."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from patchkit_kernels.lora.embedding import EmbeddingAdapter, EmbeddingTable
from patchkit_kernels.ops.dora_norm import dora_weight_norm

VOCAB, HIDDEN = 11, 6
PADDING = 3
IDS = torch.tensor([[1, 4, PADDING, 4], [10, PADDING, 0, 4]])


def make(
    ranks=(2,),
    *,
    vocab=VOCAB,
    hidden=HIDDEN,
    dora=False,
    scaled=False,
    padding_idx=None,
    train_weight=False,
    dtype=torch.float64,
    lora_dtype=None,
    seed=0,
    device="cpu",
):
    """A table of random numbers of order one, and the norm that DoRA divides by."""
    generator = torch.Generator().manual_seed(vocab + hidden + seed)

    def draw(*shape, dtype=lora_dtype or dtype, grad=True):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype).requires_grad_(grad)

    adapters = tuple(
        EmbeddingAdapter(draw(rank, vocab), draw(hidden, rank), 0.7 / (i + 1)) for i, rank in enumerate(ranks)
    )
    weight = draw(vocab, hidden, dtype=dtype, grad=train_weight)
    scale = torch.tensor(hidden**0.5, dtype=dtype, device=device) if scaled else None
    if not dora:
        return EmbeddingTable(weight, adapters, padding_idx, scale), None
    norm = dora_weight_norm(weight.t(), *adapters[0])
    return EmbeddingTable(weight, adapters, padding_idx, scale, draw(hidden)), norm


def plain(ids, table, lora, norm=None):
    """PEFT's ``Embedding.forward`` and ``DoraEmbeddingVariant.forward`` in words of torch."""
    result = F.embedding(ids, table.weight, table.padding_idx)
    if table.scale is not None:
        result = result * table.scale.to(table.weight.dtype)
    for adapter in table.adapters:
        t = F.embedding(ids, adapter.lora_a.T, table.padding_idx)
        added = (t.to(lora) @ adapter.lora_b.T.to(lora)) * adapter.scaling
        if norm is not None:
            added = added * (table.magnitude / norm)
        if table.scale is not None:
            added = added * table.scale.to(added.dtype)
        result = (result if norm is None else result * (table.magnitude / norm)) + added
    return result.to(table.weight.dtype)
