"""The one criterion of low precision: our rounding error may be at most 1.1 times upstream's own.

Both errors are taken against the float64 truth, computed from the same, already rounded numbers. What a fair comparison
of two random errors is:

* A single tensor is no fair measure. Rounding errors are random; for a scalar, the ratio of two of them is the ratio of
  two normal variables, which is above 1.1 nearly half of the time for *equal* precision. Small tensors, and tensors
  whose error comes through a few common directions, are little better.
* So squared errors, relative to the squared norm of the truth, are summed over many elements and over independent
  draws. The measured ratio is that of root mean squares, sqrt(Σ‖candidate − truth‖² / Σ‖upstream − truth‖²).
* Totals over everything are held to the limit as they are, unless they are not known to ten percent. A total can hide
  a bad part, so each part has a ratio of its own, which fails if it is beyond the limit by more than three of its
  standard errors, estimated by the jackknife over draws. That is lenient where the estimate is poor, and only there.
* Nothing is asked to be better than the rounding of the result's dtype allows. That floor, for a result of dtype d made
  by sums of K products in all, accumulated in a = the wider of d and float32, has two parts:

  - storing the truth in d loses ‖d(truth) − truth‖;
  - each of the K additions rounds its partial sum by at most u = eps(a) / 2 of it. The roundings are independent and of
    mean zero, so that their squares add up, K u² at most relative to the last, largest partial sum: the error is about
    sqrt(K) u ‖truth‖ (Higham and Mary 2019, A New Approach to Probabilistic Rounding Error Analysis, theorem 2.4, with
    the constant λ = 1). The order of summation, which differs between CPUs, libraries and numbers of threads, moves
    the error below this bound at will: a comparison there tells of the BLAS, not of the formula.

  A needless rounding to 16 bits (2^-9 or 2^-12) or a missing term is hundreds of times above the second part, for every
  K up to a million.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from patchkit.testing.parity import LOW_PRECISION_RATIO, Measurement

_STANDARD_ERRORS = 3.0

_KNOWN = 0.1
"""A total is held to the limit as it is if its standard error is below this; it is two or three percent as a rule.

Where it is larger, some draws are not like the others: in a mixture of experts a rounding sends a token to another
expert now and then, upstream's and ours at different tokens, and one such draw outweighs all roundings.
"""


class Result(NamedTuple):
    """One result of the same computation, three times.

    Attributes:
        truth: in float64.
        upstream: of upstream's code, in its dtype.
        candidate: of ours.
    """

    truth: Tensor
    upstream: Tensor
    candidate: Tensor


@dataclass
class RoundingErrors:
    """Squared relative errors of both sides, by name, one entry per draw.

    Attributes:
        upstream: of upstream's results against the truth.
        candidate: of ours against the truth.
        floor: what the rounding of the results' dtypes allows.
    """

    upstream: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    candidate: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    floor: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add_draw(self, name: str, results: Iterable[Result], summed: int = 0, *, each_relative: bool = False) -> None:
        """Add one draw of what goes by one name; nothing if the truth is zero.

        Args:
            name: of these results.
            results: all of them; their squares are added up.
            summed: K, how many products are summed for one element, all sums on its way taken together. 0 leaves out
                the second part of the floor, which matters where upstream's error is that of float32 alone.
            each_relative: whether the squares of each result are divided by its norm before they are added up, so that
                small results count as much as large ones.
        """
        squares = [_squared_errors(result, summed) for result in results]
        if each_relative:
            squares = [(1.0, ours / n, theirs / n, floor / n) for n, ours, theirs, floor in squares if n > 0.0]
        if not squares:
            return
        norm, upstream, candidate, floor = (sum(column) for column in zip(*squares, strict=True))
        if norm == 0.0:
            return
        self.upstream[name].append(upstream / norm)
        self.candidate[name].append(candidate / norm)
        self.floor[name].append(floor / norm)

    def measurements(self, limit: float = LOW_PRECISION_RATIO, totals: Collection[str] = ()) -> tuple[Measurement, ...]:
        """The ratio of each name, held to ``limit``: ``totals`` that are known as they are, others by their error."""
        return tuple(self._measurement(name, limit, exact=name in totals) for name in self.upstream)

    def failures(self, totals: Collection[str] = ()) -> list[str]:
        """The measurements that do not hold, in words."""
        return [str(measurement) for measurement in self.measurements(totals=totals) if not measurement.passed]

    def _measurement(self, name: str, limit: float, *, exact: bool) -> Measurement:
        candidate = self.candidate[name]
        allowed = [max(pair) for pair in zip(self.upstream[name], self.floor[name], strict=True)]
        ratio, standard_error = _ratio(candidate, allowed)
        certain = exact and standard_error < _KNOWN
        bound = limit if certain else limit * math.exp(_STANDARD_ERRORS * standard_error)
        upstream_error = math.sqrt(sum(self.upstream[name]) / len(candidate))
        note = f"times upstream's error of {upstream_error:.2g}, ± {100 * standard_error:.1f} %"
        return Measurement(name, ratio, limit, ratio <= bound, note)


def rounding_floor(truth: Tensor, dtype: torch.dtype, summed: int = 0) -> float:
    """The squared error that the top of this file allows any result of ``dtype``, from sums of ``summed`` products."""
    truth = truth.double()
    stored = torch.sum((truth.to(dtype).double() - truth).square()).item()
    accumulated = torch.finfo(torch.promote_types(dtype, torch.float32)).eps / 2
    return stored + summed * accumulated**2 * torch.sum(truth.square()).item()


def _squared_errors(result: Result, summed: int) -> tuple[float, float, float, float]:
    truth = result.truth.double()
    norm, upstream, candidate = (
        torch.sum((tensor.double() - origin).square()).item()
        for tensor, origin in ((truth, 0.0), (result.upstream, truth), (result.candidate, truth))
    )
    floor = rounding_floor(truth, result.upstream.dtype, summed)
    return norm, upstream, math.inf if math.isnan(candidate) else candidate, floor


def _ratio(candidate: list[float], allowed: list[float]) -> tuple[float, float]:
    """Ratio of root mean squares, and the jackknife's standard error of its logarithm."""

    def log_ratio(leave_out: int | None = None) -> float:
        above = sum(value for index, value in enumerate(candidate) if index != leave_out)
        below = sum(value for index, value in enumerate(allowed) if index != leave_out)
        if above == 0.0:
            return -math.inf
        return 0.5 * math.log(above / below) if below else math.inf

    ratio, draws = log_ratio(), len(candidate)
    if not math.isfinite(ratio):
        return (0.0 if ratio < 0 else math.inf), 0.0
    if draws < 2:
        return math.exp(ratio), 0.0
    left_out = [log_ratio(index) for index in range(draws)]
    mean = sum(left_out) / draws
    return math.exp(ratio), math.sqrt((draws - 1) / draws * sum((value - mean) ** 2 for value in left_out))
