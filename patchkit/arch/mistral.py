"""Mistral: llama's blocks with sliding-window attention."""

from patchkit.arch.spec import Architecture, Attention, GatedMLP

MISTRAL = Architecture(
    name="mistral",
    model_types=("mistral",),
    module="transformers.models.mistral.modeling_mistral",
    blocks=(Attention("MistralAttention"), GatedMLP("MistralMLP")),
)
