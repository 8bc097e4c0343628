"""Gemma 1: tanh-GELU gated MLP."""

from patchkit.arch.spec import Architecture, Attention, GatedMLP

GEMMA = Architecture(
    name="gemma",
    model_types=("gemma",),
    module="transformers.models.gemma.modeling_gemma",
    blocks=(Attention("GemmaAttention"), GatedMLP("GemmaMLP")),
)
