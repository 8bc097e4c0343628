"""The ledger: what is written is read, in one order, by two processes at once, and through a kill."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from patchkit.arch.registry import architectures
from patchkit.cache import storage
from patchkit.errors import CacheError, PatchkitWarning
from patchkit.rewrite import REWRITE_VERSION
from patchkit.trust import ledger
from patchkit.trust.key import hash_of_class
from patchkit.trust.ledger import SHIPPED_LEDGER, Proof, add_proofs, find_proof, read_proofs, user_ledger

pytest_plugins = ["proof_fixtures"]
pytestmark = pytest.mark.usefixtures("cache")

SOURCE = "a" * 64


def test_what_is_written_is_read(tmp_path, make_proof):
    path, proof = tmp_path / "ledger.jsonl", make_proof()
    add_proofs(path, [proof])
    assert read_proofs(path) == {proof.key: proof}
    assert Proof.from_line(proof.to_line()) == proof


def test_there_need_be_no_file(tmp_path):
    assert read_proofs(tmp_path / "none.jsonl") == {}
    assert not (tmp_path / "none.jsonl").exists()


def test_lines_are_sorted_and_proving_again_changes_nothing(tmp_path, make_proof, lines):
    path = tmp_path / "ledger.jsonl"
    proofs = [make_proof("MLP"), make_proof(source="b"), make_proof(), make_proof(rewrite=2)]
    for proof in proofs:
        add_proofs(path, [proof])
    found = [(line["class"].rpartition(".")[2], line["source"][0], line["rewrite"]) for line in lines(path)]
    assert found == [("Attention", "a", 1), ("Attention", "a", 2), ("Attention", "b", 1), ("MLP", "a", 1)]
    before = path.read_bytes()
    add_proofs(path, [make_proof(date="2027-01-01", transformers="6.0.0")])
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        ({"stage": "spot", "checks": 9}, {"stage": "numeric"}, "numeric"),
        ({"stage": "numeric"}, {"stage": "spot", "checks": 9}, "numeric"),
        ({"checks": 2}, {"checks": 3}, 3),
        ({"checks": 3}, {"checks": 2}, 3),
        ({"date": "2026-05-05"}, {"date": "2026-04-04"}, "2026-04-04"),
    ],
)
def test_the_stronger_proof_stays_then_the_older(tmp_path, make_proof, first, second, kept):
    path = tmp_path / "ledger.jsonl"
    add_proofs(path, [make_proof(**first)])
    add_proofs(path, [make_proof(**second)])
    (proof,) = read_proofs(path).values()
    assert kept in (proof.stage, len(proof.checks), proof.date)


def test_two_branches_merge_line_by_line(tmp_path, make_proof):
    """git's union of two files that were each extended is a ledger."""
    ours, theirs = tmp_path / "ours.jsonl", tmp_path / "theirs.jsonl"
    add_proofs(ours, [make_proof(), make_proof("MLP")])
    add_proofs(theirs, [make_proof(), make_proof(source="b")])
    both = tmp_path / "both.jsonl"
    both.write_text(ours.read_text() + theirs.read_text())
    assert len(read_proofs(both)) == 3


def test_the_oldest_go_first_when_there_are_too_many(tmp_path, make_proof):
    path = tmp_path / "ledger.jsonl"
    add_proofs(path, [make_proof(f"Class{day}", date=f"2026-01-{day:02}") for day in range(1, 21)], limit=5)
    assert sorted(proof.date[-2:] for proof in read_proofs(path).values()) == ["16", "17", "18", "19", "20"]


