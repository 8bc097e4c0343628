"""Every model of a release in brief: what a cell says of its classes, and what is remembered of a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from synthetic_releases import SMALL_LLAMA, folder_release

from patchkit.cache.storage import OUTCOMES, cache_directory
from patchkit.check.static import models
from patchkit.check.static.models import ClassInBrief, ModelInBrief, models_of, sweep_models
from patchkit.errors import ReleaseError, WorkerLostError
from patchkit.processes.workers import WorkerKind
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


ODD = """from torch import nn


class Odd(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.two(self.one(x)) + self.one(x)


class Odder(Odd):
    def forward(self, x):
        return self.two(x)
"""


def test_classes_that_are_no_blocks_are_counted(tmp_path: Path) -> None:
    """Those that call a linear layer; and again when they are read from the cache. A text that is none has no class."""
    for _ in range(2):
        found = {one.model: one for one in models_of(release_of(tmp_path, odd=ODD, norm=NOTHING, broken="class A(\n"))}
        assert {name: (one.others, one.classes) for name, one in found.items()} == {
            "odd": (found["odd"].others, ()), "norm": (0, ()), "broken": (0, ()),
        }  # fmt: skip
        assert found["odd"].others > 0


def test_what_is_left_is_told_in_one_line(tmp_path: Path) -> None:
    """Part by part, and the same from the cache."""
    text = BETWEEN.replace("self.o_proj(", "self.o_proj(1 * ")
    for _ in range(2):
        (found,) = models_of(release_of(tmp_path, acme=text))
        attention, mlp = found.classes
        assert attention.why.startswith("qkv: ")
        assert "\n" not in attention.why
        assert (mlp.why, dict(mlp.parts)) == ("", {"mlp": "○"})
        assert attention.parts["qkv"] == "◇"


def test_a_file_that_is_no_text_says_nothing_of_the_others(tmp_path: Path) -> None:
    release = release_of(tmp_path, a=SMALL_LLAMA, llama=SMALL_LLAMA, z=SMALL_LLAMA)
    (release.location / path_of("llama")).write_bytes(b"\xff\xfe")
    assert [(one.model, one.cell) for one in models_of(release)] == [("a", "○○○"), ("llama", "···"), ("z", "○○○")]


def test_without_a_cache_it_takes_longer(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_cache.parent.mkdir(parents=True, exist_ok=True)
    own_cache.write_text("a file where the folder should be")
    told = []
    monkeypatch.setattr(models, "warn_once", lambda key, message: told.append((key, message)))
    assert [one.cell for one in models_of(release_of(tmp_path / "release", llama=SMALL_LLAMA))] == ["○○○"]
    ((key, message),) = told
    assert key == "outcomes"
    assert message.startswith("the cache is not used, which takes longer: ")


@pytest.mark.parametrize(("processes", "cores", "jobs"), [(None, 7, 7), (None, None, 1), (3, 7, 3)])
def test_how_many_processes_read(
    processes: int | None, cores: int | None, jobs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def ask_all(kind: WorkerKind, requests: list[bytes], jobs: int) -> Iterator[tuple[int, bytes]]:
        asked.append((kind.function, kind.like_this, jobs))
        yield from ((index, models.answer(request)) for index, request in enumerate(requests))

    monkeypatch.setattr(models, "ask_all", ask_all)
    monkeypatch.setattr(models.os, "cpu_count", lambda: cores)
    sweep_models([release_of(tmp_path, llama=SMALL_LLAMA)], processes=processes)
    assert asked == [(models.ANSWER, True, jobs)]


def test_a_process_that_is_lost_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "ask_all", lambda *_: iter([(0, WorkerLostError("it was killed"))]))
    said = r"^transformers 5\.1\.0: the process that read it died: it was killed$"
    with pytest.raises(ReleaseError, match=said):
        sweep_models([release_of(tmp_path, llama=SMALL_LLAMA)])


def test_releases_are_told_in_the_order_in_which_they_were_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever is done first; each with its own models."""
    releases = [release_of(tmp_path / "1", llama=SMALL_LLAMA), release_of(tmp_path / "2", "5.2.0", acme=SMALL_LLAMA)]

    def ask_all(kind: WorkerKind, requests: list[bytes], jobs: int) -> Iterator[tuple[int, bytes]]:
        yield from ((index, models.answer(requests[index])) for index in (1, 0))

    monkeypatch.setattr(models, "ask_all", ask_all)
    found = sweep_models(releases)
    assert [(release, [one.model for one in own]) for release, own in found.items()] == [
        ("5.1.0", ["llama"]), ("5.2.0", ["acme"]),
    ]  # fmt: skip
