"""Every limit of what is taken from another run, on both sides, each with its own reason."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from patchkit.check.results import proposal
from patchkit.check.results.proposal import FILES, Proposal, read_proposal
from patchkit.check.static.findings import Finding
from patchkit.check.static.records import Records
from patchkit.check.static.verdicts import PartOutcome
from patchkit.errors import ProposalError
from patchkit.rewrite.rules.registry import rules
from patchkit.trust.ledger import Key, Proof

MODULE = "transformers.models.llama.modeling_llama"
FINDING = Finding(
    "5.91.0", "llama", "LlamaMLP", "LlamaMLP", f"{MODULE}.LlamaMLP", "transformers/models/llama/modeling_llama.py", 3,
    "a" * 64, {"mlp": PartOutcome(("gated-mlp",), ("why",))}, "b" * 64,
)  # fmt: skip
LLAVA = replace(FINDING, architecture="llava", block="", class_name="", owner="", source="", parts={}, rewritten="")

FINE = {
    "as it is": {},
    "an heir": {"class_name": "LlamaMLP2"},
    "without a source": {"source": "", "owner": "", "rewritten": "", "line": 0},
    "the last line": {"line": 10**7 - 1},
    "a long reason": {"parts": {"mlp": PartOutcome((), ("x" * 2000,))}},
    "a single rule": {"parts": {"mlp": PartOutcome(("call-alone",), ())}},
    "every rule": {"parts": {"mlp": PartOutcome(tuple(rule.name for rule in rules()), ())}},
    "a package": {"path": "transformers/models/llama.py"},
}
WRONG = {
    "a field has another type": [{"release": 5}, {"path": None}, {"line": True}, {"line": 1.0}, {"source": b""}, {"rewritten": 1}],
    "its release or architecture is none": [
        {"release": "v5.91.0"}, {"release": "5.91.0 "}, {"architecture": "acme"}, {"release": "05.91.0"},
    ],
    "its block is none": [{"block": "LlamaOther"}, {"block": ""}],
    "its parts are not those of its block": [
        {"parts": {}}, {"parts": {"o": PartOutcome()}}, {"parts": {"mlp": PartOutcome(), "o": PartOutcome()}},
        {"block": "LlamaAttention", "parts": {"o": PartOutcome(), "qkv": PartOutcome()}},
    ],
    "its class is no name": [{"class_name": "A(B)"}, {"class_name": ""}, {"class_name": "a b"}],
    "its owner is no name": [{"owner": "a; b"}, {"owner": "a."}],
    "its path is none of a module": [
        {"path": "os.py"}, {"path": "transformers/../x.py"}, {"path": "transformers/models/llama"}, {"path": "/transformers/a.py"},
        {"path": "transformers/models/é.py"}, {"path": "transformers/a.b.py"}, {"path": "transformers.py"}, {"path": "transformers//a.py"},
    ],
    "its line is none": [{"line": -1}, {"line": 10**7}],
    "a hash is none": [{"source": "a" * 63}, {"source": "A" * 64}, {"rewritten": "0"}, {"source": "a" * 64 + "\n"}],
    "a rule is none": [{"parts": {"mlp": PartOutcome(("gated-mlp", "other"))}}],
    "a reason is none": [{"parts": {"mlp": PartOutcome((), ("x" * 2001,))}}, {"parts": {"mlp": PartOutcome((), (1,))}}],
}  # fmt: skip


@pytest.mark.parametrize("changes", FINE.values(), ids=FINE)
def test_what_patchkit_writes_is_fine(changes):
    assert proposal._wrong_in(replace(FINDING, **changes)) == ""


@pytest.mark.parametrize(("why", "changes"), [(why, one) for why, listed in WRONG.items() for one in listed], ids=str)
def test_what_patchkit_would_not_write(why, changes):
    assert proposal._wrong_in(replace(FINDING, **changes)) == why


@pytest.mark.parametrize(("changes", "why"), [
    ({}, ""), ({"block": "LlavaMLP"}, "its block is none"), ({"parts": {"mlp": PartOutcome()}}, "its parts are not those of its block"),
])  # fmt: skip
def test_an_architecture_without_blocks(changes, why):
    """It has one line without a class, which says whether the release has it."""
    assert proposal._wrong_in(replace(LLAVA, **changes)) == why


VERSIONS = {"transformers": "5.91.0", "torch": "2.13.0", "peft": "0.21.2", "python": "3.11.7"}
PROOF = Proof(
    Key(f"{MODULE}.LlamaMLP", "a" * 64, 1),
    "numeric",
    {"mlp": "fused"},
    {"eval": 0.0, "dropout": 1e-7},
    VERSIONS,
    "2026-01-03",
)
PROOFS = {
    "": [{}, {"levels": {"qkv": "alone", "o": "upstream"}}, {"levels": {}}, {"checks": {"x" * 80: 0.0}}, {"checks": {"a b,=+-.9": 1.0}}],
    "its class or date is none": [
        {"key": PROOF.key._replace(class_name="a b")}, {"date": "2026-1-3"}, {"date": "today"}, {"date": "2026-01-03\n"}, {"date": ""},
    ],
    "its levels are none": [{"levels": {"mlp": "best"}}, {"levels": {"<b>": "fused"}}, {"levels": {"": "fused"}}],
    "its checks are none": [{"checks": {"a": -1e-9, "b": 1.0}}, {"checks": {"<b>": 1.0}}, {"checks": {"x" * 81: 0.0}}, {"checks": {"é": 0.0}}],
    "its versions are none": [
        *({"versions": {n: v for n, v in VERSIONS.items() if n != name}} for name in VERSIONS), {"versions": VERSIONS | {"<b>": "1"}},
    ],
}  # fmt: skip


@pytest.mark.parametrize(("why", "changes"), [(why, one) for why, listed in PROOFS.items() for one in listed], ids=str)
def test_proofs(why, changes):
    assert proposal._wrong_in_proof(replace(PROOF, **changes)) == why


# ---- files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).touch()
    return tmp_path


def test_nothing_is_proposed_by_nothing(folder: Path) -> None:
    assert read_proposal(folder, Records(), {}) == Proposal((), (), "")
    assert Proposal((), (), "").newest == ""


@pytest.mark.parametrize("name", ["records.jsonl", "ledger.jsonl", "watch.log"])
def test_how_large_a_file_may_be(name: str, folder: Path) -> None:
    os.truncate(folder / name, 16 * 2**20 + 1)
    with pytest.raises(ProposalError, match=f"^{name} has more than 16777216 bytes$"):
        read_proposal(folder, Records(), {})
    os.truncate(folder / name, 16 * 2**20)
    if name == "watch.log":
        assert len(read_proposal(folder, Records(), {}).log) == 16 * 2**20
    else:
        with pytest.raises(ProposalError, match=f"^{name}:1 is no (record|proof): "):
            read_proposal(folder, Records(), {})


@pytest.mark.parametrize("name", ["records.jsonl", "ledger.jsonl"])
@pytest.mark.parametrize("line", [1, 2, 5])
def test_the_line_is_named(name: str, line: int, folder: Path) -> None:
    """Empty lines are none, and are counted."""
    (folder / name).write_text("\n" * (line - 1) + "{}\n")
    with pytest.raises(ProposalError, match=f"^{name}:{line} is no (record|proof): "):
        read_proposal(folder, Records(), {})


def test_only_the_log_may_be_of_any_bytes(folder: Path) -> None:
    (folder / "watch.log").write_bytes(b"\xff.")
    assert read_proposal(folder, Records(), {}).log == "\ufffd."
    for name in ("records.jsonl", "ledger.jsonl"):
        (folder / name).write_bytes(b"\xff")
        with pytest.raises(ProposalError, match="cannot be read: 'utf-8' codec"):
            read_proposal(folder, Records(), {})
        (folder / name).write_bytes(b"")


@pytest.mark.parametrize(("count", "taken"), [(64, True), (65, False)])
def test_how_many_releases_may_be_new(count: int, taken: bool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    releases = [f"5.{minor}.0" for minor in range(count)]
    monkeypatch.setattr(proposal, "_findings", lambda text: iter(replace(FINDING, release=one) for one in releases))
    if taken:
        found = read_proposal(folder, Records(), {})
        assert len(found.findings) == count
        assert found.newest == "5.63.0"
    else:
        with pytest.raises(ProposalError, match=r"^records\.jsonl has more than 64 new releases$"):
            read_proposal(folder, Records(), {})
