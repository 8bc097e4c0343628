"""The accelerator that tests run on, if there is one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

DEVICE = next((name for name in ("cuda", "xpu") if getattr(torch, name).is_available()), "none")
MODULE: Any = torch.get_device_module(DEVICE) if DEVICE != "none" else None

needs_device = [pytest.mark.gpu, pytest.mark.skipif(DEVICE == "none", reason="no CUDA, ROCm or XPU device")]
