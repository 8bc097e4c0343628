"""The diffs of a class: what upstream changed, and what rewriting changes; and the method alone, before and after."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic_releases import SMALL_LLAMA, folder_release, path_of

from patchkit.arch.registry import find
from patchkit.check.static.changes import rewrite_change, rewritten_method, upstream_change
from patchkit.check.static.findings import Finding, findings_of
from patchkit.upstream.release import Release

pytest_plugins = ["proof_fixtures"]
pytestmark = pytest.mark.usefixtures("cache")

PATH = path_of("llama")
ATTENTION, MLP = SMALL_LLAMA.split("\n\n\n")
FORWARD = MLP.partition("\n")[2]
BODY = "        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))\n"
REWRITTEN = "        return self.apply_mlp(x)\n"
ELSEWHERE = "transformers/models/common/modeling_common.py"
HEIR = {
    PATH: f"from ..common.modeling_common import Common\n\n\n{ATTENTION}\n\n\nclass LlamaMLP(Common):\n    pass\n",
    ELSEWHERE: MLP.replace("LlamaMLP", "Common"),
}

BEFORE = "import torch\nfrom torch import nn\n\n\ndef first():\n    pass\n\n\n"
AFTER = "\n\nclass Last:\n    def forward(self, x):\n        return x\n"
FILES = {
    # the file of a release: what stands before and after the method
    "alone": {PATH: MLP},
    "the last": {PATH: SMALL_LLAMA},
    "the first": {PATH: f"{MLP}{AFTER}"},
    "in between": {PATH: f"{BEFORE}{MLP}{AFTER}"},
    "behind another method": {PATH: f"{BEFORE}{MLP.replace(FORWARD, f'    def other(self):{AFTER[:0]} pass{chr(10)}{FORWARD}')}{AFTER}"},
    "before another method": {PATH: f"{BEFORE}{MLP}\n    def other(self):\n        pass\n{AFTER}"},
    "without a line end": {PATH: MLP.rstrip("\n")},
    "of a base elsewhere": HEIR,
}  # fmt: skip


def release_of(folder: Path, version: str, files: dict[str, str], end: str = "\n") -> Release:
    release = folder_release(folder, version, {})
    for path, text in files.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(text.replace("\n", end).encode())
    return release


def mlp_of(release: Release) -> Finding:
    return next(one for one in findings_of(release, find("llama")) if one.class_name == "LlamaMLP")


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=ascii)
@pytest.mark.parametrize("case", FILES)
def test_the_method_alone(case: str, end: str, tmp_path: Path) -> None:
    release = release_of(tmp_path, "5.91.0", FILES[case], end)
    found = rewritten_method(mlp_of(release), release)
    assert found is not None
    old, new = (text.replace("\r\n", "\n").rstrip("\n") for text in found)
    assert old == FORWARD.rstrip("\n")
    assert new == FORWARD.replace(BODY, REWRITTEN).rstrip("\n")


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=ascii)
@pytest.mark.parametrize("case", FILES)
def test_what_rewriting_changes(case: str, end: str, tmp_path: Path) -> None:
    release = release_of(tmp_path, "5.91.0", FILES[case], end)
    path = ELSEWHERE if case == "of a base elsewhere" else PATH
    lines = list(rewrite_change(mlp_of(release), release))
    assert lines[:2] == [f"--- transformers-5.91.0/{path}", f"+++ patchkit/{path}"]
    assert [line for line in lines[2:] if line[0] in "-+"] == [f"-{BODY.rstrip()}", f"+{REWRITTEN.rstrip()}"]
    assert not any(line.endswith(("\n", "\r")) for line in lines)


UNCHANGED = {
    "no rule knows it": {PATH: MLP.replace(BODY, "        return x\n")},
    "no class": {PATH: ATTENTION},
    "no Python": {PATH: "class LlamaMLP\n"},
    "no forward": {PATH: "class LlamaMLP:\n    pass\n"},
    "no file": {},
}


@pytest.mark.parametrize("case", UNCHANGED)
def test_nothing_is_rewritten(case: str, tmp_path: Path) -> None:
    release = release_of(tmp_path, "5.91.0", UNCHANGED[case])
    finding = mlp_of(release)
    assert list(rewrite_change(finding, release)) == []
    found = rewritten_method(finding, release)
    if case == "no rule knows it":
        assert found is not None
        assert found[0] == found[1] == FORWARD.replace(BODY, "        return x\n")
    else:
        assert found is None


CHANGES = {
    # before, after: the two paths, the lines taken away and added
    "nothing": ({PATH: SMALL_LLAMA}, {PATH: SMALL_LLAMA}, None, [], []),
    "another class": ({PATH: SMALL_LLAMA}, {PATH: f"{BEFORE}{ATTENTION.replace('key', 'k')}\n\n\n{MLP}"}, None, [], []),
    "its line ends": ({PATH: MLP}, {PATH: MLP.replace("\n", "\r\n")}, None, [], []),
    "one line": ({PATH: MLP}, {PATH: MLP.replace(BODY, REWRITTEN)}, (PATH, PATH), [BODY], [REWRITTEN]),
    "it is new": ({PATH: ATTENTION}, {PATH: MLP}, (PATH, PATH), [], MLP.splitlines(keepends=True)),
    "it is gone": ({PATH: MLP}, {PATH: ATTENTION}, (PATH, PATH), MLP.splitlines(keepends=True), []),
    "the file is gone": ({PATH: MLP}, {}, (PATH, PATH), MLP.splitlines(keepends=True), []),
    "another file": (
        {PATH: MLP}, HEIR, (PATH, ELSEWHERE), ["class LlamaMLP(nn.Module):\n"], ["class Common(nn.Module):\n"],
    ),
    "back from another file": (
        HEIR, {PATH: MLP}, (ELSEWHERE, PATH), ["class Common(nn.Module):\n"], ["class LlamaMLP(nn.Module):\n"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANGES)
def test_what_upstream_changed(case: str, tmp_path: Path) -> None:
    before, after, paths, gone, new = CHANGES[case]
    old = release_of(tmp_path / "old", "5.90.0", before)
    release = release_of(tmp_path / "new", "5.91.0", after)
    lines = list(upstream_change(mlp_of(release), release, old))
    if paths is None:
        assert lines == []
        return
    assert lines[:2] == [f"--- transformers-5.90.0/{paths[0]}", f"+++ transformers-5.91.0/{paths[1]}"]
    assert [line[1:] for line in lines[2:] if line[0] == "-"] == [line.rstrip("\n") for line in gone]
    assert [line[1:] for line in lines[2:] if line[0] == "+"] == [line.rstrip("\n") for line in new]
