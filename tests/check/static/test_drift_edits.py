"""The search for the edit that repairs a part: which names are tried, in which order, how many, and how it is written."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from synthetic_releases import SMALL_LLAMA, path_of

from patchkit.arch.registry import architectures, find
from patchkit.arch.spec import Architecture, Attention, Block, GatedMLP
from patchkit.check.static import drift
from patchkit.check.static.drift import architecture_file, described
from patchkit.check.static.findings import block_named

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
