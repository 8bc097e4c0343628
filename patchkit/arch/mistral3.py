"""Mistral 3: a Pixtral vision tower and a Mistral text tower."""

from patchkit.arch.spec import Architecture

MISTRAL3 = Architecture(
    name="mistral3",
    model_types=("mistral3",),
    module="transformers.models.mistral3.modeling_mistral3",
    text_models=("mistral",),
)