GOOD = {
    "class": "m.C", "source": SOURCE, "rewrite": 1, "stage": "numeric", "levels": {"mlp": "fused"},
    "checks": {"eval": 1e-7}, "versions": {"torch": "2"}, "date": "2026-01-01",
}  # fmt: skip
DAMAGED = {
    "cut in the middle": json.dumps(GOOD)[:40],
    "not JSON": "<<<<<<< HEAD",
    "no object": "[1, 2]",
    "binary": "\x00\x01\ufffd",
    "deeply nested": "[" * 100_000,
    "a field is missing": json.dumps({key: value for key, value in GOOD.items() if key != "stage"}),
    "another stage": json.dumps(GOOD | {"stage": "believed"}),
    "no checks": json.dumps(GOOD | {"checks": {}}),
    "an error that is not finite": json.dumps(GOOD | {"checks": {"eval": float("nan")}}),
    "an error that is no float": json.dumps(GOOD | {"checks": {"eval": 10**400}}),
    "an error of too many digits": json.dumps(GOOD | {"checks": {"eval": 0}}).replace(
        '"eval": 0', f'"eval": {"9" * 9000}'
    ),
    "an infinite error": json.dumps(GOOD | {"checks": {"eval": -float("inf")}}),
    "deeply nested levels": json.dumps(GOOD | {"levels": 0}).replace(
        '"levels": 0', '"levels": ' + "[" * 900 + "]" * 900
    ),
    "an error that is text": json.dumps(GOOD | {"checks": {"eval": "small"}}),
    "a short hash": json.dumps(GOOD | {"source": "abc"}),
    "a rewriter that is no number": json.dumps(GOOD | {"rewrite": True}),
    "a class that is no text": json.dumps(GOOD | {"class": None}),
}


