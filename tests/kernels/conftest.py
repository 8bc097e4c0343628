"""Shared by the kernels' tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from patchkit_kernels.ops import dropout_once


@pytest.fixture
def empty_triton_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a test really compiles."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.fixture
def masks_in_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of inputs that are larger than a test's are kept."""
    monkeypatch.setattr(dropout_once, "UNPACKED", 0)
