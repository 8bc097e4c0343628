"""Architectures as data: one small declarative file each, and the registry that finds them."""
