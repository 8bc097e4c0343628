"""A question with several candidates for its answer, and asking a device for the fastest."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from patchkit.tuning.timing import Work, in_turn

MARGIN = 0.02
"""The part of the usual candidate's time by which another must be faster: less is within what a device varies."""


class Shape(NamedTuple):
    """Sizes that are measured at: those of a gated MLP, and of one input.

    Attributes:
        name: for people.
        hidden: width of x.
        intermediate: width of gate and up.
        tokens: rows of x.
    """

    name: str
    hidden: int
    intermediate: int
    tokens: int


TINY = Shape("tiny", 64, 160, 48)
"""For a rehearsal on a CPU."""


@dataclass(frozen=True)
class Setting:
    """How questions are asked.

    Attributes:
        device: as torch names it.
        shape: at which sizes.
        rounds: samples of each candidate.
    """

    device: str
    shape: Shape
    rounds: int = 15

    @property
    def rehearsal(self) -> bool:
        """Whether it is a CPU, whose times say nothing of a device."""
        return self.device.partition(":")[0] == "cpu"


class Candidate(NamedTuple):
    """One of several ways to do the same.

    Attributes:
        label: for people, unique within its question.
        run: does it, and returns what has to be the same in every way.
        prepare: makes again what ``run`` writes over.
    """

    label: str
    run: Callable[[], Sequence[Tensor]]
    prepare: Callable[[], object] | None = None


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        title: for people.
        candidates: the usual one first.
        tolerance: how far the results of a candidate may be from the usual one's: the norm of the difference of each
            tensor, relative.
        host: whether the host's time counts.
    """

    title: str
    candidates: tuple[Candidate, ...]
    tolerance: float
    host: bool = False


@dataclass(frozen=True)
class Tried:
    """What was found of a candidate.

    Attributes:
        label: of the candidate.
        microseconds: the median, or None where it has none.
        ratio: the median over the rounds of its time over the usual one's.
        reason: why it has no time: it does not run here, or its results are others.
    """

    label: str
    microseconds: float | None = None
    ratio: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Answer:
    """What a device said.

    Attributes:
        title: of the question.
        tried: each candidate, the usual one first.
        best: the index of the fastest, if it is faster than the usual one by :data:`MARGIN`; else 0.
    """

    title: str
    tried: tuple[Tried, ...]
    best: int

    @classmethod
    def of(cls, title: str, tried: Sequence[Tried]) -> Answer:
        """The fastest one of these."""
        ratios = [1.0 if index == 0 else one.ratio for index, one in enumerate(tried)]
        fastest = min(range(len(tried)), key=lambda index: ratios[index] or float("inf"))
        return cls(title, tuple(tried), fastest if (ratios[fastest] or 1.0) < 1.0 - MARGIN else 0)


def ask(question: Question, setting: Setting) -> Answer:
    """Try every candidate once, and time in turn those that run and give the same.

    An exception of a candidate is its reason; where the usual one raises, it stays the answer.
    """
    results: list[Any] = []
    for candidate in question.candidates:
        try:
            if candidate.prepare is not None:
                candidate.prepare()
            results.append([tensor.detach().clone() for tensor in candidate.run()])
        except Exception as error:  # not enough shared memory, a compiler that fails: whatever a device cannot do
            results.append(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}")
    reasons = [_reason(found, results[0], question.tolerance) for found in results]
    running = [] if reasons[0] else [index for index, reason in enumerate(reasons) if not reason]
    works = [Work(question.candidates[index].run, question.candidates[index].prepare) for index in running]
    samples = in_turn(works, setting.device, rounds=setting.rounds, host=question.host)
    times = dict(zip(running, samples, strict=False))
    tried = []
    for index, (candidate, reason) in enumerate(zip(question.candidates, reasons, strict=True)):
        found = times.get(index)
        if found is None:
            tried.append(Tried(candidate.label, reason=reason))
            continue
        ratio = statistics.median(own / usual for own, usual in zip(found, times[0], strict=True))
        tried.append(Tried(candidate.label, statistics.median(found), ratio))
    return Answer.of(question.title, tried)


def _reason(found: Any, expected: Any, tolerance: float) -> str:
    """Why a candidate is none; empty if its results are those of the usual one."""
    if isinstance(found, str):
        return found
    if isinstance(expected, str):
        return "the usual one does not run"
    for one, usual in zip(found, expected, strict=True):
        if not (apart := difference(one, usual)) <= tolerance:  # nor if it is no number
            return f"its results differ by {apart:.2g}, more than {tolerance:.2g}"
    return ""


def difference(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference of two tensors over that of the second; NaN where one has one."""
    norm = float(expected.double().norm())
    return float((found.double() - expected.double()).norm()) / (norm or 1.0)
