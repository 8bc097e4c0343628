"""The proof: what is rewritten on which transformers release, and whether it is equal. Imports no torch by itself."""
