"""Qwen2-VL text tower: biases on q, k and v; the vision tower has one fused qkv and an ungated MLP."""

from patchkit.arch.spec import Architecture, Attention, GatedMLP

QWEN2_VL = Architecture(
    name="qwen2_vl",
    model_types=("qwen2_vl", "qwen2_vl_text"),
    module="transformers.models.qwen2_vl.modeling_qwen2_vl",
    blocks=(Attention("Qwen2VLAttention"), GatedMLP("Qwen2MLP")),
)
