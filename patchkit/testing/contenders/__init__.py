"""Ways to train with LoRA, side by side: what each computes, counts, and takes on this machine.

A *cell* is what is measured: a shape, a number of tokens, a rank, a precision. A *contender* is a way to train it, in a
process of its own: some patch globally. In each *round* every contender gives one sample, so that a machine that slows
down slows all of them.
"""
