"""Qwen2.5-VL: Qwen2-VL's text tower; the vision tower has one fused qkv and a gated MLP with biases."""

from patchkit.arch.spec import Architecture, Attention, GatedMLP

QWEN2_5_VL = Architecture(
    name="qwen2_5_vl",
    model_types=("qwen2_5_vl", "qwen2_5_vl_text"),
    module="transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
    blocks=(
        Attention("Qwen2_5_VLAttention"),
        GatedMLP("Qwen2MLP"),
        GatedMLP("Qwen2_5_VLMLP", tower="vision"),
    ),
)
