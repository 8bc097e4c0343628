"""What is to become of each module of a model: one look at all of them, and one plan for each that may be patched."""
