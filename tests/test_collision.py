"""Another package of the name ``patchkit`` is named where it is in the way."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from patchkit.cli.env import Facts
from patchkit.collision import message, other_package

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ([], ""),
        (["patchkit", "patchkit_lora-0.1.0.dist-info", "patchkit_acme-1.0.dist-info"], ""),
        (["patchkit", "patchkit_lora-0.1.0.dist-info", "patchkit-0.2.0.dist-info"], "patchkit 0.2.0"),
        (["patchkit-0.2.0.egg-info"], "patchkit 0.2.0"),
        (["patchkit-notes", "patchkit-0.2.0"], ""),
    ],
    ids=str,
)
def test_what_is_installed_beside_it(names, found, tmp_path):
    for name in names:
        (tmp_path / name).mkdir()
    assert other_package(str(tmp_path)) == found


def test_a_folder_that_cannot_be_listed(tmp_path):
    assert other_package(str(tmp_path / "archive.zip")) == ""


def test_this_checkout_is_alone():
    assert other_package() == ""


@pytest.mark.parametrize("other", [True, False])
def test_the_first_import_warns(other, tmp_path):
    """Of a copy, which stands where pip would put it."""
    shutil.copytree(ROOT / "patchkit", tmp_path / "patchkit", ignore=shutil.ignore_patterns("*.jsonl", "__pycache__"))
    if other:
        (tmp_path / "patchkit-0.2.0.dist-info").mkdir()
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import patchkit; print(patchkit.__file__)"
    result = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.startswith(str(tmp_path))
    assert ("pip uninstall -y patchkit patchkit-lora" in result.stderr) == other


def test_env_says_it(monkeypatch):
    monkeypatch.setattr("patchkit.cli.env.other_package", lambda: "patchkit 0.2.0")
    assert message("patchkit 0.2.0") in Facts.read().as_markdown()
    monkeypatch.setattr("patchkit.cli.env.other_package", lambda: "")
    assert "uninstall" not in Facts.read().as_markdown()
