"""patchkit: exact LoRA kernels for transformers models."""
