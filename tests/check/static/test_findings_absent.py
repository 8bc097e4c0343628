"""What a release has and cannot be examined is not what it does not have: each way in which a class is not found."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic_releases import SMALL_LLAMA, folder_release, path_of

from patchkit.arch.registry import find
from patchkit.check.static import findings as static
from patchkit.check.static.findings import findings_of, findings_of_lost
from patchkit.upstream.release import Release

pytest_plugins = ["proof_fixtures"]
pytestmark = pytest.mark.usefixtures("cache")

DEEP = "not " * 900 + "x"
MLP = "class LlamaMLP"
ABSENT = {
    # what stands in the file: which parts are absent, of those that are not rewritten
    "no file": (None, {"qkv", "o", "mlp"}),
    "an empty file": ("", {"qkv", "o", "mlp"}),
    "another class": (SMALL_LLAMA.replace(MLP, "class OtherMLP"), {"mlp"}),
    "no UTF-8": (SMALL_LLAMA.encode() + b"# \xff\n", set()),
    "no Python": (f"{SMALL_LLAMA}\nclass = 1\n", set()),
    "no forward": (SMALL_LLAMA[: SMALL_LLAMA.index(MLP)] + "class LlamaMLP(nn.Module):\n    pass\n", set()),
    "a base that is not there": (SMALL_LLAMA[: SMALL_LLAMA.index(MLP)] + "class LlamaMLP(Gone):\n    pass\n", set()),
    "nested too deeply": (
        SMALL_LLAMA[: SMALL_LLAMA.index(MLP)]
        + f"class LlamaMLP(nn.Module):\n    def forward(self, x):\n        y = {DEEP}\n        return y\n",
        set(),
    ),
    "no projections": (
        SMALL_LLAMA[: SMALL_LLAMA.index(MLP)] + "class LlamaMLP(nn.Module):\n    def forward(self, x):\n        return x\n",
        {"mlp"},
    ),
}  # fmt: skip


def release_with(folder: Path, text: str | bytes | None) -> Release:
    release = folder_release(folder, "5.90.0", {path_of("gemma"): SMALL_LLAMA})
    if text is not None:
        place = folder / path_of("llama")
        place.parent.mkdir(parents=True)
        place.write_bytes(text if isinstance(text, bytes) else text.encode())
    return release


@pytest.mark.parametrize("case", ABSENT)
def test_what_is_absent_and_what_is_only_not_understood(case: str, tmp_path: Path) -> None:
    """The first is news of the release, the second is drift."""
    text, absent = ABSENT[case]
    parts = {
        part: outcome
        for finding in findings_of(release_with(tmp_path, text), find("llama"))
        for part, outcome in finding.parts.items()
    }
    left = {part for part, outcome in parts.items() if not outcome.rules}
    assert left >= absent
    assert "mlp" in left
    assert {part for part in left if parts[part].absent} == absent
    for part in left:
        assert all(reason.removeprefix(static.ABSENT) for reason in parts[part].reasons)


def test_heirs_beyond_those_that_are_looked_at_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static, "_MOST_HEIRS", 2)
    forward = SMALL_LLAMA[SMALL_LLAMA.index("    def forward", SMALL_LLAMA.index(MLP)) :]
    heirs = "".join(f"\n\nclass Heir{number}(LlamaMLP):\n{forward}" for number in range(4))
    found = findings_of(release_with(tmp_path, SMALL_LLAMA + heirs), find("llama"))
    outcomes = {finding.class_name: finding.parts["mlp"] for finding in found if "mlp" in finding.parts}
    assert set(outcomes) == {"LlamaMLP", *(f"Heir{number}" for number in range(4))}
    assert [bool(outcome.rules) for outcome in outcomes.values()] == [True] * 3 + [False] * 2
    assert not any(outcome.absent for outcome in outcomes.values())
    assert "only 2 classes that inherit from one are rewritten" in outcomes["Heir3"].reasons[0]


def test_what_ended_a_process_is_there(tmp_path: Path) -> None:
    for finding in findings_of_lost(release_with(tmp_path, SMALL_LLAMA), "llama", "it was killed"):
        for outcome in finding.parts.values():
            assert not outcome.absent
            assert outcome.reasons == ("transformers/models/llama/modeling_llama.py:1: it was killed",)
