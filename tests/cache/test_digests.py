"""Hashes of sources: every file counts but those that are left out."""

from __future__ import annotations

import pytest

from patchkit.cache.digests import digest, sources_digest


def test_a_digest_is_of_the_whole():
    found = [digest(data) for data in ([], {}, "", [1], ["1"], {"a": 1}, {"a": 2}, [["a", 1]])]
    assert len(set(found)) == len(found)
    assert digest({"a": [1, "b"]}) == digest({"a": [1, "b"]})


@pytest.mark.parametrize("name", ["numeric/a.py", "a.py", "cli.py", "results/b.py"])
def test_what_is_left_out_does_not_count(name, tmp_path):
    """And nothing else is."""
    for path in ("a.py", "cli/a.py", "numeric/a.py", "results/a.py", "cli.py", "notes.txt"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("1", encoding="utf-8")
    before = sources_digest(tmp_path, without=("cli", "results/a.py"))
    for path in ("cli/a.py", "results/a.py", "notes.txt"):
        (tmp_path / path).write_text("2", encoding="utf-8")
    assert sources_digest(tmp_path, without=("cli", "results/a.py")) == before
    (tmp_path / name).write_text("2", encoding="utf-8")
    assert sources_digest(tmp_path, without=("cli", "results/a.py")) != before


def test_a_file_that_is_renamed_is_another(tmp_path):
    (tmp_path / "a.py").write_text("1", encoding="utf-8")
    before = sources_digest(tmp_path)
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert sources_digest(tmp_path) != before
