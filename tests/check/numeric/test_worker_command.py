"""The command of the numeric stage: its options, its lines, its exit code; the numbers are made by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

import patchkit.check.numeric.__main__ as command
from patchkit.arch.registry import architectures
from patchkit.check.numeric.outcomes import ArchitectureOutcome, BlockOutcome, Status
from patchkit.errors import ReleaseEnvironmentError
from patchkit.trust.ledger import SHIPPED_LEDGER, Key, Proof, read_proofs

pytest_plugins = ["proof_fixtures"]
pytestmark = pytest.mark.usefixtures("cache")

VERSIONS = {"transformers": "5.90.0", "torch": "2.13.0", "peft": "0.21.2", "python": "3.11.7"}


def outcome(name: str, status: Status) -> ArchitectureOutcome:
    proof = Proof(Key(f"m.{name}", "a" * 64, 1), "numeric", {"mlp": "fused"}, {"eval": 1e-7}, VERSIONS, "2026-01-02")
    line = proof.to_line() if status == "passed" else None
    block = BlockOutcome(
        f"m.{name}", "a" * 64, "tiny", status, {"qkv": "fused", "o": "linear"}, {}, "" if line else "eval: x", line
    )
    return ArchitectureOutcome(name, VERSIONS, (block,), seconds=1.25)


class Fake:
    """The running environment, in which each architecture has a status."""

    def __init__(self) -> None:
        self.statuses: dict[str, Status] = {}
        self.asked: list[str] = []
        self.jobs = 0
        self.error: BaseException | None = None

    def check(self, names: Sequence[str], *, jobs: int) -> Iterator[ArchitectureOutcome]:
        self.asked, self.jobs = list(names), jobs
        for name in names:
            yield outcome(name, self.statuses.get(name, "passed"))
        if self.error:
            raise self.error


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    found = Fake()
    monkeypatch.setattr(command, "running_environment", lambda: found)
    return found


STATUSES: dict[tuple[Status, ...], int] = {
    ("passed", "passed"): 0, ("passed", "failed"): 1, ("failed", "passed"): 1, ("inapplicable", "passed"): 1, ("passed", "inapplicable"): 1,
    ("failed", "failed"): 1, ("failed", "inapplicable"): 1,
}  # fmt: skip


@pytest.mark.parametrize("statuses", STATUSES, ids=str)
def test_the_exit_code(statuses: tuple[Status, ...], fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    fake.statuses = dict(zip(("llama", "gemma"), statuses, strict=True))
    assert command.main(["--arch", "llama", "--arch", "gemma"]) == STATUSES[statuses]
    assert len(capsys.readouterr().out.splitlines()) == 4


OPTIONS: dict[tuple[str, ...], tuple[list[str], int]] = {
    (): (list(architectures()), 1),
    ("--jobs", "3"): (list(architectures()), 3),
    ("--arch", "llama"): (["llama"], 1),
    ("--arch", "llama", "--arch", "gemma", "--jobs", "2"): (["llama", "gemma"], 2),
    ("--arch", "gemma[23]"): (["gemma2", "gemma3"], 1),
}


@pytest.mark.parametrize("given", OPTIONS, ids=" ".join)
def test_which_architectures_and_how_many_processes(given: tuple[str, ...], fake: Fake) -> None:
    assert command.main(given) == 0
    assert (fake.asked, fake.jobs) == OPTIONS[given]


@pytest.mark.parametrize("as_json", [True, False])
def test_the_lines(as_json: bool, fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    fake.statuses = {"gemma": "failed"}
    command.main(["--arch", "llama", "--arch", "gemma", *(["--json"] if as_json else [])])
    lines = capsys.readouterr().out.splitlines()
    if as_json:
        assert [json.loads(line)["architecture"] for line in lines] == ["llama", "gemma"]
        assert ArchitectureOutcome.from_json(lines[1]).status == "failed"
    else:
        assert lines == [
            "llama: passed in 1.2 s",
            "  llama in tiny: passed (qkv fused, o linear)",
            "gemma: failed in 1.2 s",
            "  gemma in tiny: failed (qkv fused, o linear) eval: x",
        ]


def test_what_was_not_shown_has_lines_of_its_own() -> None:
    shown = ArchitectureOutcome("llama", VERSIONS, (), {"A": "it is odd"}, {"tiny": "no such model"})
    assert command._text(shown).splitlines() == [
        "llama: inapplicable in 0.0 s", "  A: not patched: it is odd", "  tiny: no such model",
    ]  # fmt: skip


LEDGERS = {(): None, ("--ledger",): "shipped", ("--ledger", "mine.jsonl"): "mine.jsonl"}


@pytest.mark.parametrize("given", LEDGERS, ids=" ".join)
@pytest.mark.parametrize("status", ["passed", "failed"])
def test_where_proofs_go(
    given: tuple[str, ...], status: Status, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only those that were made, and only into a ledger that is named."""
    monkeypatch.chdir(tmp_path)
    entered: list[Path] = []
    known = command.add_proofs
    monkeypatch.setattr(
        command, "add_proofs", lambda path, proofs: entered.append(path) or known(tmp_path / path.name, proofs)
    )
    fake.statuses = {"llama": status}
    command.main(["--arch", "llama", *given])
    expected = {None: [], "shipped": [SHIPPED_LEDGER], "mine.jsonl": [Path("mine.jsonl")]}[LEDGERS[given]]
    assert entered == (expected if status == "passed" else [])
    if entered:
        assert [key.class_name for key in read_proofs(tmp_path / entered[0].name)] == ["m.llama"]


@pytest.mark.parametrize(("error", "said"), [
    (ReleaseEnvironmentError("it is another"), "patchkit: error: it is another\n"), (KeyboardInterrupt(), "patchkit: interrupted\n"),
])  # fmt: skip
def test_an_end_before_the_end(error: BaseException, said: str, fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    """What was done is shown all the same, and it is not passed."""
    fake.error = error
    assert command.main(["--arch", "llama"]) == 2
    shown = capsys.readouterr()
    assert (shown.out.splitlines()[0], shown.err) == ("llama: passed in 1.2 s", said)


def test_each_line_is_there_as_soon_as_it_is_done(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads the lines through a pipe may wait for them."""
    written: list[str] = []
    output = SimpleNamespace(write=written.append, flush=lambda: written.append("flushed"))
    monkeypatch.setattr(command.sys, "stdout", output)
    command.main(["--arch", "llama", "--arch", "gemma"])
    assert [text == "flushed" for text in written] == [False, True] * 2
