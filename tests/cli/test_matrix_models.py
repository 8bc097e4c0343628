"""``patchkit matrix --models``: every model beside the architectures, kept in a file for the next time."""

from __future__ import annotations

import json

import pytest
from synthetic_releases import SMALL_LLAMA, folder_release, path_of, records_of
from typer.testing import CliRunner

from patchkit.cli import matrix
from patchkit.cli.main import app


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The command on one release with one model."""
    monkeypatch.setenv("PATCHKIT_CACHE", str(tmp_path / "cache"))
    release = folder_release(tmp_path / "release", "5.1.0", {path_of("llama"): SMALL_LLAMA})
    records = records_of(release, "llama")
    monkeypatch.setattr(matrix, "record", lambda *_: (records, [release]))

    def run(*options):
        places = ["--output", str(tmp_path / "compat_matrix.md"), "--records", str(tmp_path / "records.jsonl")]
        return CliRunner().invoke(app, ["matrix", *places, *options])

    return run


def test_models_are_read_on_request_and_remembered(run, tmp_path):
    assert run().exit_code == 0
    assert "## Every model" not in (tmp_path / "compat_matrix.md").read_text(encoding="utf-8")
    assert not (tmp_path / "compat_models.jsonl").exists()
    result = run("--models", "--html", str(tmp_path / "matrix.html"))
    assert result.exit_code == 0, result.output
    assert "1 models × 1" in result.output
    (line,) = (tmp_path / "compat_models.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line) == {"model": "llama", "cell": "○○○", "releases": ["5.1.0"]}
    page = (tmp_path / "matrix.html").read_text(encoding="utf-8")
    (family,) = json.loads(page.partition('id="data">')[2].partition("</script>")[0])["models"]["families"]
    assert family["models"] == [{"name": "llama", "cells": ["○○○"], "details": [0]}]
    assert run().exit_code == 0
    assert "| llama | ○○○ | 5.1.0 |  |" in (tmp_path / "compat_matrix.md").read_text(encoding="utf-8")


def test_a_damaged_file_of_models_is_an_error_before_anything_is_written(run, tmp_path):
    (tmp_path / "compat_models.jsonl").write_text("no line\n", encoding="utf-8")
    result = run()
    assert result.exit_code != 0
    assert "compat_models.jsonl:1 is damaged" in result.output
    assert not (tmp_path / "compat_matrix.md").exists()
