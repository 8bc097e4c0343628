"""The level of an adapted embedding, chosen anew at every call as for the blocks (see ``levels.py``)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from patchkit.adapters.protocol import EmbeddingReader, Reason
from patchkit.adapters.registry import read_embedding
from patchkit.runtime import fused
from patchkit.runtime.choice import NO_ADAPTER
from patchkit.runtime.levels import PLAIN_TENSORS, input_of
from patchkit.runtime.precision import FLOATS, HALVES, AdapterPrecision
from patchkit_kernels.lora.embedding import EmbeddingTable
from patchkit_kernels.ops.dora_norm import dora_weight_norm

# torch.compile takes a buffer for what it was made as, eager mode for a tensor.
_CONSTANTS = PLAIN_TENSORS | {nn.Buffer}
_IDS = frozenset({torch.int64, torch.int32})


class ReadyEmbedding(NamedTuple):
    """An embedding that can be computed from its tensors, and the dtype in which PEFT multiplies with B."""

    table: EmbeddingTable
    lora: torch.dtype


def choose_embedding(
    module: nn.Module, ids: Tensor, precision: AdapterPrecision = "peft", reader: EmbeddingReader | None = None
) -> ReadyEmbedding | Reason:
    """The tensors of an adapted embedding for these ids ``[...]``, or why its own ``forward`` must run.

    Args:
        module: the embedding.
        ids: its input.
        precision: see :data:`patchkit.runtime.precision.AdapterPrecision`.
        reader: of its class, if the caller knows it.
    """
    given = input_of(ids, precision)
    if isinstance(given, str):
        return given
    table = (reader or read_embedding)(module)
    if isinstance(table, str):
        return table
    if not table.adapters:
        return NO_ADAPTER
    if ids.dtype not in _IDS:
        return f"the input is {ids.dtype}"
    reason = _misfit(table, ids.device)
    if reason is not None:
        return reason
    lora = _dtype_of_products(table, given.autocast, precision)
    return lora if isinstance(lora, str) else ReadyEmbedding(table, lora)


def compute_embedding(ids: Tensor, ready: ReadyEmbedding) -> Tensor:
    """``[..., hidden]`` for ids ``[...]``."""
    table, norm = ready.table, None
    if table.magnitude is not None:
        adapter = table.adapters[0]
        # Made anew at every call, like everything that is read: a stored one would go stale without notice.
        norm = dora_weight_norm(table.weight.t(), adapter.lora_a, adapter.lora_b, float(adapter.scaling))
    return fused.lora_embedding(ids, table, ready.lora, norm)


def _misfit(table: EmbeddingTable, device: torch.device) -> Reason | None:
    """Why these tensors cannot be computed with, or None."""
    weight, adapters, _, scale, magnitude = table
    if scale is not None and (type(scale) not in _CONSTANTS or scale.device != device):
        return "its embed_scale is not a plain tensor on its input's device"
    tensors = [weight, *(tensor for adapter in adapters for tensor in adapter[:2])]
    for tensor in tensors if magnitude is None else [*tensors, magnitude]:
        if type(tensor) not in PLAIN_TENSORS:
            return f"one of its tensors is a {type(tensor).__module__}.{type(tensor).__qualname__}"
        if tensor.device != device:
            return "it is on another device than its input"
        if tensor.dtype not in FLOATS:
            return f"one of its tensors is {tensor.dtype}"
    if weight.dim() != 2 or (magnitude is not None and magnitude.shape != weight.shape[1:]):
        return "its weight does not have the shape of a full matrix"
    vocab, hidden = weight.shape
    for lora_a, lora_b, _ in adapters:
        if lora_a.shape != (lora_b.shape[-1], vocab) or lora_b.shape[0] != hidden or lora_a.dtype != lora_b.dtype:
            return "its A and B do not fit together"
    return None


def _dtype_of_products(
    table: EmbeddingTable, autocast: torch.dtype | None, precision: AdapterPrecision
) -> torch.dtype | Reason:
    """In which dtype PEFT multiplies with B, all of its embedding that autocast sees; or why that is left to PEFT.

    With ``precision="fast"`` it is the table's, which is that of the activations.
    """
    lora = table.adapters[0].lora_a.dtype
    dtypes = {table.weight.dtype, lora}
    if table.magnitude is not None:
        dtypes.add(table.magnitude.dtype)
    if any(adapter.lora_a.dtype != lora for adapter in table.adapters):
        return "its adapters differ in dtype"
    if table.magnitude is not None and torch.promote_types(lora, table.weight.dtype) != lora:
        # PEFT's gradients pass through fewer roundings there: m / n meets dy before it is rounded to A's dtype.
        return f"its adapter is {lora}, narrower than its {table.weight.dtype} weight, and has a magnitude"
    if autocast is not None:
        if torch.float64 in dtypes:
            return f"autocast to {autocast} over float64"
        dtypes.add(autocast)
        lora = autocast
    if dtypes.issuperset(HALVES):
        return "it mixes bfloat16 and float16"
    return table.weight.dtype if precision == "fast" and autocast is None else lora
