"""Gemma 2: soft-capped attention, tanh-GELU gated MLP."""

from patchkit.arch.spec import Architecture, Attention, GatedMLP

GEMMA2 = Architecture(
    name="gemma2",
    model_types=("gemma2",),
    module="transformers.models.gemma2.modeling_gemma2",
    blocks=(Attention("Gemma2Attention"), GatedMLP("Gemma2MLP")),
)
