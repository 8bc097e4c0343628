"""Descriptions of blocks, derived from the source of their classes. Imports neither torch nor transformers."""
