"""A cache of its own for every test here, and a pip that knows only the index that the test gives it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from patchkit.upstream import index, release


@pytest.fixture(autouse=True)
def own_cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache directory of the test; tests of real wheels share the user's."""
    folder = tmp_path / "cache"
    if "wheels" not in request.keywords:
        monkeypatch.setenv("PATCHKIT_CACHE", str(folder))
    for remembered in (index._settings, index._links, release.archive_of):
        remembered.cache_clear()
    return folder


@pytest.fixture
def use_index(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes pip use one index and nothing else."""

    def use(address: str) -> None:
        for name in list(os.environ):
            if name.startswith("PIP_"):
                monkeypatch.delenv(name)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", address)

    return use
