"""PaliGemma: a SigLIP vision tower and a Gemma (1, or 2 for PaliGemma 2) text tower."""

from patchkit.arch.spec import Architecture

PALIGEMMA = Architecture(
    name="paligemma",
    model_types=("paligemma",),
    module="transformers.models.paligemma.modeling_paligemma",
    text_models=("gemma", "gemma2"),
)
