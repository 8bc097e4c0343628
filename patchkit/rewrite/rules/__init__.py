"""The rules of the rewriter, one file each."""
