"""Changes of the kinds that upstream has made, on upstream's real source, and the verdict on each."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from synthetic_releases import folder_release, installed_source, path_of, records_of

from patchkit.arch.registry import find
from patchkit.check.run import check_static

QKV, OUTPUT, MLP = "LlamaAttention qkv", "LlamaAttention o", "LlamaMLP mlp"

SAME = {QKV: "rewritten", OUTPUT: "rewritten", MLP: "rewritten"}
DIFFERENTLY = "rewritten differently"

Q = "query_states = self.q_proj(hidden_states).view(hidden_shape).transpose(1, 2)"
K = "key_states = self.k_proj(hidden_states).view(hidden_shape).transpose(1, 2)"
V = "value_states = self.v_proj(hidden_states).view(hidden_shape).transpose(1, 2)"
DOWN = "down_proj = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))"

CASES: dict[str, tuple[list[tuple[str, str]], dict[str, str], str]] = {
    "renamed variable": ([(r"\bquery_states\b", "queries")], SAME, ""),
    "renamed argument": ([(r"\bhidden_states\b", "x")], SAME, ""),
    "reformatted": ([(re.escape(Q), Q.replace(".view", "\\\\\n            .view"))], SAME, ""),
    "comment": ([(re.escape(Q), f"# the queries\n        {Q}")], SAME, ""),
    "added norm": (
        [(re.escape(Q), Q.replace("self.q_proj", "self.q_norm(self.q_proj").replace(").view", ")).view"))],
        SAME,
        "",
    ),
    "split statement": (
        [
            (
                re.escape(Q),
                "query_states = self.q_proj(hidden_states)\n        query_states = query_states.view(hidden_shape).transpose(1, 2)",
            )
        ],
        SAME,
        "",
    ),
    "statement between": ([(re.escape(K), f"scale = self.scaling\n        {K}")], SAME, ""),
    "new branch": (
        [(re.escape(V), f"value_states = {V.partition(' = ')[2]} if self.own_values else key_states")],
        SAME | {QKV: DIFFERENTLY},
        "is evaluated conditionally",
    ),
    "cross-attention": (
        [(re.escape(K), K.replace("(hidden_states)", "(encoder_states)"))],
        SAME | {QKV: DIFFERENTLY},
        "takes another input than",
    ),
    "dropout between the projections": (
        [(re.escape(K), f"query_states = self.dropout(query_states)\n        {K}")],
        SAME | {QKV: DIFFERENTLY},
        "may draw random numbers",
    ),
    "inserted dropout in the MLP": (
        [
            (
                re.escape(DOWN),
                DOWN.replace("self.act_fn(self.gate_proj(x))", "self.dropout(self.act_fn(self.gate_proj(x)))"),
            )
        ],
        SAME | {MLP: DIFFERENTLY},
        "`self.dropout(self.act_fn(self.gate_proj(x)))` stands in between",
    ),
    "norm in the MLP": (
        [(re.escape(DOWN), DOWN.replace("self.up_proj(x)", "self.norm(self.up_proj(x))"))],
        SAME | {MLP: DIFFERENTLY},
        "`self.norm(self.up_proj(x))` stands in between",
    ),
    "MLP without projections": (
        [(re.escape(DOWN), "down_proj = fused_mlp(x, self.weights)")],
        SAME | {MLP: "drifted"},
        "absent: ",
    ),
    "renamed class": (
        [(r"\bLlamaMLP\b", "LlamaFeedForward")],
        SAME | {MLP: "drifted"},
        '+    blocks=(Attention("LlamaAttention"), GatedMLP("LlamaFeedForward")),',
    ),
    "renamed projections": (
        [(r"\b([qkv])_proj\b", r"\1_linear")],
        SAME | {QKV: "drifted"},
        '+    blocks=(Attention("LlamaAttention", q="q_linear", k="k_linear", v="v_linear"), GatedMLP("LlamaMLP")),',
    ),
    "projections with the names of what they yield": (
        [(r"\bq_proj\b", "query"), (r"\bk_proj\b", "key"), (r"\bv_proj\b", "value")],
        SAME | {QKV: "drifted"},
        'Attention("LlamaAttention", q="query", k="key", v="value")',
    ),
    "one renamed projection": (
        [(r"\bo_proj\b", "out_proj")],
        SAME | {OUTPUT: "drifted"},
        'Attention("LlamaAttention", o="out_proj")',
    ),
    "renamed gate": (
        [(r"\bgate_proj\b", "w1")],
        SAME | {MLP: DIFFERENTLY},
        'GatedMLP("LlamaMLP", gate="w1")',
    ),
    "renamed activation": (
        [(r"\bself\.act_fn\b", "self.activation_fn")],
        SAME | {MLP: DIFFERENTLY},
        'GatedMLP("LlamaMLP", activation="activation_fn")',
    ),
    "gate and up in one projection": (
        [
            (
                re.escape(DOWN),
                "gate, up = self.gate_up_proj(x).chunk(2, dim=-1)\n        down_proj = self.down_proj(self.act_fn(gate) * up)",
            )
        ],
        SAME | {MLP: DIFFERENTLY},
        'GatedMLP("LlamaMLP", gate_up="gate_up_proj")',
    ),
    "syntax of a later Python": (
        [(r"^class LlamaMLP\b", "klass LlamaMLP")],
        dict.fromkeys(SAME, "drifted"),
        "does not parse",
    ),
}


def changed(edits: list[tuple[str, str]]) -> str:
    source = installed_source(path_of("llama"))
    for pattern, replacement in edits:
        source, count = re.subn(pattern, replacement, source, flags=re.MULTILINE)
        assert count, pattern
    return source


def verdicts(tmp_path: Path, files: dict[str, str], *names: str):
    """What a release of these files is, after the installed one."""
    known = folder_release(
        tmp_path / "known", "5.90.0", {path_of(name): installed_source(path_of(name)) for name in names}
    )
    new = folder_release(tmp_path / "new", "5.91.0", files)
    return check_static([new], [find(name) for name in names], records_of(known, *names))


@pytest.mark.parametrize("kind", CASES)
def test_verdict(kind: str, tmp_path: Path) -> None:
    edits, expected, said = CASES[kind]
    report = verdicts(tmp_path, {path_of("llama"): changed(edits)}, "llama")
    assert {f"{entry.finding.class_name} {entry.part}": entry.verdict for entry in report.entries} == expected
    failed = [entry for entry in report.entries if entry.failed]
    assert bool(failed) == (expected != SAME) == report.failed
    texts = []
    for entry in failed:
        assert entry.since == "5.90.0"
        assert entry.diagnosis is not None
        assert "as in 5.90.0 (transformers/models/llama/modeling_llama.py:" in entry.diagnosis.expected
        edit = entry.diagnosis.edit
        texts += [entry.diagnosis.found, edit.diff if edit else ""]
    assert said in "\n".join(texts)


@pytest.mark.parametrize("kind", [kind for kind, (_, _, said) in CASES.items() if "(" in said and "=" in said])
def test_the_edit_repairs_it(kind: str, tmp_path: Path) -> None:
    """What is proposed is applied to the architecture, which is then rewritten as it was."""
    from dataclasses import replace

    from patchkit.arch.spec import Attention, GatedMLP
    from patchkit.check.static.findings import findings_of

    report = verdicts(tmp_path, {path_of("llama"): changed(CASES[kind][0])}, "llama")
    (entry,) = (entry for entry in report.entries if entry.failed)
    assert entry.diagnosis is not None
    assert entry.diagnosis.edit is not None
    block = eval(entry.diagnosis.edit.after, {"Attention": Attention, "GatedMLP": GatedMLP})
    repaired = replace(find("llama"), blocks=(block,))
    (finding,) = findings_of(entry.release, repaired)
    assert finding.parts[entry.part].whole


def test_a_moved_class(tmp_path: Path) -> None:
    source = installed_source(path_of("llama"))
    start, end = source.index("class LlamaMLP"), source.index("def repeat_kv")
    files = {
        path_of("llama"): source[:start] + source[end:],
        "transformers/models/common/modeling_common.py": "from torch import nn\n\n\n"
        + source[start:end].rstrip()
        + "\n",
    }
    report = verdicts(tmp_path, files, "llama")
    (entry,) = (entry for entry in report.entries if entry.failed)
    assert (entry.verdict, entry.finding.line) == ("drifted", 0)
    assert entry.diagnosis is not None
    assert entry.diagnosis.edit is not None
    assert '+    module="transformers.models.common.modeling_common",' in entry.diagnosis.edit.diff


def test_a_class_that_is_imported_from_where_it_was_moved_to_is_followed(tmp_path: Path) -> None:
    source = installed_source(path_of("llama"))
    start, end = source.index("class LlamaMLP"), source.index("def repeat_kv")
    files = {
        path_of("llama"): f"{source[:start]}class LlamaMLP(CommonMLP):\n    pass\n\n\n{source[end:]}".replace(
            "from torch import nn\n", "from torch import nn\nfrom ..common.modeling_common import CommonMLP\n", 1
        ),
        "transformers/models/common/modeling_common.py": source[start:end].replace("LlamaMLP", "CommonMLP"),
    }
    report = verdicts(tmp_path, files, "llama")
    assert not report.failed
    (mlp,) = (entry for entry in report.entries if entry.part == "mlp")
    assert mlp.finding.owner == "transformers.models.common.modeling_common.CommonMLP"


def test_a_model_that_is_gone_has_drifted_and_one_that_never_was_is_absent(tmp_path: Path) -> None:
    gone = verdicts(tmp_path / "gone", {}, "llama")
    assert {entry.verdict for entry in gone.entries} == {"drifted"}
    never = check_static([gone.releases[0]], [find("llama")], records_of(gone.releases[0], "llama"))
    assert {entry.verdict for entry in never.entries} == {"absent"}
    assert never.failed, "where nothing is, nothing is verified"


def test_a_block_that_no_rule_ever_knew_is_unmatched(tmp_path: Path) -> None:
    source = "class LlamaAttention:\n    def forward(self, x):\n        return self.o_proj(lambda: self.q_proj(x))\n"
    report = check_static(
        [folder_release(tmp_path, "5.91.0", {path_of("llama"): source})], [find("llama")], records_of_nothing()
    )
    assert {entry.part: entry.verdict for entry in report.entries} == {
        "qkv": "unmatched",
        "o": "rewritten",
        "mlp": "absent",
    }
    assert report.failed


def records_of_nothing():
    from patchkit.check.static.records import Records

    return Records()


def test_an_heir_with_a_forward_of_its_own_counts(tmp_path: Path) -> None:
    source = installed_source(path_of("llama"))
    source += (
        "\n\nclass LlamaFlashAttention(LlamaAttention):\n    def forward(self, x):\n        return self.q_proj(x)\n"
    )
    source += "\n\nclass LlamaQuietAttention(LlamaAttention):\n    pass\n"
    report = verdicts(tmp_path, {path_of("llama"): source}, "llama")
    found = {entry.finding.class_name: entry.verdict for entry in report.entries if entry.part == "qkv"}
    assert found == {"LlamaAttention": "rewritten", "LlamaFlashAttention": "partial"}
