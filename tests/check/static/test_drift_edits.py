"""The search for the edit that repairs a part: which names are tried, in which order, how many, and how it is written."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_releases import SMALL_LLAMA, folder_release, path_of, records_of

from patchkit.arch.registry import architectures, find
from patchkit.arch.spec import Architecture, Attention, Block, GatedMLP, Part
from patchkit.check.static import drift
from patchkit.check.static.drift import Diagnosis, architecture_file, described, diagnose
from patchkit.check.static.findings import block_named, findings_of
from patchkit.check.static.records import Records
from patchkit.rewrite.rules.registry import rules_of
from patchkit.upstream.release import Release

pytest_plugins = ["proof_fixtures"]
pytestmark = pytest.mark.usefixtures("cache")

PATH = path_of("llama")
ATTENTION, MLP = SMALL_LLAMA.split("\n\n\n")
COMMON = "transformers/models/common/modeling_common.py"


# ---- how near names are


LIKENESS = [
    # of the first to the old name; each is nearer than the next
    ("q_proj", ["q_proj", "Q_PROJ"]),
    ("q_proj", ["q_proj", "q_proj2", "q_linear", "query", "k_proj", "linear", "x"]),
    ("LlamaMLP", ["LlamaMLP", "LlamaMlpBlock", "LlamaRMSNorm", "MLP", "Gemma"]),
    ("gate_proj", ["gate_proj", "gate", "g", "up_proj", "w"]),
]


@pytest.mark.parametrize(("old", "names"), LIKENESS)
def test_how_near_names_are(old: str, names: list[str]) -> None:
    found = [drift._likeness(name, old) for name in names]
    assert found == sorted(found, reverse=True)
    if names[1].lower() != old.lower():
        assert len(set(found)) == len(found)
    assert found[0] == 1.5


@pytest.mark.parametrize(("name", "old", "expected"), [
    ("ab", "ab", 1.5), ("AB", "ab", 1.5), ("ab", "AB", 1.5), ("cb", "ab", 0.5), ("ac", "ab", 1.0), ("cd", "ab", 0.0),
    ("Ac", "ab", 1.0), ("ac", "Ab", 1.0), ("", "ab", 0.0), ("a" + "b" * 79, "a" + "b" * 79, 1.5),
    ("a" * 80 + "b" * 900, "a" * 80, 1.5), ("a" * 79 + "b" * 900, "a" * 80, 0.5 + 2 * 79 / 160),
])  # fmt: skip
def test_the_likeness_of_two_names(name: str, old: str, expected: float) -> None:
    """The part of equal letters, half as much again for the first one; and no more letters are looked at than 80."""
    assert drift._likeness(name, old) == pytest.approx(expected)


def test_letters_that_are_frequent_count() -> None:
    """difflib would take a letter of a long name that stands there often for none."""
    name = "ab" * 40
    assert drift._likeness(name, "ab" * 120) == pytest.approx(0.5 + 2 * 80 / 320)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 9])
def test_the_nearest(count: int) -> None:
    names = ["w1", "query", "q", "q_linear", "norm", "q_proj_", "k_proj", "x", "q_proj"][:count]
    found = drift._nearest(names, "q_proj")
    assert len(found) == min(count, 4)
    assert found == sorted(names, key=lambda name: -drift._likeness(name, "q_proj"))[:4]


# ---- which names are tried


ROLES: dict[str, tuple[Block, tuple[str, ...]]] = {
    "attention": (Attention("A"), ("q", "k", "v", "o")),
    "MLP": (GatedMLP("M"), ("gate", "up", "down", "activation")),
    "gate and up in one": (GatedMLP("M", gate_up="gate_up_proj"), ("gate_up", "down", "activation")),
}


@pytest.mark.parametrize("case", ROLES)
def test_the_roles_of_a_block(case: str) -> None:
    block, roles = ROLES[case]
    assert drift._roles(block) == roles


def test_all_combinations_each_name_once_nearest_first() -> None:
    """A name that a role keeps is none for another."""
    block = Attention("A")
    called = ["q_linear", "k_linear", "o_proj", "v_proj", "norm"]
    found = [(one.q, one.k) for one in drift._combined(block, ["q", "k"], called)]
    free = ["q_linear", "k_linear", "norm"]
    assert sorted(found) == sorted(itertools.permutations(free, 2))
    assert found[0] == ("q_linear", "k_linear")
    scores = [drift._likeness(q, "q_proj") + drift._likeness(k, "k_proj") for q, k in found]
    assert scores == sorted(scores, reverse=True)
    assert {(one.v, one.o, one.class_name) for one in drift._combined(block, ["q", "k"], called)} == {
        ("v_proj", "o_proj", "A")
    }


def test_nothing_to_rename_is_no_candidate() -> None:
    assert list(drift._combined(Attention("A"), [], ["q_proj"])) == []
    assert list(drift._combined(Attention("A"), ["q"], [])) == []


def owner(body: str) -> drift.Owner:
    from patchkit.upstream.classes import class_table

    text = f"class M:\n    def forward(self, x):\n        return {body}\n"
    table = class_table(text, "m.py")
    return drift.Owner("m", text, table, table.classes["M"])


RENAMED = {
    # what forward calls: the fields of the first candidate that are no default, or no candidate
    "self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))": None,
    "self.down_proj(self.act_fn(self.w1(x)) * self.up_proj(x))": {"gate": "w1"},
    "self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))": {"activation": "activation"},
    "self.down_proj(self.act_fn(self.gate_linear(x)) * self.up_linear(x))": {"gate": "gate_linear", "up": "up_linear"},
    "self.down_proj(glu(self.gate_up_proj(x), self.act_fn))": {"gate_up": "gate_up_proj", "activation": None},
    "self.down_proj(self.act_fn(self.gate_up_proj(x)))": {"gate_up": "gate_up_proj"},
}


@pytest.mark.parametrize("body", RENAMED)
def test_the_nearest_candidate(body: str) -> None:
    """Gate and up in one projection come before gate and up under other names."""
    expected = RENAMED[body]
    found = list(drift._renamed_attributes(owner(body), GatedMLP("M")))
    if expected is None:
        assert found == []
    elif expected.get("activation", "") is not None:
        first = found[0] if "gate_up" in expected else next(one for one in found if not one.gate_up)
        assert first == replace(GatedMLP("M"), **expected)


def test_gate_up_is_tried_only_where_both_are_gone() -> None:
    only_gate = "self.down_proj(self.act_fn(self.w1(x)) * self.up_proj(x))"
    assert not [one for one in drift._renamed_attributes(owner(only_gate), GatedMLP("M")) if one.gate_up]
    both = "self.down_proj(self.act_fn(self.w1(x)) * self.w3(x))"
    found = [one.gate_up for one in drift._renamed_attributes(owner(both), GatedMLP("M"))]
    assert found[0] in {"w1", "w3"}
    assert None in found
    already = GatedMLP("M", gate_up="gate_up_proj")
    found = [one.gate_up for one in drift._renamed_attributes(owner(both), already)]
    assert sorted(filter(None, found)) == ["w1", "w3"]
    attention = drift._renamed_attributes(owner("self.a(x) + self.b(x)"), Attention("M"))
    assert all(isinstance(one, Attention) for one in attention)


CALLED = {
    "x": [],
    "self.b(x) + self.a(x)": ["b", "a"],
    "self.a(self.a(x))": ["a"],
    "self.a(self.b(x))": ["a", "b"],
    "self.a + self.b.c(x)": [],
    "other.a(x) + a(x)": [],
    "self.a(x).b()": ["a"],
}


@pytest.mark.parametrize("body", CALLED)
def test_what_a_class_calls(body: str) -> None:
    found = drift._called(f"class M:\n    def forward(self, x):\n        return {body}\n")
    assert found == CALLED[body]


def test_what_a_class_calls_is_bounded() -> None:
    calls = "\n".join(f"        self.a{number}(x)" for number in range(300))
    for count, text in ((200, calls), (0, "        = 1"), (0, "        pass")):
        assert len(drift._called(f"class M:\n    def forward(self, x):\n{text}\n")) == count


# ---- how an edit is written


DESCRIBED: dict[str, Block] = {
    'Attention("A")': Attention("A"),
    'Attention("A", q="query", o="out")': Attention("A", q="query", o="out"),
    'Attention("A", k="key", v="value", tower="vision")': Attention("A", k="key", v="value", tower="vision"),
    'GatedMLP("M")': GatedMLP("M"),
    'GatedMLP("M", gate="w1", up="w3", down="w2")': GatedMLP("M", gate="w1", up="w3", down="w2"),
    'GatedMLP("M", gate_up="gate_up_proj", activation="act")': GatedMLP("M", gate_up="gate_up_proj", activation="act"),
}


@pytest.mark.parametrize("text", DESCRIBED)
def test_a_block_as_an_architecture_file_writes_it(text: str) -> None:
    block = DESCRIBED[text]
    assert described(block) == text
    assert eval(text, {"Attention": Attention, "GatedMLP": GatedMLP}) == block
    for other in DESCRIBED:
        assert drift._is_block(other, block) is (other == text)


@pytest.mark.parametrize("text", [
    "Architecture('A')", "Attention()", "Attention(name)", "Attention('A', **more)", "Attention('A', 'q', 'k', 'v', 'o', 'text', 'x')",
    "Attention('A', z='q')", "a.Attention('A')", "f(Attention)('A')",
])  # fmt: skip
def test_what_is_no_block(text: str) -> None:
    assert not drift._is_block(text, Attention("A"))


@pytest.mark.parametrize(
    "text", ['Attention("A", "query")', "Attention(q='query', class_name='A')", "Attention(\n  'A', q='query')"]
)
def test_a_block_however_it_is_written(text: str) -> None:
    assert drift._is_block(text, Attention("A", q="query"))
    assert not drift._is_block(text, Attention("A"))


def test_every_architecture_has_its_file() -> None:
    for name, architecture in architectures().items():
        file = architecture_file(architecture)
        assert file is not None
        assert f'name="{name}",' in file.read_text()
    for name in ("acme", "llam.", "lama", ""):
        assert architecture_file(replace(find("llama"), name=name)) is None


def diff_of(architecture: Architecture, block: Block, candidate: Block, module: str) -> list[str]:
    edit = drift._edit(architecture, block, module, candidate)
    return [line for line in edit.diff.splitlines() if line[:1] in "+-"]


LLAMA = find("llama")
LLAMA_MLP, LLAMA_ATTENTION = block_named(LLAMA, "LlamaMLP"), block_named(LLAMA, "LlamaAttention")
OLD_BLOCKS = '-    blocks=(Attention("LlamaAttention"), GatedMLP("LlamaMLP")),'
OLD_MODULE = '    module="transformers.models.llama.modeling_llama",'


def test_an_edit_of_a_name() -> None:
    candidate = replace(LLAMA_MLP, gate="w1")
    edit = drift._edit(LLAMA, LLAMA_MLP, LLAMA.module, candidate)
    assert (edit.before, edit.after) == ('GatedMLP("LlamaMLP")', 'GatedMLP("LlamaMLP", gate="w1")')
    assert diff_of(LLAMA, LLAMA_MLP, candidate, LLAMA.module) == [
        "--- a/patchkit/arch/llama.py",
        "+++ b/patchkit/arch/llama.py",
        OLD_BLOCKS,
        '+    blocks=(Attention("LlamaAttention"), GatedMLP("LlamaMLP", gate="w1")),',
    ]
    assert len(edit.diff.splitlines()) == 7, "a header, the line as it was and as it is, and one on each side"


def test_an_edit_of_a_module() -> None:
    edit = drift._edit(LLAMA, LLAMA_MLP, "transformers.common", LLAMA_MLP)
    assert edit.before == 'module="transformers.models.llama.modeling_llama"'
    assert edit.after == 'module="transformers.common"'
    assert diff_of(LLAMA, LLAMA_MLP, LLAMA_MLP, "transformers.common")[2:] == [
        f"-{OLD_MODULE}", '+    module="transformers.common",',
    ]  # fmt: skip


def test_an_edit_of_both() -> None:
    candidate = replace(LLAMA_ATTENTION, class_name="Common")
    edit = drift._edit(LLAMA, LLAMA_ATTENTION, "transformers.common", candidate)
    assert edit.before == 'Attention("LlamaAttention")\nmodule="transformers.models.llama.modeling_llama"'
    assert edit.after == 'Attention("Common")\nmodule="transformers.common"'
    assert diff_of(LLAMA, LLAMA_ATTENTION, candidate, "transformers.common")[2:] == [
        f"-{OLD_MODULE}",
        OLD_BLOCKS,
        '+    module="transformers.common",',
        '+    blocks=(Attention("Common"), GatedMLP("LlamaMLP")),',
    ]


def test_an_edit_of_a_plugin_has_no_diff() -> None:
    edit = drift._edit(replace(LLAMA, name="acme"), LLAMA_MLP, LLAMA.module, replace(LLAMA_MLP, gate="w1"))
    assert (edit.after, edit.diff) == ('GatedMLP("LlamaMLP", gate="w1")', "")


# ---- the diagnosis


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
