"""What the rewritten code calls: ``apply_qkv``, ``apply_o``, ``apply_mlp``, and the choice of level per call."""
