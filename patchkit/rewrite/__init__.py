"""Rewriting of upstream source: text in, text out. Imports neither torch nor transformers."""

REWRITE_VERSION = 1
"""What the rewriter does, as a number: raise it whenever the same source may be rewritten to other text.

Recorded proofs are of the text that the rewriter made, so a proof of another number counts for nothing.
"""
