"""Shared by the kernels' tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def empty_triton_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a test really compiles."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