@pytest.mark.parametrize("line", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_line_is_named_and_left_out(tmp_path, make_proof, line):
    path, proof = tmp_path / "ledger.jsonl", make_proof()
    path.write_text(f"{line}\n{proof.to_line()}\n", encoding="utf-8")
    with pytest.warns(PatchkitWarning, match=r"ledger\.jsonl has 1 damaged lines.*line 1: ") as caught:
        assert read_proofs(path) == {proof.key: proof}
    assert len(caught) == 1
    assert read_proofs(path)  # and is not named again while the file stays as it is


def test_a_damaged_file_is_mended_by_the_next_proof(tmp_path, make_proof, lines):
    path = tmp_path / "ledger.jsonl"
    path.write_text("garbage\n" + make_proof().to_line()[:-9])
    with pytest.warns(PatchkitWarning, match="2 damaged lines"):
        add_proofs(path, [make_proof("MLP")])
    assert [line["class"].rpartition(".")[2] for line in lines(path)] == ["MLP"]


def test_what_cannot_be_read_is_not_overwritten(tmp_path, make_proof):
    path = tmp_path / "ledger.jsonl"
    path.mkdir()
    with pytest.warns(PatchkitWarning, match=r"cannot be read.*verified again"):
        assert read_proofs(path) == {}
    with pytest.raises(CacheError, match="cannot be read"):
        add_proofs(path, [make_proof()])
    assert path.is_dir()


def test_a_full_disk_leaves_the_old_file(tmp_path, make_proof, monkeypatch):
    path = tmp_path / "ledger.jsonl"
    add_proofs(path, [make_proof()])
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(CacheError, match="cannot be written: No space left on device"):
        add_proofs(path, [make_proof("MLP")])
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["ledger.jsonl", "ledger.jsonl.lock"]


def test_a_lock_that_is_never_freed_is_an_error(tmp_path):
    path = tmp_path / "ledger.jsonl"
    with (
        storage.locked(path),
        pytest.raises(CacheError, match="locked by another process"),
        storage.locked(path, seconds=0.1),
    ):
        pass


WRITER = """
import sys
from pathlib import Path
from patchkit.trust.ledger import Key, Proof, add_proofs
path, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
for index in range(count):
    key = Key(f"m.{name}{index}", "a" * 64, 1)
    add_proofs(path, [Proof(key, "spot", {}, {"eval": 0.0}, {}, "2026-01-01")])
    print(index, flush=True)
"""


def writer(path, name, count):
    command = [sys.executable, "-c", WRITER, str(path), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


def test_two_processes_lose_nothing(tmp_path):
    path = tmp_path / "ledger.jsonl"
    processes = [writer(path, name, 25) for name in ("A", "B")]
    assert [process.communicate() and process.returncode for process in processes] == [0, 0]
    assert len(read_proofs(path)) == 50


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
def test_a_kill_at_any_moment_leaves_a_whole_file_and_no_lock(tmp_path, make_proof, recwarn):
    """Writers are killed at random moments, while somebody looks all the time: the file is whole whenever it is read."""
    path, before, chance = tmp_path / "ledger.jsonl", 4000, random.Random(5)
    add_proofs(path, [make_proof(f"Class{index}") for index in range(before)])
    for attempt in range(4):
        process = writer(path, f"Killed{attempt}_", 10_000)
        written = int(process.stdout.readline())  # it is at work
        sizes, wanted = set(), chance.randrange(4, 8)
        try:
            while len(sizes) < wanted:  # each is another file: somebody looks while it is written
                data = path.read_bytes()
                assert data[-2:] == b"}\n"
                assert data.count(b"\n") > before
                sizes.add(len(data))
        finally:
            process.send_signal(signal.SIGKILL)
        written += len(process.communicate()[0].split())
        found = [key for key in read_proofs(path) if f"Killed{attempt}_" in key.class_name]
        assert len(found) >= written + 1  # what was said to be written is there
        add_proofs(path, [])  # the lock is free
    assert not recwarn.list


def test_the_users_ledger_is_in_the_cache(cache, make_proof):
    proof = make_proof()
    assert find_proof(proof.key) is None
    add_proofs(user_ledger(), [proof])
    assert user_ledger().parent == cache
    assert find_proof(proof.key) == proof


def test_without_the_variable_it_is_where_the_platform_keeps_caches(monkeypatch):
    monkeypatch.delenv("PATCHKIT_CACHE")
    assert user_ledger().parent.name == "patchkit"


class TestShipped:
    def test_it_is_whole_and_sorted(self, recwarn):
        proofs = read_proofs(SHIPPED_LEDGER)
        lines = SHIPPED_LEDGER.read_text(encoding="utf-8").splitlines()
        assert [proofs[key].to_line() for key in sorted(proofs)] == lines
        assert not recwarn.list

    def test_it_is_of_the_contract_and_the_present_rewriter(self):
        from patchkit.check.numeric.outcomes import NUMERIC_CHECKS
        from patchkit.testing import CHECKS

        assert set(NUMERIC_CHECKS) <= set(CHECKS)
        for proof in read_proofs(SHIPPED_LEDGER).values():
            assert proof.stage == "numeric"
            assert proof.key.rewrite == REWRITE_VERSION
            assert {"forward_backward", "dropout", "bfloat16"} <= set(proof.checks) <= set(NUMERIC_CHECKS)
            for name, error in proof.checks.items():
                limit = 1.1 if "bfloat16" in name else 1e-4 if name == "training_curve" else 1e-5
                assert error <= limit, (proof.key.class_name, name)

    def test_every_class_of_the_tested_release_is_in_it(self):
        """`python -m patchkit.check.numeric --ledger` enters what is missing."""
        import transformers

        if transformers.__version__ != "5.23.0":
            pytest.skip("the shipped ledger is held against the pinned release")
        proven = read_proofs(SHIPPED_LEDGER)
        for architecture in architectures().values():
            for block in architecture.blocks:
                module = __import__(architecture.module, fromlist=["_"])
                source = hash_of_class(Path(module.__file__).read_text(encoding="utf-8"), block.class_name)
                assert ledger.Key(f"{architecture.module}.{block.class_name}", source, REWRITE_VERSION) in proven

    def test_it_is_packaged(self):
        assert SHIPPED_LEDGER.is_relative_to(Path(ledger.__file__).parents[1])
        ignored = subprocess.run(
            ["git", "check-ignore", str(SHIPPED_LEDGER)], cwd=SHIPPED_LEDGER.parent, capture_output=True
        )
        assert ignored.returncode == 1, "hatchling leaves out what git ignores"
