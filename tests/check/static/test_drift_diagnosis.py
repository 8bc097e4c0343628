"""The diagnosis of a part that is not rewritten as it was: where, what was expected, what is there, and the edit that repairs it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_releases import SMALL_LLAMA, folder_release, path_of, records_of

from patchkit.arch.registry import find
from patchkit.arch.spec import Block, Part
from patchkit.check.static import drift
from patchkit.check.static.drift import Diagnosis, diagnose
from patchkit.check.static.findings import block_named, findings_of
from patchkit.check.static.records import Records
from patchkit.rewrite.rules.registry import rules_of
from patchkit.upstream.release import Release

pytest_plugins = ["proof_fixtures"]
pytestmark = pytest.mark.usefixtures("cache")

PATH = path_of("llama")
ATTENTION, MLP = SMALL_LLAMA.split("\n\n\n")
COMMON = "transformers/models/common/modeling_common.py"

LLAMA = find("llama")
LLAMA_MLP, LLAMA_ATTENTION = block_named(LLAMA, "LlamaMLP"), block_named(LLAMA, "LlamaAttention")


def diagnosed(folder: Path, files: dict[str, str], part: Part = "mlp", *, known: bool = True) -> Diagnosis:
    """Of a part of llama in a release with these files, after one with all of it, or with nothing known."""
    old = folder_release(folder / "old", "5.90.0", {PATH: SMALL_LLAMA})
    records = records_of(old, "llama") if known else Records()
    release = folder_release(folder / "new", "5.91.0", files)
    name = "LlamaMLP" if part == "mlp" else "LlamaAttention"
    finding = next(one for one in findings_of(release, LLAMA) if one.class_name == name)
    return diagnose(release, LLAMA, block_named(LLAMA, name), finding, part, records.before(finding, part))


BODY = "        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))"
EXPECTED = f"rule gated-mlp, as in 5.90.0 ({PATH}:9)"
DIAGNOSED = {
    # the MLP: line, text, how what was found ends, the edit
    "another name": (MLP.replace("gate_proj", "w1"), 11, BODY.strip().replace("gate_proj", "w1"), "", 'GatedMLP("LlamaMLP", gate="w1")'),
    "no projections": (
        "class LlamaMLP:\n    def forward(self, x):\n        return self.b(self.a(x))\n",
        10, "def forward(self, x):", " (it calls b, a)", None,
    ),
    "nothing is called": (
        "class LlamaMLP:\n    def forward(self, x):\n        return x\n", 10, "def forward(self, x):", " (it calls nothing of its own)", None,
    ),
    "another name of the class": (MLP.replace("LlamaMLP", "LlamaFeedForward"), 0, "", "has no class LlamaMLP", 'GatedMLP("LlamaFeedForward")'),
    "no class": ("", 0, "", "has no class LlamaMLP", None),
    "no forward": ("class LlamaMLP:\n    pass\n", 0, "", "no base with one is found", None),
}  # fmt: skip


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("case", DIAGNOSED)
def test_what_is_told(case: str, known: bool, tmp_path: Path) -> None:
    text, line, shown, found, edit = DIAGNOSED[case]
    told = diagnosed(tmp_path, {PATH: f"{ATTENTION}\n\n\n{text}"}, known=known)
    assert (told.path, told.class_name, told.part) == (PATH, "LlamaMLP", "mlp")
    assert told.expected == (EXPECTED if known else "a part that a rule knows")
    assert (told.line, told.text) == (line, shown)
    assert told.found.endswith(found)
    assert (told.edit.after if told.edit else None) == edit


def test_whole_rules_are_what_is_wanted_of_the_unknown() -> None:
    for part in ("qkv", "o", "mlp"):
        wanted = drift._whole(part)
        assert wanted
        assert set(wanted) == {(rule.name,) for rule in rules_of(part) if rule.whole}
    assert len(rules_of("mlp")) > len(drift._whole("mlp"))


def test_a_part_that_is_only_partly_rewritten_after_an_edit_is_not_repaired(tmp_path: Path) -> None:
    """Neither is one that another rule then rewrites."""
    dropout = MLP.replace("gate_proj", "w1").replace("self.act_fn(self.w1(x))", "self.drop(self.act_fn(self.w1(x)))")
    assert diagnosed(tmp_path / "a", {PATH: f"{ATTENTION}\n\n\n{dropout}"}).edit is None
    apart = ATTENTION.replace("q_proj", "query").replace("self.k_proj(hidden_states)", "self.k_proj(other)")
    assert diagnosed(tmp_path / "b", {PATH: f"{apart}\n\n\n{MLP}"}, "qkv").edit is None


MOVED = {
    # other files: the description after the edit
    "to another module": ({COMMON: MLP}, 'module="transformers.models.common.modeling_common"'),
    "to another module under another name": ({COMMON: MLP.replace("LlamaMLP", "LlamaFeedForward")}, None),
    "to the nearer of two": (
        {COMMON: MLP, "transformers/models/llama2/modeling_llama.py": MLP},
        'module="transformers.models.llama2.modeling_llama"',
    ),
    "to a file that holds no class of that name": ({COMMON: f"# class LlamaMLP\n{MLP.replace('LlamaMLP', 'LlamaMLPs')}"}, None),
    "to a method of a class": ({COMMON: "class A:\n    class LlamaMLP:\n        pass\n"}, None),
    "to one that is none": ({COMMON: "class LlamaMLP:\n    def forward(self, x):\n        return x\n"}, None),
    "past what does not parse": (
        {COMMON: "class LlamaMLP\n", "transformers/models/z/modeling_z.py": MLP}, 'module="transformers.models.z.modeling_z"',
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MOVED)
def test_a_class_that_moved(case: str, tmp_path: Path) -> None:
    files, after = MOVED[case]
    told = diagnosed(tmp_path, {PATH: ATTENTION, **files})
    assert (told.edit.after if told.edit else None) == after


def test_its_own_module_comes_first(tmp_path: Path) -> None:
    """A class of another name there, before one of the same name elsewhere; and the nearest name of all."""
    own = MLP.replace("LlamaMLP", "LlamaMLPs") + "\n\n" + MLP.replace("LlamaMLP", "LlamaFeed")
    release = folder_release(tmp_path, "5.91.0", {PATH: own, COMMON: MLP})
    found = [(module, block.class_name) for module, block in drift._renamed_classes(release, LLAMA, LLAMA_MLP)]
    assert found == [
        (LLAMA.module, "LlamaMLPs"), (LLAMA.module, "LlamaFeed"), ("transformers.models.common.modeling_common", "LlamaMLP"),
    ]  # fmt: skip


@pytest.mark.parametrize("most", [0, 1, 2, 3])
@pytest.mark.parametrize("how", ["a class", "a name"])
def test_only_so_many_are_tried(how: str, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Block] = []
    monkeypatch.setattr(drift, "_MOST_TRIALS", most)
    monkeypatch.setattr(drift, "_rules", lambda release, module, block, part: tried.append(block))
    names = "".join(f"class LlamaOther{number}:\n    pass\n\n\n" for number in range(6))
    text = names if how == "a class" else MLP.replace("gate_proj", "w1").replace("up_proj", "w2")
    assert diagnosed(tmp_path, {PATH: f"{ATTENTION}\n\n\n{text}"}).edit is None
    assert len(tried) == most


def test_no_edit_is_looked_for_in_a_class_that_inherits(tmp_path: Path) -> None:
    """The description is that of the class that it inherits from."""
    heir = f"{SMALL_LLAMA}\n\n{MLP.replace('LlamaMLP(nn.Module)', 'Heir(LlamaMLP)').replace('gate_proj', 'w1')}"
    release = folder_release(tmp_path, "5.91.0", {PATH: heir})
    finding = next(one for one in findings_of(release, LLAMA) if one.class_name == "Heir")
    told = diagnose(release, LLAMA, LLAMA_MLP, finding, "mlp", None)
    assert (told.class_name, told.edit) == ("Heir", None)


def release_of(folder: Path, text: str) -> Release:
    return folder_release(folder, "5.91.0", {PATH: text})


@pytest.mark.parametrize(("text", "block", "part", "rules"), [
    (SMALL_LLAMA, LLAMA_MLP, "mlp", ("gated-mlp",)),
    (SMALL_LLAMA, LLAMA_ATTENTION, "o", ("output-call",)),
    (SMALL_LLAMA, replace(LLAMA_MLP, gate="w1"), "mlp", None),
    (SMALL_LLAMA, replace(LLAMA_MLP, class_name="Gone"), "mlp", None),
    ("class LlamaMLP\n", LLAMA_MLP, "mlp", None),
    (SMALL_LLAMA.replace("self.up_proj(x))", "self.up_proj(x)) + lambda: self.gate_proj(y)"), LLAMA_MLP, "mlp", None),
])  # fmt: skip
def test_by_which_rules_a_described_block_is_rewritten(
    text: str, block: Block, part: Part, rules: tuple[str, ...] | None, tmp_path: Path
) -> None:
    assert drift._rules(release_of(tmp_path, text), LLAMA.module, block, part) == rules
