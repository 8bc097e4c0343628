"""The rules of the rewriter, one file each: see :mod:`patchkit.rewrite.rules.rule` for what a rule is."""
