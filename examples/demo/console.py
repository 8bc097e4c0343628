"""The demo's console: what is going on, without the libraries' own chatter."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console


def silence_libraries() -> None:
    """Hide the libraries' progress bars and notices, which say nothing about this demo; call before importing them."""
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["TQDM_DISABLE"] = "1"
    for library in ("bitsandbytes", "huggingface_hub", "kernels", "peft"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    for library in ("bitsandbytes", "gguf", "peft", "torch", "transformers"):
        warnings.filterwarnings("ignore", module=library)


@contextmanager
def phase(console: Console, title: str) -> Iterator[None]:
    """Show what is going on, and how long it took when it is over."""
    start = time.perf_counter()
    with console.status(f"{title} ..."):
        yield
    console.print(f"[green]done[/]  {title} [dim]({time.perf_counter() - start:.1f} s)[/]", soft_wrap=True)
