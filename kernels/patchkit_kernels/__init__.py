"""Tensors in, tensors out: no modules, no PEFT, no transformers."""
