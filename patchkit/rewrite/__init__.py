"""Rewriting of upstream source: text in, text out. Imports neither torch nor transformers."""
