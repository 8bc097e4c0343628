"""The shipped ledger, proven again from nothing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from patchkit.adapters.peft_known import add_reader_proofs, shipped_proofs
from patchkit.trust.ledger import SHIPPED_LEDGER
from tools import prove_again

LINES = SHIPPED_LEDGER.read_text("utf-8").splitlines(keepends=True)
NEWEST = prove_again.releases()[-1]


def of_release(release):
    return [line for line in LINES if f'"transformers": "{release}"' in line]


def test_every_line_belongs_to_a_release():
    assert sum(len(of_release(release)) for release in prove_again.releases()) == len(LINES) > 50


def test_the_nightly_job_has_every_release():
    nightly = yaml.safe_load((Path(__file__).parents[2] / ".github/workflows/nightly.yml").read_text())
    assert sorted(nightly["jobs"]["ledger"]["strategy"]["matrix"]["release"]) == prove_again.releases()


@pytest.mark.parametrize("left_out", [0, 1, 2])
def test_what_is_not_proven_again_is_named(tmp_path, left_out):
    lines = of_release(NEWEST)
    (tmp_path / "ledger.jsonl").write_text("".join(lines[left_out:]))
    left = prove_again.missing([NEWEST], tmp_path / "ledger.jsonl")
    assert [key.source in line for key, line in zip(left, lines[:left_out], strict=True)] == [True] * left_out
    assert len(prove_again.missing([NEWEST], tmp_path / "none")) == len(lines)


@pytest.mark.parametrize(("code", "proven", "expected"), [(0, True, 0), (0, False, 1), (1, True, 1)])
def test_the_command(code, proven, expected, monkeypatch, capsys):
    asked = []

    def run(command, env, check):
        asked.append(command)
        cache = Path(env["PATCHKIT_CACHE"])
        assert not cache.exists()
        cache.mkdir()
        if proven:
            (cache / "ledger.jsonl").write_text("".join(of_release(NEWEST)))
        return SimpleNamespace(returncode=code)

    monkeypatch.setattr(prove_again.subprocess, "run", run)
    assert prove_again.main([NEWEST]) == expected
    assert asked[0][-3:] == ["--all", "--transformers", NEWEST]
    assert ("not proven again: transformers.models." in capsys.readouterr().err) == (not proven)


@pytest.mark.parametrize("wanted", [[], ["4.0.0"], [NEWEST, "4.0.0"]])
def test_a_release_with_which_nothing_was_proven(wanted, capsys):
    assert prove_again.main(wanted) == 2
    assert NEWEST in capsys.readouterr().err


@pytest.mark.parametrize(("code", "left_out", "expected"), [(0, 0, 0), (0, 1, 1), (1, 0, 1)])
def test_the_layers_of_peft(code, left_out, expected, monkeypatch, capsys):
    asked, proofs = [], list(shipped_proofs().values())

    def run(command, env, check):
        asked.append(command)
        assert not Path(env["PATCHKIT_CACHE"]).exists()
        with monkeypatch.context() as patch:
            patch.setenv("PATCHKIT_CACHE", env["PATCHKIT_CACHE"])
            add_reader_proofs(proofs[left_out:])
        return SimpleNamespace(returncode=code)

    monkeypatch.setattr(prove_again.subprocess, "run", run)
    assert prove_again.main(["peft"]) == expected
    asked_for = {release for word, release in zip(asked[0], asked[0][1:], strict=False) if word == "--peft"}
    assert asked_for == {proof.versions["peft"] for proof in proofs}
    said = [f"not proven again: {proof.reader} {proof.source}" for proof in proofs[:left_out]]
    assert capsys.readouterr().err.splitlines() == said
