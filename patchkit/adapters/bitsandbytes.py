"""Readers of bitsandbytes' ``Linear4bit`` and ``Linear8bitLt``: projections whose weight is stored in 4 or 8 bits.

Everything goes through bitsandbytes itself: forward calls the layer, backward dequantises with its functions. Source of
the semantics: ``bitsandbytes/nn/modules.py`` and ``bitsandbytes/autograd/_functions.py`` of version 0.50.
"""

from __future__ import annotations

from typing import Any

import bitsandbytes
import torch
import torch.nn.functional as F
from bitsandbytes import functional
from bitsandbytes.autograd import _functions
from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_dequant
from bitsandbytes.nn.modules import Int8Params, Linear4bit, Linear8bitLt, Params4bit
from torch import Tensor, nn

from patchkit.adapters.formula import Formula
from patchkit.adapters.linear import LOOKED_UP
from patchkit.adapters.protocol import BaseReader, Reader, Reason, interference
from patchkit_kernels.lora.projection import Projection

BITSANDBYTES = Formula(
    {
        Linear4bit: "forward",
        Linear8bitLt: "forward init_8bit_state",
        bitsandbytes: "matmul matmul_4bit",
        functional: "dequantize_4bit int8_vectorwise_dequant",
        F: "linear",
        **{
            function: "forward backward"
            for name in ("MatMul4Bit", "MatMul8bitLt", "MatMul8bitFp")
            if (function := getattr(_functions, name, None)) is not None
        },
    },
    {Linear4bit: "weight bias", Linear8bitLt: "weight bias"},
)


class _StoredWeight:
    """What the weights of both layers have in common.

    Args:
        layer: the layer.
    """

    __slots__ = ("_layer",)

    def __init__(self, layer: Any) -> None:
        self._layer = layer

    def linear(self, x: Tensor) -> Tensor:
        """The layer's own forward (which may quantise x), bias included: ``[..., in]`` to ``[..., out]``, x's dtype."""
        result: Tensor = self._layer(x)
        return result

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)``."""
        return self._layer.out_features, self._layer.in_features

    @property
    def device(self) -> torch.device:
        """Of the stored weight."""
        return self._layer.weight.device  # type: ignore[no-any-return]


class Weight4bit(_StoredWeight):
    """The weight of a ``Linear4bit``: NF4 or FP4, with plain or quantised statistics."""

    __slots__ = ()
    by_rows = True  # it is dequantised, and then multiplied

    def dense(self) -> Tensor:
        """W ``[out, in]`` in the dtype it was quantised from."""
        weight = self._layer.weight
        return dequantize_4bit(weight.data, weight.quant_state)

    def compute_dtype(self, given: torch.dtype) -> torch.dtype:
        """As ``Linear4bit`` chooses it: fixed by the first input if that is float32 or bfloat16."""
        layer = self._layer
        if not layer.compute_type_is_set and given in (torch.float32, torch.bfloat16):
            return given
        return layer.compute_dtype or given


class Weight8bit(_StoredWeight):
    """The weight of a ``Linear8bitLt``, one scale for each row."""

    __slots__ = ()
    by_rows = False  # a column of x with an outlier in any row is multiplied in another precision

    def dense(self) -> Tensor:
        """W ``[out, in]``, float32."""
        state, weight = self._layer.state, self._layer.weight
        stored = weight.data if state.CB is None else state.CB
        scales = weight.SCB if state.SCB is None else state.SCB
        return int8_vectorwise_dequant(stored, scales)  # type: ignore[no-any-return]

    def compute_dtype(self, given: torch.dtype) -> torch.dtype:
        """The input's: so are its gradients computed, whatever form the forward product takes."""
        return given


def weight_and_bias_4bit(module: nn.Module) -> tuple[Weight4bit, Tensor | None] | Reason:
    """The stored weight and the bias of a ``Linear4bit``, or why it must be called instead."""
    reason = interference(module, LOOKED_UP)
    if reason is not None:
        return reason
    state = module.__dict__
    parameters = state["_parameters"]
    weight, bias = parameters.get("weight"), parameters.get("bias")
    if "bias" not in parameters:
        return "its bias is not a parameter"
    quant_state = getattr(weight, "quant_state", None)
    if type(weight) is not Params4bit or quant_state is None:
        return "its 4-bit weight is not quantised yet"
    if len(quant_state.shape) != 2 or tuple(quant_state.shape) != (state["out_features"], state["in_features"]):
        return "its 4-bit weight is stored transposed"
    if getattr(quant_state, "packing_format_for_cpu", False):
        return "bitsandbytes packed its 4-bit weight for inference on this CPU; load the model anew to train it"
    packs = weight.device.type == "cpu" and getattr(module, "support_avx512bf16_for_cpu", False)
    if packs and not state["training"]:
        return "in eval mode bitsandbytes packs its 4-bit weight for inference on this CPU; in training it is fused"
    if bias is not None and bias.dtype != (state["compute_dtype"] or bias.dtype):
        return "bitsandbytes casts its bias at its first call"
    return Weight4bit(module), bias


def weight_and_bias_8bit(module: nn.Module) -> tuple[Weight8bit, Tensor | None] | Reason:
    """The stored weight and the bias of a ``Linear8bitLt``, or why it must be called instead."""
    reason = interference(module, LOOKED_UP)
    if reason is not None:
        return reason
    state = module.__dict__
    parameters = state["_parameters"]
    weight, bias = parameters.get("weight"), parameters.get("bias")
    if "bias" not in parameters:
        return "its bias is not a parameter"
    if type(weight) is not Int8Params or state["state"].has_fp16_weights or weight.dtype != torch.int8:
        return "its weight is not stored in 8 bits"
    if torch.compiler.is_compiling():
        return "8-bit layers set their own weight at each call, which a compiled autograd function cannot do"
    return Weight8bit(module), bias


def read_4bit(module: nn.Module) -> Projection | Reason:
    """A ``Linear4bit`` without adapter."""
    found = BITSANDBYTES.replaced() or weight_and_bias_4bit(module)
    return found if isinstance(found, str) else Projection(*found)


def read_8bit(module: nn.Module) -> Projection | Reason:
    """A ``Linear8bitLt`` without adapter."""
    found = BITSANDBYTES.replaced() or weight_and_bias_8bit(module)
    return found if isinstance(found, str) else Projection(*found)


BITSANDBYTES_READERS: dict[type[nn.Module], Reader] = {Linear4bit: read_4bit, Linear8bitLt: read_8bit}
BITSANDBYTES_BASES: dict[type[nn.Module], BaseReader] = {
    Linear4bit: weight_and_bias_4bit,
    Linear8bitLt: weight_and_bias_8bit,
}
