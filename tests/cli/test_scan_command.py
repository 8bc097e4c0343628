"""``patchkit scan``: what is asked for, what is shown, and the exit code."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from patchkit.check import run as run_check
from patchkit.check.numeric import recorded, remembered, scanning
from patchkit.check.numeric.model_types import STATES, TypeOutcome
from patchkit.cli.main import app
from patchkit.errors import UnknownModelTypeError
from patchkit.upstream import releases

FOUND = [
    TypeOutcome("whisper", "seq2seq", "verified", "", "W", 4, 3, 0, ("A qkv",), "float32", 2e-7, 1.0),
    TypeOutcome(
        "mixtral", "causal", "verified", "Mixtral.gate: no reader", "M", 8, 0, 4, ("B o",), "float64", 1e-15, 1.0
    ),
    TypeOutcome("llama", "causal", "verified", "", "L", 14, 0, 0, ("C mlp",), "float32", 3e-7, 1.0),
    TypeOutcome("dbrx", "causal", "not built", "it wants a GPU"),
    TypeOutcome("llama4", "causal", "not run", "plain PEFT fails: \x1b[31mred"),
]


@pytest.fixture
def asked(monkeypatch):
    """What the scan was asked for; it finds what the list in it says."""
    asked = {"found": list(FOUND)}

    def scan_types(environment, heads, patterns, *, jobs, seconds, remembered, recorded, options, progress):
        asked.update(environment=environment, heads=list(heads), patterns=list(patterns), jobs=jobs, seconds=seconds)
        asked.update(remembered=remembered, recorded=recorded, options=options)
        for done, one in enumerate(asked["found"]):
            progress(done, len(asked["found"]))
            yield one

    monkeypatch.setattr(scanning, "scan_types", scan_types)
    environment = SimpleNamespace(versions={"transformers": "5.23.0"})
    monkeypatch.setattr(remembered, "setting_of", lambda environment: f"of {environment.versions['transformers']}")
    monkeypatch.setattr(recorded, "record_of_checkout", lambda: None)
    monkeypatch.setattr(releases, "resolve", lambda wanted: [asked.update(wanted=wanted) or "a release"])
    monkeypatch.setattr(run_check, "environment_of", lambda release: asked.update(release=release) or environment)
    return asked


def run(*arguments):
    return CliRunner().invoke(app, ["scan", *arguments])


def test_what_is_verified_whole_is_counted_and_not_listed(asked):
    result = run("--head", "causal", "--head", "seq2seq")
    assert result.exit_code == 0
    types, heads = result.output.split("head     types")
    listed = [line.split()[0] for line in types.splitlines()[1:]]
    assert listed == ["dbrx", "llama4", "mixtral"], "sorted; llama and whisper are fused as a whole"
    assert "it wants a GPU" in types
    assert "\\x1b[31mred" in types
    assert "1.0e-15 (float64)" in types
    causal, seq2seq, everything = [line.split() for line in heads.strip().splitlines()[1:]]
    assert causal == ["causal", "4", "2", "1", "1", "26", "22", "(85", "%)", "0", "(0", "%)", "4", "(15", "%)"]
    assert seq2seq[:6] == ["seq2seq", "1", "1", "0", "0", "7"]
    assert everything[:6] == ["all", "5", "3", "1", "1", "33"]


@pytest.mark.parametrize("arguments", [("--all-rows",), ("llama", "mixtral")], ids=str)
def test_every_type_is_listed_on_request(asked, arguments):
    output = run(*arguments, "--head", "causal", "--head", "seq2seq").output
    assert [line.split()[0] for line in output.splitlines()[1:6]] == ["dbrx", "llama", "llama4", "mixtral", "whisper"]


def test_options_reach_the_scan(asked):
    asked["found"] = []
    run("llama*", "--head", "vision", "--jobs", "3", "--time-limit", "7")
    assert asked["heads"] == ["vision"]
    assert (asked["patterns"], asked["jobs"], asked["seconds"]) == (["llama*"], 3, 7.0)


def test_options_of_apply_reach_the_scan_and_leave_nothing_behind(asked):
    asked["found"] = []
    assert run("-o", "memory=tiled", "--option", "loss=true").exit_code == 0
    assert asked["options"] == {"memory": "tiled", "loss": True}
    assert asked["remembered"] is asked["recorded"] is None
    for wrong, said in (("los=true", "did you mean 'loss'?"), ("loss", "has no value")):
        result = run("-o", wrong)
        assert (result.exit_code, said in result.output) == (2, True)
    assert "is found without --option" in run("-o", "loss=true", "--write", "c.md").output


@pytest.mark.parametrize("anew", [False, True])
def test_what_is_remembered_counts_unless_asked_anew(asked, anew):
    run(*(["--anew"] if anew else []), "--head", "causal", "--head", "seq2seq")
    assert (asked["remembered"] is None) == anew
    assert anew or vars(asked["remembered"]) == {"_setting": "of 5.23.0"}


def test_the_usual_heads(asked):
    asked["found"] = []
    assert run().exit_code == 0
    assert asked["heads"] == list(scanning.DEFAULT_HEADS)
    assert asked["patterns"] == []


def test_json(asked):
    data = json.loads(run("--json", "--head", "causal", "--head", "seq2seq").stdout)
    assert data["versions"] == {"transformers": "5.23.0"}
    assert [one["model_type"] for one in data["types"]] == ["dbrx", "llama", "llama4", "mixtral", "whisper"]
    assert [TypeOutcome.from_json(one) for one in data["types"]] == sorted(
        FOUND, key=lambda one: (one.head != "causal", one.model_type)
    )


@pytest.mark.parametrize("state", STATES)
def test_only_a_difference_is_a_fault(asked, state):
    asked["found"].append(TypeOutcome("phi3", "causal", state, "in float64: it differs"))
    assert run("--head", "causal", "--head", "seq2seq").exit_code == (1 if state == "different" else 0)


def test_an_unknown_type_is_wrong_usage(asked, monkeypatch):
    def scan_types(*_, **__):
        raise UnknownModelTypeError("no model type matches 'lama' under causal")
        yield

    monkeypatch.setattr(scanning, "scan_types", scan_types)
    result = run("lama")
    assert result.exit_code == 2
    assert "no model type matches 'lama' under causal" in result.output


@pytest.mark.parametrize(("arguments", "wanted"), [((), "installed"), (("-t", "5.22.0"), "5.22.0")], ids=str)
def test_another_release_runs_in_an_environment_of_its_own(asked, arguments, wanted):
    assert run(*arguments, "--head", "causal", "--head", "seq2seq").exit_code == 0
    assert (asked["wanted"], asked["release"]) == ([wanted], "a release")


# ---- what is on record


@pytest.fixture
def on_record(asked, monkeypatch, tmp_path):
    """A record of 5.22.0, which has llama, dbrx and opt, in a checkout."""

    known = [("llama", "causal"), ("dbrx", "causal"), ("opt", "causal"), ("vit", "vision")]
    record = SimpleNamespace(
        same_release=False,
        made_with=SimpleNamespace(versions={"transformers": "5.22.0"}),
        lines=dict.fromkeys(known),
        is_new=lambda model_type: (model_type, "causal") not in known,
    )
    monkeypatch.setattr(recorded, "record_of_checkout", lambda: tmp_path / "coverage.jsonl")
    monkeypatch.setattr(recorded.Recorded, "load", lambda path, environment: record)
    monkeypatch.setattr(recorded, "to_text", lambda outcomes, environment: f"{len(outcomes)} outcomes\n")
    asked["found"] = [
        TypeOutcome("llama", "causal", "verified", whole=14, seen_in="5.22.0"),
        TypeOutcome("dbrx", "causal", "not built", "it wants a GPU"),
        TypeOutcome("llama5", "causal", "verified", whole=14),
    ]
    return asked


def test_what_is_new_in_another_release_is_said(on_record):
    lines = run("--head", "causal").output.splitlines()
    assert lines[-4:] == [
        "new since 5.22.0: llama5",
        "of other sources than in 5.22.0: dbrx",
        "in 5.22.0 and gone: opt",
        "of the same sources as in 5.22.0, as they were found with it: 1",
    ]
    chosen = run("llama", "--head", "causal").output.splitlines()
    assert "in 5.22.0 and gone: none" in chosen, "what was not asked for is not gone"


@pytest.mark.parametrize(("arguments", "used"), [((), True), (("--anew",), False), (("--write", "c.md"), False)])
def test_what_is_run_anew_or_written_is_not_taken_from_the_record(on_record, tmp_path, monkeypatch, arguments, used):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments, "--head", "causal").exit_code == 0
    assert (on_record["recorded"] is not None) is used
    assert [path.name for path in sorted(tmp_path.iterdir())] == (["c.jsonl", "c.md"] if "--write" in arguments else [])
