"""Readers of microsoft/LoRA's ``loralib.Linear``, ``MergedLinear`` and ``Embedding``.

Source of the semantics: ``loralib/layers.py`` of version 0.1.2. The linear layers are subclasses of
``torch.nn.Linear`` that hold A and B themselves and compute, in their input's dtype, ``x W^T + b + (d(x) A^T B^T) s``.
An embedding computes ``W[ids] + (A^T[ids] B^T) s`` without dropout. In eval mode all of them merge the product into W
(``merge_weights``) and are ordinary layers then.

``MergedLinear`` is one layer for several projections, of which ``enable_lora`` says which have an adapter. The A's of
these g projections lie on top of each other, ``[g rank, in]``, and so do the B's, ``[g out / n, rank]``; upstream
multiplies them with a grouped convolution, puts zero rows where no adapter is, and multiplies d(x) with the result, a
matrix like W. That is one adapter whose B has the g blocks on its diagonal. loralib's convolution layers are not read.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from loralib.layers import Embedding, Linear, LoRALayer, MergedLinear
from torch import Tensor, nn

from patchkit.adapters.formula import Formula
from patchkit.adapters.linear import weight_and_bias
from patchkit.adapters.protocol import Library, Reason, drop_probability, interference, lacks_cast, unfit_scaling
from patchkit_kernels.lora.embedding import EmbeddingAdapter, EmbeddingTable
from patchkit_kernels.lora.projection import Adapter, Projection

# Without dropout, loralib sets a function that returns its argument; each layer has a copy of the same code.
_NO_DROPOUT = LoRALayer(r=0, lora_alpha=1, lora_dropout=0.0, merge_weights=False).lora_dropout.__code__


_LINEAR = Formula(
    {Linear: "forward", MergedLinear: "forward merge_AB zero_pad", F: "linear dropout conv1d", nn.Dropout: "forward"},
    dict.fromkeys((Linear, MergedLinear), "weight bias lora_A lora_B scaling"),
)
_EMBEDDING = Formula(
    {Embedding: "forward", nn.Embedding: "forward", F: "embedding"}, {Embedding: "weight lora_A lora_B scaling"}
)
_LOOKED_UP = ("lora_A", "lora_B", "zero_pad", "merge_AB")


def read_loralib_linear(module: nn.Module) -> Projection | Reason:
    """The tensors of a ``loralib.Linear``, or why it must be called instead. Merged, it has no adapter."""
    projection = _read_base(module)
    state = module.__dict__
    if isinstance(projection, str) or state["merged"] or not state["r"] > 0:
        return projection
    parameters = state["_parameters"]
    return _with_adapter(state, projection, parameters.get("lora_A"), parameters.get("lora_B"))


def read_merged_linear(module: nn.Module) -> Projection | Reason:
    """The tensors of a ``loralib.MergedLinear``, or why it must be called instead. Merged, it has no adapter."""
    projection = _read_base(module)
    state = module.__dict__
    if isinstance(projection, str) or state["merged"] or not state["r"] > 0:
        return projection
    parameters, enabled, outputs = state["_parameters"], state["enable_lora"], state.get("lora_ind")
    lora_a, lora_b = parameters.get("lora_A"), parameters.get("lora_B")
    if type(lora_b) is not nn.Parameter or outputs is None:
        return "its B is not a plain parameter"
    groups = sum(enabled)
    if lora_b.shape != (len(outputs) // len(enabled) * groups, state["r"]):
        return "its B does not fit enable_lora"
    return _with_adapter(state, projection, lora_a, _spread(lora_b, groups, outputs))


def read_loralib_embedding(module: nn.Module) -> EmbeddingTable | Reason:
    """The tensors of a ``loralib.Embedding``, or why its own ``forward`` must run. Merged, it has no adapter."""
    state = module.__dict__
    reason = _EMBEDDING.replaced()
    if reason is not None:
        return reason
    if "weight" in state or any(name in state for name in _LOOKED_UP):
        return "its weight, A or B was replaced on the instance"
    if state["max_norm"] is not None or state["scale_grad_by_freq"] or state["sparse"]:
        return "it uses max_norm, scale_grad_by_freq or sparse"
    parameters = state["_parameters"]
    weight, lora_a, lora_b = (parameters.get(name) for name in ("weight", "lora_A", "lora_B"))
    if weight is None:
        return "its weight is not a parameter"
    table = EmbeddingTable(weight, (), state["padding_idx"])
    if state["merged"] or not state["r"] > 0:
        return table
    if lora_a is None or lora_b is None:
        return "its A or B is not a parameter"
    scaling = state["scaling"]
    reason = unfit_scaling(scaling)
    return table._replace(adapters=(EmbeddingAdapter(lora_a, lora_b, scaling),)) if reason is None else reason


def _read_base(module: nn.Module) -> Projection | Reason:
    found = _LINEAR.replaced() or weight_and_bias(module)
    if isinstance(found, str):
        return found
    if any(name in module.__dict__ for name in _LOOKED_UP):
        return "its A or B was replaced on the instance"
    weight, bias = found
    if module.__dict__["fan_in_fan_out"] and weight.dim() == 2:  # stored [in, out]; sharded ones have another shape
        weight = weight.transpose(0, 1)
    return Projection(weight, bias)


def _with_adapter(
    state: dict[str, Any], projection: Projection, lora_a: Tensor | None, lora_b: Tensor | None
) -> Projection | Reason:
    if lora_a is None or lora_b is None:
        return "its A or B is not a parameter"
    weight = projection.weight
    assert isinstance(weight, Tensor)  # narrows the type: loralib stores no weight in another form
    if lacks_cast(weight, projection.bias, lora_a, lora_b):
        return "its weight, bias, A and B differ in dtype, and loralib casts nothing"
    scaling = state["scaling"]
    reason = unfit_scaling(scaling)
    if reason is not None:
        return reason
    probability = _dropout(state)
    if isinstance(probability, str):
        return probability
    return projection._replace(adapters=(Adapter(lora_a, lora_b, scaling, dropout=probability),))


def _dropout(state: dict[str, Any]) -> float | Reason:
    if "lora_dropout" in state:
        code = getattr(state["lora_dropout"], "__code__", None)
        return 0.0 if code is _NO_DROPOUT else "its dropout is a function of its own"
    dropout = state["_modules"].get("lora_dropout")
    if dropout is None:
        return "it has no dropout"
    reason = interference(dropout)
    return drop_probability(dropout) if reason is None else f"its dropout: {reason}"


def _spread(lora_b: Tensor, groups: int, outputs: Tensor) -> Tensor:
    """B as one matrix, by operations that autograd follows back to the parameter.

    Args:
        lora_b: the B's of all groups, ``[rows, rank]``.
        groups: how many.
        outputs: bool ``[out]``, true where an adapter adds to the output: ``rows`` times.

    Returns:
        ``[out, groups * rank]``, zero outside of the blocks.
    """
    blocks = lora_b if groups == 1 else torch.block_diag(*lora_b.chunk(groups))  # type: ignore[no-untyped-call]
    if len(blocks) == len(outputs):
        return blocks
    return blocks.new_zeros(len(outputs), blocks.shape[1]).index_put((outputs,), blocks)


LIBRARY = Library(
    {Linear: read_loralib_linear, MergedLinear: read_merged_linear},
    (LoRALayer,),
    casts_input=False,
    embeddings={Embedding: read_loralib_embedding},
)
