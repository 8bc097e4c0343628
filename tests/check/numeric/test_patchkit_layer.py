"""What an environment's Python does at its start: folders below are added behind its own, and some packages hidden."""

from __future__ import annotations

import importlib
import importlib.util
import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest

import patchkit.check.numeric

LAYER = Path(patchkit.check.numeric.__file__).with_name("patchkit_layer.py")


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages of its own, with two folders below it."""
    for folder, names in {
        "own": ["pk_shared"],
        "below1": ["pk_shared", "pk_one"],
        "below2": ["pk_two", "pk_four"],
    }.items():
        for name in names:
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / f"{name}.py").write_text(f"FROM = {folder!r}\n")
    (tmp_path / "below2" / "more.pth").write_text(f"{tmp_path / 'linked'}\n")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "pk_three.py").write_text("FROM = 'linked'\n")
    shutil.copy(LAYER, tmp_path / "own" / "layer.py")
    layer = {"below": [str(tmp_path / "below1"), str(tmp_path / "below2")], "hidden": ["pk_two", "pk_absent"]}
    (tmp_path / "own" / "patchkit_layer.json").write_text(json.dumps(layer))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "own"), *sys.path])
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    importlib.invalidate_caches()
    runpy.run_path(str(tmp_path / "own" / "layer.py"))
    return tmp_path


def found_in(name: str) -> str:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent.name


@pytest.mark.parametrize(
    ("name", "folder"), [("pk_shared", "own"), ("pk_one", "below1"), ("pk_four", "below2"), ("pk_three", "linked")]
)
def test_where_a_package_is_found(environment: Path, name: str, folder: str) -> None:
    """Its own first, then those below in order, with what their ``.pth`` files name."""
    assert found_in(name) == folder


@pytest.mark.parametrize("name", ["pk_two", "pk_absent"])
def test_what_is_hidden_is_not_there(environment: Path, name: str) -> None:
    assert sys.modules[name] is None
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(name)
