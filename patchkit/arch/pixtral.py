"""Pixtral vision tower (of Mistral 3 and of some LLaVA models): llama's blocks on image patches."""

from patchkit.arch.spec import Architecture, Attention, GatedMLP

PIXTRAL = Architecture(
    name="pixtral",
    model_types=("pixtral",),
    module="transformers.models.pixtral.modeling_pixtral",
    blocks=(Attention("PixtralAttention", tower="vision"), GatedMLP("PixtralMLP", tower="vision")),
)
