"""A total is held to the limit as it is where it is known; where single draws outweigh all others, by its error."""

from __future__ import annotations

import pytest
import torch

from patchkit.testing import Result, RoundingErrors

DRAWS = 8


def errors_of(ours, theirs):
    """A total with these relative errors, one of each side for each draw."""
    errors, truth = RoundingErrors(), torch.ones(1000, dtype=torch.float64)
    for draw, pair in enumerate(zip(ours, theirs, strict=True)):
        noise = torch.randn(1000, generator=torch.Generator().manual_seed(draw), dtype=torch.float64)
        candidate, upstream = (truth + size * noise for size in pair)
        errors.add_draw(
            "total", [Result(truth, upstream.to(torch.bfloat16).double(), candidate.to(torch.bfloat16).double())]
        )
    return errors


@pytest.mark.parametrize(("ratio", "passes"), [(1.0, True), (1.05, True), (1.2, False), (3.0, False)])
def test_a_total_that_is_known_is_held_to_the_limit(ratio, passes):
    errors = errors_of([0.05 * ratio] * DRAWS, [0.05] * DRAWS)
    (found,) = errors.measurements(totals=["total"])
    assert found.passed == passes, found
    assert float(found.note.rpartition("± ")[2].partition(" ")[0]) < 10


@pytest.mark.parametrize(("ours", "theirs"), [(2.0, 0.05), (0.05, 2.0)])
def test_one_draw_that_is_not_like_the_others_decides_nothing(ours, theirs):
    """A token that went to another expert, on one side only."""
    errors = errors_of([*[0.05] * (DRAWS - 1), ours], [*[0.05] * (DRAWS - 1), theirs])
    (found,) = errors.measurements(totals=["total"])
    assert found.passed, found
    assert (found.error > 2) == (ours > theirs)


def test_many_such_draws_on_our_side_alone_are_a_fault():
    errors = errors_of([2.0] * DRAWS, [0.05] * DRAWS)
    (found,) = errors.measurements(totals=["total"])
    assert not found.passed, found


def test_what_is_known_to_a_few_percent_is_held_to_the_limit_as_a_total_and_not_as_a_part():
    ours = [0.05 * (1.15 + 0.12 * (-1) ** draw) for draw in range(DRAWS)]
    errors = errors_of(ours, [0.05] * DRAWS)
    (total,), (part,) = errors.measurements(totals=["total"]), errors.measurements()
    assert 1 < float(total.note.rpartition("± ")[2].partition(" ")[0]) < 10, total
    assert (total.passed, part.passed) == (False, True), (total, part)
