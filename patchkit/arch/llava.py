"""LLaVA: a CLIP vision tower and a text tower of another architecture, named by ``text_config``."""

from patchkit.arch.spec import Architecture

LLAVA = Architecture(
    name="llava",
    model_types=("llava",),
    module="transformers.models.llava.modeling_llava",
    text_models=("llama", "mistral", "qwen2", "gemma"),
)
