"""The accelerator that tests run on, if there is one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

DEVICE = next((name for name in ("cuda", "xpu") if getattr(torch, name).is_available()), "none")
MODULE: Any = torch.get_device_module(DEVICE) if DEVICE != "none" else None

needs_device = [pytest.mark.gpu, pytest.mark.skipif(DEVICE == "none", reason="no CUDA, ROCm or XPU device")]


@contextmanager
def without_waiting() -> Iterator[None]:
    """Make anything that waits for the device raise, where torch can tell."""
    if DEVICE != "cuda":
        pytest.skip("torch notes what waits for the device on CUDA and ROCm only")
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
