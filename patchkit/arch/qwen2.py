"""Qwen2: biases on q, k and v; SiLU-gated MLP."""

from patchkit.arch.spec import Architecture, Attention, GatedMLP

QWEN2 = Architecture(
    name="qwen2",
    model_types=("qwen2",),
    module="transformers.models.qwen2.modeling_qwen2",
    blocks=(Attention("Qwen2Attention"), GatedMLP("Qwen2MLP")),
)
