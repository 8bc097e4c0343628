"""Asking: what counts, what does not, and which candidate is taken."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from patchkit.tuning import questions
from patchkit.tuning.questions import MARGIN, TINY, Answer, Candidate, Question, Setting, Tried, ask, difference

CPU = Setting("cpu", TINY, 3)
ONE = torch.ones(3)


def fails() -> list[Tensor]:
    raise RuntimeError("out of resource: shared memory\nmore")


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[float]]:
    """What is timed of each candidate, by its label."""
    given: dict[str, list[float]] = {}

    def in_turn(works, device, *, rounds, host):
        assert (device, rounds) == ("cpu", 3)
        return [given[work.run.label] for work in works]

    monkeypatch.setattr(questions, "in_turn", in_turn)
    return given


def candidate(label: str, found: list[Tensor] | None = None) -> Candidate:
    def run() -> list[Tensor]:
        return [ONE] if found is None else found

    run.label = label  # type: ignore[attr-defined]
    return Candidate(label, run)


def asked(*candidates: Candidate, tolerance: float = 0.01) -> Answer:
    return ask(Question("which?", candidates, tolerance), CPU)


def test_the_fastest_is_taken(times):
    times |= {"usual": [10, 11, 12], "slow": [20, 20, 20], "fast": [5, 5, 6], "faster": [4, 4, 4]}
    answer = asked(*map(candidate, times))
    assert (answer.title, answer.best) == ("which?", 3)
    assert [one.label for one in answer.tried] == list(times)
    assert answer.tried[0] == Tried("usual", 11, 1.0)
    assert answer.tried[2] == Tried("fast", 5, 0.5)


def test_rounds_are_compared_with_one_another(times):
    """A device that slows down slows both."""
    times |= {"usual": [10, 20, 40], "other": [9, 18, 36]}
    answer = asked(*map(candidate, times))
    assert answer.best == 1
    assert answer.tried[1].ratio == pytest.approx(0.9)


@pytest.mark.parametrize(("ratio", "best"), [(1 - MARGIN - 0.001, 1), (1 - MARGIN + 0.001, 0), (1.0, 0)])
def test_what_is_faster_by_chance_is_not_taken(ratio, best, times):
    times |= {"usual": [100.0] * 3, "other": [100.0 * ratio] * 3}
    assert asked(*map(candidate, times)).best == best


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        ([ONE + 0.02], "its results differ by 0.02, more than 0.01"),
        ([ONE * torch.nan], "its results differ by nan, more than 0.01"),
        (None, "RuntimeError: out of resource: shared memory"),
    ],
    ids=["other numbers", "no numbers", "an error"],
)
@pytest.mark.parametrize("first", [True, False])
def test_what_is_not_the_same_does_not_count(found, reason, first, times):
    """Wherever among the results it is."""
    times |= {"usual": [10, 10, 10], "right": [9, 9, 9]}
    results = [] if found is None else [*found, ONE] if first else [ONE, *found]
    wrong = candidate("wrong", results) if results else Candidate("wrong", fails)
    answer = asked(candidate("usual", [ONE, ONE]), wrong, candidate("right", [ONE, ONE]))
    assert answer.best == 2
    assert answer.tried[1] == Tried("wrong", reason=reason)


def test_where_the_usual_one_fails_nothing_else_is_taken(times):
    answer = asked(Candidate("usual", fails), candidate("other"))
    assert answer.best == 0
    assert [one.reason for one in answer.tried] == [
        "RuntimeError: out of resource: shared memory",
        "the usual one does not run",
    ]


def test_results_are_kept_before_the_next_one_writes_over_them(times):
    """Candidates of one kernel write into the same tensors."""
    times |= {"usual": [2, 2, 2], "adds twice": [1, 1, 1]}
    own = torch.zeros(2)

    def adding(label: str, number: float) -> Candidate:
        def run() -> list[Tensor]:
            return [own.add_(number)]

        run.label = label  # type: ignore[attr-defined]
        return Candidate(label, run, own.zero_)

    assert asked(adding("usual", 1.0), adding("adds twice", 2.0)).tried[1].reason.startswith("its results differ by 1")


def test_the_usual_one_has_a_time_also_alone(times):
    times["usual"] = [3, 4, 5]
    assert asked(candidate("usual"), Candidate("other", fails)).tried[0] == Tried("usual", 4, 1.0)


def test_a_difference_is_relative():
    assert difference(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5])) == pytest.approx(0.5 / 29.25**0.5)
    assert difference(torch.ones(2), torch.zeros(2)) == pytest.approx(2**0.5)


def test_a_cpu_is_a_rehearsal():
    assert CPU.rehearsal
    assert not Setting("cuda:1", TINY).rehearsal
