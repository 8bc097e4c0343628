"""What is on record of model types: believed for the very code that made it, and for types whose sources are the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from patchkit.check.numeric import recorded
from patchkit.check.numeric.environments import Environment
from patchkit.check.numeric.model_types import STATES, TypeOutcome
from patchkit.check.numeric.recorded import Recorded, to_text
from patchkit.check.static.type_sources import type_sources
from patchkit.errors import CacheError

MODELS = {
    "alpha": ("    model_type = 'alpha'\n", "class AlphaMLP: pass\n"),
    "beta": ("    model_type: str = 'beta'\n", "from ..alpha.modeling_alpha import AlphaMLP\n"),
    "gamma": ("    model_type = 'gamma'\n    text = CONFIG_MAPPING['alpha_text']\n", "class Gamma: pass\n"),
    "delta": ("    model_type = 'delta'\n", "class Delta: pass\n"),
    "uses_beta": ("    model_type = 'uses-beta'\n", "from ..beta import modeling_beta\n"),
}
ALPHA_TEXT = "class AlphaTextConfig:\n    model_type = 'alpha_text'\n"
NAMES = ("alpha", "alpha_text", "beta", "delta", "gamma", "uses-beta")

FOUND = [
    TypeOutcome(
        name, "base" if name == "delta" else "causal", "verified", "", "A", 2, 1, 0, ("C mlp",), "float32", 3e-7, 1.5
    )
    for name in NAMES
]


deciding = recorded._deciding


@pytest.fixture(autouse=True)
def code(monkeypatch):
    """The code of patchkit is hashed once."""
    monkeypatch.setattr(recorded, "_deciding", lambda packages: "this")


def environment(folder: Path, release: str = "5.1.0") -> Environment:
    package = folder / "transformers"
    for name, (config, model) in MODELS.items():
        own = package / "models" / name
        own.mkdir(parents=True)
        more = ALPHA_TEXT if name == "alpha" else ""
        (own / f"configuration_{name}.py").write_text(f"class Config:\n{config}{more}")
        (own / f"modeling_{name}.py").write_text(model)
    (package / "modeling_utils.py").write_text(f"release = {release!r}\n")
    (folder / "peft").mkdir()
    (folder / "peft" / "lora.py").write_text("rank = 8\n")
    versions = {"transformers": release, "torch": "2.13.0", "peft": "0.21.2", "python": "3.11.7"}
    return Environment(Path("python"), versions, package)


@pytest.fixture
def known(tmp_path):
    return environment(tmp_path / "known")


@pytest.fixture
def record(known, tmp_path):
    place = tmp_path / "coverage.jsonl"
    place.write_text(to_text(reversed(FOUND), known))
    return place


def model_file(of, name):
    return of.place / "models" / name / f"modeling_{name}.py"


# ---- the same release


def test_what_is_on_record_is_what_was_found_without_what_differs_between_machines(known, record):
    found = Recorded.load(record, known)
    assert found.same_release
    for one in FOUND:
        assert found.outcome(one.model_type, one.head) == replace(one, error=0.0, seconds=0.0, judged_in="")
    assert found.outcome("delta", "causal") is None
    assert found.types(["base", "causal"]) == {"base": ["delta"], "causal": [one for one in NAMES if one != "delta"]}
    assert found.types(["causal", "vision"]) is None, "of this head nothing is on record"


def test_the_file_is_sorted_and_the_same_each_time(known, record):
    again = [replace(one, error=1e-6, seconds=9.0, judged_in="float64") for one in FOUND]
    assert to_text(again, known) == record.read_text()
    lines = [json.loads(line) for line in record.read_text().splitlines()[1:]]
    assert [(one["head"], one["model_type"]) for one in lines] == sorted((one.head, one.model_type) for one in FOUND)
    assert not {"error", "seconds"} & set().union(*lines)


@pytest.mark.parametrize("state", STATES)
def test_a_difference_is_no_record(known, state):
    text = to_text([replace(FOUND[0], state=state)], known)
    assert len(text.splitlines()) == (1 if state == "different" else 2)


def test_a_process_that_was_lost_is_there_without_what_it_said(known):
    """Else a scan that starts from the record would not name its type."""
    lost = replace(FOUND[0], state="not run", reason="its process was lost: it was killed")
    line = json.loads(to_text([lost], known).splitlines()[1])
    assert (line["model_type"], line["head"], line["state"]) == (FOUND[0].model_type, FOUND[0].head, "not run")
    assert line["reason"].startswith("its process was lost when the record was made")
    assert "killed" not in line["reason"]


# ---- other code


def test_other_code_of_patchkit_or_peft_has_no_record(known, record, monkeypatch):
    with monkeypatch.context() as changed:
        changed.setattr(recorded, "_deciding", lambda packages: "other")
        assert Recorded.load(record, known) is None
    assert Recorded.load(record, known) is not None
    (known.place.parent / "peft" / "lora.py").write_text("rank = 16\n")
    assert Recorded.load(record, known) is None


@pytest.mark.parametrize(
    ("path", "text", "counts"),
    [
        ("rewrite/rules/one.py", "x = 2\n", True),
        ("check/numeric/model_types.py", "x = 2\n", True),
        ("testing/new.py", "x = 1\n", True),
        ("rewrite/rules/one.py", '"""Said otherwise."""\n\nx = 1  # so\n', False),
        ("cli/scan.py", "x = 2\n", False),
        ("check/results/coverage.py", "x = 2\n", False),
        ("check/numeric/recorded.py", "x = 2\n", False),
        ("trust/policy.py", "x = 2\n", False),
        ("version.py", "x = 2\n", False),
    ],
)
def test_only_code_that_outcomes_come_from_counts(tmp_path, path, text, counts):
    for name in ("rewrite/rules/one.py", "check/numeric/model_types.py", "cli/scan.py", "check/results/coverage.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    before = deciding([tmp_path])
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(text)
    assert (deciding([tmp_path]) != before) is counts


def test_every_room_that_does_not_count_is_there():
    root = Path(recorded.patchkit.__file__).parent
    assert [name for name in recorded._NOT_DECIDING if not (root / name).exists()] == []


# ---- another release


@pytest.mark.parametrize(
    ("changed", "text", "run"),
    [
        (None, "", set()),
        ("alpha", "class AlphaMLP: wide = True\n", {"alpha", "alpha_text", "beta", "gamma", "uses-beta"}),
        ("alpha", "# said otherwise\nclass AlphaMLP: pass\n", set()),
        ("delta", "class Delta: wide = True\n", {"delta"}),
        ("beta", "from ..alpha.modeling_alpha import AlphaMLP\nx = 1\n", {"beta", "uses-beta"}),
        ("delta", "class Delta(:\n", {"delta"}),
    ],
)
def test_of_another_release_types_are_known_whose_sources_are_the_same(tmp_path, record, changed, text, run):
    other = environment(tmp_path / "other", "5.2.0")
    if changed is not None:
        model_file(other, changed).write_text(text)
    found = Recorded.load(record, other)
    assert not found.same_release
    assert found.types(["base", "causal"]) is None, "another release may have more of them"
    outcomes = {one.model_type: found.outcome(one.model_type, one.head) for one in FOUND}
    assert {name for name, one in outcomes.items() if one is None} == run
    assert {one.seen_in for one in outcomes.values() if one is not None} == ({"5.1.0"} if len(run) < 6 else set())


def test_a_type_that_another_release_brings_is_not_known(tmp_path, record):
    other = environment(tmp_path / "other", "5.2.0")
    new = other.place / "models" / "epsilon"
    new.mkdir()
    (new / "configuration_epsilon.py").write_text("class Config:\n    model_type = 'epsilon'\n")
    found = Recorded.load(record, other)
    assert found.outcome("epsilon", "causal") is None
    assert found.is_new("epsilon")
    assert not found.is_new("delta")


def test_files_of_other_frameworks_do_not_count(known):
    before = type_sources(known.place)
    (model_file(known, "delta").parent / "modeling_tf_delta.py").write_text("x = 1\n")
    assert type_sources(known.place) == before


# ---- files that are none


def test_without_a_file_nothing_is_on_record(known, tmp_path):
    assert Recorded.load(tmp_path / "none.jsonl", known) is None
    (tmp_path / "empty.jsonl").write_text("")
    assert Recorded.load(tmp_path / "empty.jsonl", known) is None


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "1", "null", '{"model_type": "a"}', '{"sources": 1}', "[" * 100_000],
    ids=range(7),
)
def test_a_damaged_line_is_named(known, record, line):
    lines = record.read_text().splitlines()
    for place in (0, 2):
        damaged = [*lines[:place], line, *lines[place:]]
        record.write_text("\n".join(damaged) + "\n")
        with pytest.raises(CacheError, match=rf"coverage.jsonl:{place + 1} is damaged"):
            Recorded.load(record, known)
