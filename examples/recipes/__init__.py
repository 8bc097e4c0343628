"""Short programs, one for each way to train: ``python -m examples.recipes.loop``. Each runs offline, in seconds.

They train a small random model. To train your own, put ``from_pretrained`` in place of ``small()``.
"""
