"""The fused functions that the runtime calls, each looked up here at every call.

So there is one place where they are counted, and where a test puts a fault.
"""

from patchkit_kernels.lora.cross_entropy import lora_cross_entropy
from patchkit_kernels.lora.embedding import lora_embedding
from patchkit_kernels.lora.gated_mlp import lora_gated_mlp
from patchkit_kernels.lora.linear import lora_linear, lora_projections
from patchkit_kernels.lora.mlp import lora_mlp
from patchkit_kernels.lora.stack import lora_stack

__all__ = [
    "lora_cross_entropy",
    "lora_embedding",
    "lora_gated_mlp",
    "lora_linear",
    "lora_mlp",
    "lora_projections",
    "lora_stack",
]
