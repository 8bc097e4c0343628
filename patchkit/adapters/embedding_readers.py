"""The one table of readers of adapted embeddings. Those of other libraries join it: see ``readers.py``."""

from __future__ import annotations

from peft.tuners.lora.layer import Embedding as LoraEmbedding
from torch import nn

from patchkit.adapters.peft_embedding import read_lora_embedding
from patchkit.adapters.protocol import EmbeddingReader, Reason
from patchkit_kernels.lora.embedding import EmbeddingTable

EMBEDDING_READERS: dict[type[nn.Module], EmbeddingReader] = {LoraEmbedding: read_lora_embedding}


def read_embedding(module: nn.Module) -> EmbeddingTable | Reason:
    """The tensors of an adapted embedding, or why its own ``forward`` must run."""
    reader = EMBEDDING_READERS.get(type(module))
    if reader is None:
        return f"it is a {type(module).__module__}.{type(module).__qualname__}"
    return reader(module)
