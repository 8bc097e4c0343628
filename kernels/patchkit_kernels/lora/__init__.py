"""Autograd functions made of products: projections with LoRA adapters, gated MLPs, embeddings."""
