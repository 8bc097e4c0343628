"""Gemma 3: q/k norms after the projections, tanh-GELU gated MLP; text tower of the multimodal model."""

from patchkit.arch.spec import Architecture, Attention, GatedMLP

GEMMA3 = Architecture(
    name="gemma3",
    model_types=("gemma3", "gemma3_text"),
    module="transformers.models.gemma3.modeling_gemma3",
    blocks=(Attention("Gemma3Attention"), GatedMLP("Gemma3MLP")),
)
