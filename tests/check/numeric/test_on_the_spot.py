"""What tiny instances show of a class: each outcome of each way to build one, in order, with instances that are given."""

from __future__ import annotations

import pytest
from torch import nn

from patchkit.arch.registry import architectures
from patchkit.check.numeric import on_the_spot
from patchkit.check.numeric.proving import Subject, Trial
from patchkit.check.numeric.tiny_instances import TinyInstance
from patchkit.testing.checks.base import CheckResult
from patchkit.testing.parity import Findings, Measurement
from patchkit.trust.ledger import Key

MLP = architectures()["llama"].blocks[1]
CLASSES = {name: type(name, (nn.Module,), {}) for name in "AB"}
FUSED = {"mlp": "fused"}


def result(check, status, **options):
    problems = ("it differs",) if status == "failed" else ()
    return CheckResult(check, status, Findings((Measurement("x", 1e-7, 1e-5, True),), problems), **options)


def trial(name, *statuses, levels=FUSED, reason=""):
    cls = CLASSES[name]
    results = tuple(
        result(f"check{number}", status, reason=reason if status == "inapplicable" else "")
        for number, status in enumerate(statuses)
    )
    return Trial(Subject(Key(f"m.{name}", "a" * 64, 1), cls, cls, MLP), levels, results)


PASSED = {name: trial(name, "passed", "passed") for name in "AB"}
FAILED = {name: trial(name, "passed", "failed") for name in "AB"}
PARTLY = trial("A", "passed", "inapplicable", reason="no dropout")
NOT_FIRST = trial("A", "inapplicable", "passed", reason="no loss")
UPSTREAM = trial("A", "passed", levels={"mlp": "upstream"})


@pytest.fixture
def verify(monkeypatch):
    """Verifies classes with what each way shows: a reason, an error, or trials."""

    def run(ways, names="A"):
        asked, proved = [], []

        def instances(model, found, cls):
            asked.append(cls.__name__)
            for way in ways.get(cls.__name__, ()):
                yield way if isinstance(way, str) else TinyInstance(way, {})

        def prove(instance, classes):
            proved.append([cls.__name__ for cls in classes])
            if isinstance(instance.model, Exception):
                raise instance.model
            return instance.model

        monkeypatch.setattr(on_the_spot, "tiny_instances", instances)
        monkeypatch.setattr(on_the_spot, "_prove", prove)
        found = on_the_spot._verify(nn.Module(), {CLASSES[name]: None for name in names})
        return {cls.__name__: one for cls, one in found.items()}, asked, proved

    return run


OUTCOMES = {
    # what the ways to build a tiny instance of A give, and what is shown
    "nothing": ([], "there is no tiny model of it"),
    "a reason": (["it wants a GPU"], "it wants a GPU"),
    "two reasons": (["one", "two"], "one; two"),
    "the same reason twice": (["one", "two", "one"], "one; two"),
    "an error": ([ValueError("no such head")], "ValueError: no such head"),
    "it passes": ([[PASSED["A"]]], PASSED["A"]),
    "it fails": ([[FAILED["A"]]], FAILED["A"]),
    "a check that does not apply": ([[PARTLY]], PARTLY),
    "the first does not apply": ([[NOT_FIRST]], "no loss"),
    "it runs upstream": ([[UPSTREAM]], "all of it runs at upstream level"),
    "another class passes": ([[PASSED["B"]]], "there is no tiny model of it"),
    "the second way": (["one", [PASSED["A"]]], PASSED["A"]),
    "after an error": ([ValueError("no"), [FAILED["A"]]], FAILED["A"]),
    "after one that shows nothing": ([[UPSTREAM], [PASSED["A"]]], PASSED["A"]),
    "the first that shows something": ([[PASSED["A"]], [FAILED["A"]]], PASSED["A"]),
    "failed for good": ([[FAILED["A"]], [PASSED["A"]]], FAILED["A"]),
}


@pytest.mark.parametrize("case", OUTCOMES)
def test_each_way(case, verify):
    ways, expected = OUTCOMES[case]
    names = "AB" if case == "another class passes" else "A"
    found, _, _ = verify({"A": ways}, names)
    assert found["A"] == expected


@pytest.mark.parametrize("b", [PASSED["B"], FAILED["B"]], ids=["passes", "fails"])
def test_classes_of_one_model_are_shown_together(b, verify):
    """Nothing is built for the second then, and what it showed first counts."""
    found, asked, proved = verify({"A": [[PASSED["A"], b]], "B": [[PASSED["B"]]]}, "AB")
    assert found == {"A": PASSED["A"], "B": b}
    assert (asked, proved) == (["A"], [["A", "B"]])


def test_no_more_is_built_once_it_is_shown(verify):
    _, _, proved = verify({"A": ["one", [PASSED["A"]], [PASSED["A"]]]})
    assert len(proved) == 1


def test_each_class_has_its_own_reasons(verify):
    found, asked, _ = verify({"A": ["of a"], "B": ["of b", ValueError("c")]}, "AB")
    assert found == {"A": "of a", "B": "of b; ValueError: c"}
    assert asked == ["A", "B"]


def test_only_classes_that_are_asked_for_are_proven(monkeypatch):
    subjects = [PASSED[name].subject for name in "AB"]
    model, inputs, proved = nn.Module(), {"x": 1}, []
    monkeypatch.setattr(
        on_the_spot, "subjects_of", lambda one: (subjects, {}) if one is model else pytest.fail("other")
    )
    monkeypatch.setattr(on_the_spot, "prove", lambda *arguments: proved.append(arguments) or [])
    on_the_spot._prove(TinyInstance(model, inputs), {CLASSES["B"]: None})
    assert proved == [(model, inputs, subjects[1:], on_the_spot.SPOT_CHECKS)]
    assert on_the_spot.SPOT_CHECKS[0] == "forward_backward"
