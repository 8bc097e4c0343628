"""Every model of a release in brief: what a cell says of its classes, and what is remembered of a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from synthetic_releases import SMALL_LLAMA, folder_release

from patchkit.cache.storage import OUTCOMES, cache_directory
from patchkit.check.static import models
from patchkit.check.static.models import ClassInBrief, ModelInBrief, models_of, sweep_models
from patchkit.errors import ReleaseError
from patchkit.upstream.release import Release

pytestmark = pytest.mark.usefixtures("own_cache")

BETWEEN = SMALL_LLAMA.replace("        value =", "        other(self)\n        value =")
NOTHING = "from torch import nn\n\n\nclass Norm(nn.Module):\n    def forward(self, x):\n        return x\n"


def brief(**parts: str) -> ClassInBrief:
    return ClassInBrief("A", dict(parts))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("classes", "cell"),
    [
        ((), "···"),
        ((brief(qkv="○", o="○"),), "○○·"),
        ((brief(qkv="○", o="○"), brief(mlp="○")), "○○○"),
        ((brief(qkv="◇", o="?"), brief(mlp="○")), "◇?○"),
        ((brief(mlp="○"), brief(mlp="?")), "··◇"),
        ((brief(mlp="?"), brief(mlp="?")), "··?"),
        ((brief(mlp="◇"), brief(mlp="○")), "··◇"),
    ],
)
def test_a_cell_is_of_all_classes(classes: tuple[ClassInBrief, ...], cell: str) -> None:
    assert ModelInBrief("acme", classes).cell == cell


def path_of(model: str) -> str:
    return f"transformers/models/{model}/modeling_{model}.py"


def release_of(folder: Path, version: str = "5.1.0", **texts: str) -> Release:
    return folder_release(folder, version, {path_of(name): text for name, text in texts.items()})


def test_models_of_a_release(tmp_path: Path) -> None:
    release = release_of(tmp_path, llama=SMALL_LLAMA, acme=BETWEEN, odd=NOTHING, broken="class A(\n", empty="")
    found = {one.model: one for one in models_of(release)}
    assert list(found) == ["acme", "broken", "empty", "llama", "odd"]
    assert {name: one.cell for name, one in found.items()} == {
        "acme": "◇○○", "broken": "···", "empty": "···", "llama": "○○○", "odd": "···",
    }  # fmt: skip
    assert [one.name for one in found["llama"].classes] == ["LlamaAttention", "LlamaMLP"]
    assert [one.why for one in found["llama"].classes] == ["", ""]
    assert found["acme"].classes[0].why.startswith("qkv: ")


def test_two_files_of_a_folder_are_two_models(tmp_path: Path) -> None:
    folder = "transformers/models/llama"
    files = {f"{folder}/modeling_llama.py": SMALL_LLAMA, f"{folder}/modeling_llama_text.py": NOTHING}
    assert [one.model for one in models_of(folder_release(tmp_path, "5.1.0", files))] == ["llama", "llama/llama_text"]


def test_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever release and folder it stands."""
    first = models_of(release_of(tmp_path / "1", llama=SMALL_LLAMA, odd=NOTHING))
    scanned = []
    real = models.scan_text
    monkeypatch.setattr(models, "scan_text", lambda text, path: scanned.append(path) or real(text, path))
    second = models_of(release_of(tmp_path / "2", "5.2.0", other=SMALL_LLAMA, odd=NOTHING, new=BETWEEN))
    assert scanned == [path_of("new")]
    assert [one.classes for one in second if one.model == "other"] == [
        one.classes for one in first if one.model == "llama"
    ]


def test_what_other_code_found_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = release_of(tmp_path, llama=SMALL_LLAMA)
    models_of(release)
    monkeypatch.setattr(models, "_readers", lambda: "other rules")
    monkeypatch.setattr(models, "scan_text", lambda text, path: [])
    assert [one.cell for one in models_of(release)] == ["···"]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"classes": 1, "others": 0}', '{"classes": [["A", {"mlp": "x"}, ""]], "others": 0}',
                '{"classes": [["A", {"head": "○"}, ""]], "others": 0}', '{"classes": []}'],
)  # fmt: skip
def test_a_damaged_file_of_the_cache_is_made_anew(content: str, tmp_path: Path) -> None:
    release = release_of(tmp_path, llama=SMALL_LLAMA)
    expected = models_of(release)
    (file,) = (cache_directory() / OUTCOMES).rglob("*.json")
    file.write_text(content, encoding="utf-8")
    assert models_of(release) == expected
    assert json.loads(file.read_text(encoding="utf-8"))["others"] == 0


def test_releases_are_read_in_processes(tmp_path: Path) -> None:
    releases = [release_of(tmp_path / "1", llama=SMALL_LLAMA), release_of(tmp_path / "2", "5.2.0", llama=BETWEEN)]
    told: list[tuple[int, int]] = []
    found = sweep_models(releases, processes=2, progress=lambda done, of: told.append((done, of)))
    assert {release: [one.cell for one in own] for release, own in found.items()} == {
        "5.1.0": ["○○○"],
        "5.2.0": ["◇○○"],
    }
    assert told == [(0, 2), (1, 2), (2, 2)]


def test_a_release_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=r"5\.1\.0"):
        sweep_models([Release("5.1.0", tmp_path / "none.zip", "wheel")], processes=1)
