"""Llama: q/k/v/o without biases by default, SiLU-gated MLP."""

from patchkit.arch.spec import Architecture, Attention, GatedMLP

LLAMA = Architecture(
    name="llama",
    model_types=("llama",),
    module="transformers.models.llama.modeling_llama",
    blocks=(Attention("LlamaAttention"), GatedMLP("LlamaMLP")),
)
