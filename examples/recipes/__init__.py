"""Short programs, one for each way to train: ``python -m examples.recipes.loop``. Each runs offline, in seconds.

They train a small random model. For one of yours, replace ``small()`` by ``from_pretrained``.
"""
