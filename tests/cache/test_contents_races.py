"""Another process trims the same cache: whatever it deletes first, the rest is deleted all the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from patchkit.cache import contents as cache
from patchkit.cache import storage
from patchkit.cache.storage import cache_directory

KINDS = {
    # what is deleted, and a second of its kind
    "an unfinished file": [
        "sources/.transformers-5.2.0.zip.abcd_123.tmp",
        "sources/.transformers-5.3.0.zip.abcd_123.tmp",
    ],
    "a folder of a fetch": ["sources/.fetch-abcd_123/a.whl", "sources/.fetch-abcd_124/a.whl"],
    "what is used least": ["sources/transformers-5.2.0.zip", "sources/transformers-5.3.0.zip"],
    "an environment": [
        "environments/5.22.2-0123456789ab.building/x.py",
        "environments/5.22.3-0123456789ab.building/x.py",
    ],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError])
def test_what_cannot_be_deleted_stops_nothing(kind, first, error, monkeypatch):
    storage.prepare_cache()
    for name in KINDS[kind]:
        path = cache_directory() / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 10)
    for path in [*cache_directory().rglob("*")]:
        if path.name != storage.TAG:
            os.utime(path, (1e9, 1e9))
    monkeypatch.setitem(cache.LIMITS, cache.SOURCES, 0)
    protected = (cache_directory() / KINDS[kind][first]).relative_to(cache_directory()).parts[:2]

    def failing(real):
        def delete(path, *args, **kwargs):
            if Path(path).is_absolute() and Path(path).relative_to(cache_directory()).parts[:2] == protected:
                raise error(path)
            return real(path, *args, **kwargs)

        return delete

    monkeypatch.setattr(Path, "unlink", failing(Path.unlink))
    monkeypatch.setattr(cache.shutil, "rmtree", failing(cache.shutil.rmtree))
    cache.trim(cache.SOURCES)
    left = [(cache_directory() / name).exists() for name in KINDS[kind]]
    assert left == [number == first for number in range(2)]
