"""``patchkit cache``: what is shown, and what is deleted, also where the variable names a person's own folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from patchkit.cache.storage import prepare_cache
from patchkit.cli.main import app


def test_what_is_there_is_shown_and_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATCHKIT_CACHE", str(tmp_path / "cache"))
    root = prepare_cache()
    (root / "sources").mkdir()
    for name in ("transformers-5.2.0.zip", "mine.txt"):
        (root / "sources" / name).write_bytes(b"x" * 2**20)
    assert "sources" in CliRunner().invoke(app, ["cache"]).stdout
    result = CliRunner().invoke(app, ["cache", "--clear", "all"])
    assert result.exit_code == 0
    first, second = result.stdout.splitlines()
    assert first.startswith("deleted 1.0 MiB from ")
    assert second.endswith("mine.txt")
    assert [path.name for path in (root / "sources").iterdir()] == ["mine.txt"]


def test_a_home_directory_is_refused_and_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATCHKIT_CACHE", str(tmp_path))
    for name in ("thesis.tex", "sources/program.c", "ledger.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    result = CliRunner().invoke(app, ["cache", "--clear", "all"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "is not a cache of patchkit" in result.stderr
    assert "nothing was deleted" in result.stderr
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {"thesis.tex", "sources/program.c", "ledger.jsonl"}
