"""What another run left behind is taken only where it is what patchkit would have written, and is never executed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from synthetic_releases import SMALL_LLAMA, folder_release, path_of, records_of
from typer.testing import CliRunner

import patchkit.check.static.records as records_module
from patchkit.arch.registry import find
from patchkit.check.results import proposal
from patchkit.check.results.proposal import read_proposal
from patchkit.check.static.findings import findings_of
from patchkit.check.static.records import Records
from patchkit.cli.main import app
from patchkit.errors import ProposalError
from patchkit.rewrite.rules.registry import rules
from patchkit.trust import ledger
from patchkit.trust.ledger import Proof, read_proofs

ROOT = Path(__file__).parents[3]
VERSIONS = {"transformers": "5.91.0", "torch": "2.13.0", "peft": "0.21.2", "python": "3.11.7"}


@pytest.fixture
def known(tmp_path: Path) -> Records:
    release = folder_release(tmp_path / "known", "5.90.0", {path_of("llama"): SMALL_LLAMA})
    return records_of(release, "llama")


@pytest.fixture
def proposed(tmp_path: Path, known: Records) -> Path:
    """What an honest run leaves: a release in which the MLP changed, with one proof."""
    text = SMALL_LLAMA.replace("def forward(self, x):", "def forward(self, x, unused=None):")
    release = folder_release(tmp_path / "new", "5.91.0", {path_of("llama"): text})
    records = known.with_findings(findings_of(release, find("llama")), "2026-01-03")
    folder = tmp_path / "proposal"
    folder.mkdir()
    records.save(folder / "records.jsonl")
    (folder / "records.jsonl.lock").unlink(missing_ok=True)
    (mlp,) = (r for r in records.of("5.91.0") if r.finding.class_name == "LlamaMLP")
    proof = Proof(mlp.key, "numeric", {"mlp": "fused"}, {"forward_backward": 1e-7}, VERSIONS, "2026-01-03")
    (folder / "ledger.jsonl").write_text(f"{proof.to_line()}\n")
    (folder / "watch.log").write_text("new: 5.91.0\n```\n@everyone\x1b[31m\n")
    return folder


def test_what_an_honest_run_found_is_taken(proposed: Path, known: Records) -> None:
    found = read_proposal(proposed, known, {})
    assert [(f.release, f.class_name) for f in found.findings] == [("5.91.0", "LlamaAttention"), ("5.91.0", "LlamaMLP")]
    assert [proof.key.class_name.rpartition(".")[2] for proof in found.proofs] == ["LlamaMLP"]
    assert found.newest == "5.91.0"


def test_what_ships_is_what_patchkit_would_have_written(tmp_path: Path) -> None:
    """Every line that is committed passes: the checks refuse nothing that honest runs write."""
    for name, place in (("records.jsonl", records_module.SHIPPED_RECORDS), ("ledger.jsonl", ledger.SHIPPED_LEDGER)):
        (tmp_path / name).write_bytes(place.read_bytes())
    (tmp_path / "watch.log").touch()
    found = read_proposal(tmp_path, Records(), {})
    assert len(found.findings) == len(Records.load().entries)
    keys = {record.key for record in Records.load().entries}
    assert {proof.key for proof in found.proofs} == keys & set(read_proofs(ledger.SHIPPED_LEDGER))


def edit(name: str, **changes: Any) -> Callable[[Path], None]:
    """A change of the last line of a file."""

    def change(folder: Path) -> None:
        *lines, last = (folder / name).read_text().splitlines()
        (folder / name).write_text("\n".join([*lines, json.dumps(json.loads(last) | changes)]))

    return change


def part(**changes: Any) -> Callable[[Path], None]:
    fine = {"verdict": "rewritten", "rules": ["gated-mlp"], "reasons": []}
    return edit("records.jsonl", parts={"mlp": fine | changes})


REFUSED: dict[str, Callable[[Path], object]] = {
    "another file": lambda folder: (folder / "setup.py").write_text(""),
    "a missing file": lambda folder: (folder / "watch.log").unlink(),
    "a link": lambda folder: ((folder / "watch.log").unlink(), (folder / "watch.log").symlink_to("/etc/passwd")),
    "a folder": lambda folder: ((folder / "watch.log").unlink(), (folder / "watch.log").mkdir()),
    "a pipe": lambda folder: ((folder / "watch.log").unlink(), os.mkfifo(folder / "watch.log")),
    "a large file": lambda folder: os.truncate(folder / "watch.log", 17 * 2**20),
    "no UTF-8": lambda folder: (folder / "records.jsonl").write_bytes(b"\xff"),
    "no JSON": lambda folder: (folder / "records.jsonl").write_text("{"),
    "deep JSON": lambda folder: (folder / "records.jsonl").write_text("[" * 100_000),
    "a list": lambda folder: (folder / "records.jsonl").write_text("[]"),
    "a line twice": lambda folder: (folder / "records.jsonl").write_text((folder / "records.jsonl").read_text() * 2),
    "release": edit("records.jsonl", release="5.91.0\n::error::"),
    "release in another form": edit("records.jsonl", release=" v5.91"),
    "release as a number": edit("records.jsonl", release=5),
    "architecture": edit("records.jsonl", architecture="../../x"),
    "architecture as a list": edit("records.jsonl", architecture=["llama"]),
    "block": edit("records.jsonl", block="LlamaOther"),
    "class": edit("records.jsonl", **{"class": "A(B): import os"}),
    "class as a mapping": edit("records.jsonl", **{"class": {}}),
    "owner": edit("records.jsonl", owner="a; b"),
    "path": edit("records.jsonl", path="transformers/../../etc/passwd.py"),
    "path elsewhere": edit("records.jsonl", path="os.py"),
    "line": edit("records.jsonl", line=-1),
    "line as a boolean": edit("records.jsonl", line=True),
    "source": edit("records.jsonl", source="z" * 64),
    "rewritten": edit("records.jsonl", rewritten="0"),
    "parts": edit("records.jsonl", parts={}),
    "verdict": part(verdict="fine"),
    "rule": part(rules=["<b>"]),
    "rules as a mapping": part(rules=[{}]),
    "reason as a number": part(reasons=[1]),
    "long reason": part(reasons=["x" * 5000]),
    "proof of a level": edit("ledger.jsonl", levels={"mlp": "best"}),
    "proof of no check": edit("ledger.jsonl", checks={}),
    "proof with an infinite error": edit("ledger.jsonl", checks={"a": float("inf")}),
    "proof with a negative error": edit("ledger.jsonl", checks={"a": -1.0}),
    "proof with a check of another name": edit("ledger.jsonl", checks={"<b>": 1.0}),
    "proof without versions": edit("ledger.jsonl", versions={}),
    "proof with a version that is none": edit("ledger.jsonl", versions=VERSIONS | {"torch": "x|y"}),
    "proof of a date": edit("ledger.jsonl", date="today"),
    "proof of no class": edit("ledger.jsonl", **{"class": "a b"}),
    "proof of a source": edit("ledger.jsonl", source="0"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused(kind: str, proposed: Path, known: Records) -> None:
    REFUSED[kind](proposed)
    with pytest.raises(ProposalError):
        read_proposal(proposed, known, {})


def test_a_proof_of_what_is_not_new_is_left(proposed: Path, known: Records) -> None:
    """Neither of another class, nor of another rewriter, nor in place of a proof that there is."""
    proof = read_proposal(proposed, known, {}).proofs[0]
    others = [
        replace(proof, key=proof.key._replace(class_name="transformers.models.gemma.modeling_gemma.GemmaMLP")),
        replace(proof, key=proof.key._replace(source="0" * 64)),
        replace(proof, key=proof.key._replace(rewrite=proof.key.rewrite + 1)),
        replace(proof, key=known.entries[0].key),
    ]
    (proposed / "ledger.jsonl").write_text("".join(f"{other.to_line()}\n" for other in others[:3]))
    assert read_proposal(proposed, known, {}).proofs == ()
    (proposed / "ledger.jsonl").write_text(f"{proof.to_line()}\n")
    assert read_proposal(proposed, known, {proof.key: proof}).proofs == ()


def test_records_of_ours_are_not_replaced(proposed: Path, known: Records) -> None:
    text = (proposed / "records.jsonl").read_text().replace('"line": 1,', '"line": 999,', 1)
    (proposed / "records.jsonl").write_text(text)
    assert {finding.release for finding in read_proposal(proposed, known, {}).findings} == {"5.91.0"}


def test_verdicts_are_ours(proposed: Path, known: Records) -> None:
    text = (proposed / "records.jsonl").read_text().replace('"verdict": "rewritten"', '"verdict": "absent"')
    (proposed / "records.jsonl").write_text(text)
    records = known.with_findings(read_proposal(proposed, known, {}).findings, "2026-01-04")
    assert {v for record in records.of("5.91.0") for v in record.verdicts.values()} == {"rewritten"}


def test_the_command(proposed: Path, known: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records_module, "SHIPPED_RECORDS", tmp_path / "records.jsonl")
    monkeypatch.setattr(ledger, "SHIPPED_LEDGER", tmp_path / "ledger.jsonl")
    known.save(tmp_path / "records.jsonl")
    arguments = ["adopt", str(proposed), "-o", str(tmp_path / "m.md"), "--body", str(tmp_path / "body.md")]
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.stdout) == (0, "5.91.0\n"), result.output
    assert "| 5.91.0 | 5.90.0 |" in (tmp_path / "m.md").read_text()
    assert len(read_proofs(tmp_path / "ledger.jsonl")) == 1
    body = (tmp_path / "body.md").read_text()
    assert body.count("````") == 2
    assert r"@everyone\x1b[31m" in body
    assert CliRunner().invoke(app, arguments).stdout == "", "nothing is new now"
    (proposed / "more").touch()
    before = {path: path.read_bytes() for path in tmp_path.glob("*") if path.is_file()}
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "expected ['ledger.jsonl', 'records.jsonl', 'watch.log']" in result.stderr
    assert {path: path.read_bytes() for path in tmp_path.glob("*") if path.is_file()} == before


def test_only_the_releases_that_were_asked_for_are_taken(proposed: Path, known: Records) -> None:
    assert read_proposal(proposed, known, {}, ["5.91", "5.92.0"]).newest == "5.91.0"
    with pytest.raises(ProposalError, match=r"records.jsonl has 5\.91\.0, and 5\.92\.0 was asked for; say `--release`"):
        read_proposal(proposed, known, {}, ["5.92.0"])


def test_the_command_takes_releases(proposed: Path, known: Records, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(records_module, "SHIPPED_RECORDS", tmp_path / "records.jsonl")
    monkeypatch.setattr(ledger, "SHIPPED_LEDGER", tmp_path / "ledger.jsonl")
    known.save(tmp_path / "records.jsonl")
    arguments = ["adopt", str(proposed), "-o", str(tmp_path / "m.md"), "--release"]
    result = CliRunner().invoke(app, [*arguments, "5.90.0"])
    assert (result.exit_code, result.stdout) == (2, "")
    result = CliRunner().invoke(app, [*arguments, "soon"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "'soon'" in result.stderr
    assert not (tmp_path / "m.md").exists()
    assert CliRunner().invoke(app, [*arguments, "5.91.0"]).stdout == "5.91.0\n"


def test_the_names_of_rules_are_those_of_their_files() -> None:
    assert proposal.rule_names() == {rule.name for rule in rules()}


def test_nothing_that_reads_a_proposal_needs_libcst() -> None:
    """What writes to a repository installs as little as it can."""
    modules = ("proposal", "peft_proposal", "matrix", "peft_matrix", "models")
    script = "import sys\nsys.modules['libcst'] = sys.modules['torch'] = None\n" + "".join(
        f"import patchkit.check.results.{name}\n" for name in modules
    )
    script += "import patchkit.cli.main, patchkit.cli.adopt, patchkit.cli.watch"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
