"""Tiny models of any configuration class of transformers, of a plugin or of remote code, and inputs for them.

A *ladder* leads from a configuration to a model. Its lowest rung makes every size small that goes by one of the names
that configurations use. The next rungs change one or two things about that, mechanically. Then what an error says
about two sizes is followed. What remains is in a table of hints. A rung holds if the model is made, runs on tiny
inputs, gives finite outputs that differ from each other, and has a backward pass.
"""
