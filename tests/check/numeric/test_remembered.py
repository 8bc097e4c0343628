"""What a scan remembers: only what was found in this very setting, and only from files that nobody else wrote."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from patchkit.arch.registry import architectures
from patchkit.cache.storage import OUTCOMES, cache_directory
from patchkit.check.numeric import remembered
from patchkit.check.numeric.environments import Environment
from patchkit.check.numeric.model_types import STATES, TypeOutcome
from patchkit.check.numeric.remembered import Remembered, setting_of
from patchkit.errors import PatchkitWarning

LLAMA = TypeOutcome("llama", "causal", "verified", "", "L", 14, 0, 0, ("C mlp",), "float32", 3e-7, 1.0)

pytestmark = pytest.mark.usefixtures("own_cache")


def files():
    return sorted((cache_directory() / OUTCOMES).rglob("*.json"))


@pytest.mark.parametrize("state", STATES)
def test_an_outcome_is_remembered_unless_it_is_a_difference(state):
    outcome = replace(LLAMA, state=state)
    Remembered("one").keep(outcome)
    found = Remembered("one").outcome("llama", "causal")
    assert found == (outcome if state != "different" else None)


@pytest.mark.parametrize(
    ("setting", "model_type", "head"),
    [("other", "llama", "causal"), ("one", "llama4", "causal"), ("one", "llama", "base")],
)
def test_an_outcome_is_of_one_setting_type_and_head(setting, model_type, head):
    Remembered("one").keep(LLAMA)
    assert Remembered(setting).outcome(model_type, head) is None


def test_types_are_remembered_by_heads():
    Remembered("one").keep_types({"causal": ["llama"], "base": ["sam"]})
    assert Remembered("one").types(["causal", "base"]) == {"causal": ["llama"], "base": ["sam"]}
    assert Remembered("one").types(["causal"]) is None
    assert Remembered("two").types(["causal", "base"]) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        json.dumps(replace(LLAMA, model_type="llama4").to_json()).encode(),
        json.dumps(replace(LLAMA, head="base").to_json()).encode(),
        json.dumps(LLAMA.to_json() | {"state": "fine"}).encode(),
        json.dumps(LLAMA.to_json() | {"more": 1}).encode(),
        b"[" * 100_000,
    ],
    ids=range(10),
)
def test_what_is_no_outcome_of_this_type_is_not_believed(content):
    Remembered("one").keep(LLAMA)
    (file,) = files()
    file.write_bytes(content)
    assert Remembered("one").outcome("llama", "causal") is None


def test_types_that_are_none_are_not_believed():
    Remembered("one").keep_types({"causal": ["llama"]})
    (file,) = files()
    for content in ("[]", "1", '{"base": []}', '{"causal": 1}'):
        file.write_text(content, encoding="utf-8")
        assert Remembered("one").types(["causal"]) is None


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="on Windows a profile is its user's alone")
def test_what_others_may_write_is_not_believed():
    Remembered("one").keep(LLAMA)
    (file,) = files()
    for folder in (cache_directory(), *file.relative_to(cache_directory()).parents[:-1]):
        (cache_directory() / folder).chmod(0o755)
    file.chmod(0o666)
    with pytest.warns(PatchkitWarning, match="may be written by everybody"):
        assert Remembered("one").outcome("llama", "causal") is None


# ---- the setting


@pytest.fixture
def environment(tmp_path):
    """An environment of its own: a folder with a transformers and a peft of one file each."""
    for package in ("transformers", "peft"):
        (tmp_path / "lib" / package).mkdir(parents=True)
        (tmp_path / "lib" / package / "a.py").write_text("1", encoding="utf-8")
    versions = {"transformers": "5.23.0", "torch": "2.13.0", "peft": "0.21.2", "python": "3.11.7"}
    return Environment(Path("python"), versions, tmp_path / "lib" / "transformers", tmp_path)


def other_version(environment, patch):
    return replace(environment, versions=environment.versions | {"torch": "2.13.1"})


def other_file(package, name, text):
    def change(environment, patch):
        path = environment.place.parent / package / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return environment

    return change


def other_attribute(module, name, value):
    def change(environment, patch):
        patch.setattr(module, name, value)
        return environment

    return change


def other_variable(name):
    def change(environment, patch):
        patch.setenv(name, "3")
        return environment

    return change


def other_plugin(environment, patch):
    known = architectures()
    patch.setattr(remembered, "architectures", lambda: {**known, "acme": replace(known["llama"], name="acme")})
    return environment


CHANGES = {
    "a version": other_version,
    "a line of transformers": other_file("transformers", "a.py", "2"),
    "another file of transformers": other_file("transformers", "b.py", "1"),
    "a file of a model": other_file("transformers/models", "b.py", "1"),
    "a line of peft": other_file("peft", "a.py", "2"),
    "a package": other_attribute(
        remembered.importlib.metadata,
        "distributions",
        lambda: [SimpleNamespace(metadata={"Name": "timm"}, version="1")],
    ),
    "a package of the environment": other_file("timm-1.0.dist-info", "METADATA", "x"),
    "the machine": other_attribute(remembered.platform, "machine", lambda: "riscv64"),
    "python": other_attribute(remembered.sys, "version", "3.15"),
    "a number of threads": other_variable("OMP_NUM_THREADS"),
    "vector instructions": other_variable("ATEN_CPU_CAPABILITY"),
    "a plugin": other_plugin,
    "what is kept": other_attribute(remembered, "_LAYOUT", -1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_setting_is_everything_that_an_outcome_depends_on(change, environment, monkeypatch):
    for name in ("OMP_NUM_THREADS", "ATEN_CPU_CAPABILITY"):
        monkeypatch.delenv(name, raising=False)
    before = setting_of(environment)
    assert setting_of(environment) == before
    assert setting_of(CHANGES[change](environment, monkeypatch)) != before


def test_the_rooms_that_only_show_are_there():
    root = Path(remembered.patchkit.__file__).parent
    assert [name for name in remembered._SHOWING if not (root / name).exists()] == []
