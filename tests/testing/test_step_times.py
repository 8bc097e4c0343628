"""The steps that are timed train the same model, of which one is patched."""

from __future__ import annotations

import pytest
from torch import nn

from patchkit.testing import fused_calls, step_times
from patchkit.testing.block_costs import BLOCK_PRECISIONS
from patchkit.testing.step_times import LAYERS, step_pair, step_time


@pytest.mark.parametrize("precision", BLOCK_PRECISIONS)
def test_both_train_alike_and_one_is_fused(precision):
    plain, patched = step_pair(64, 4, BLOCK_PRECISIONS[precision])
    expected = [plain() for _ in range(3)]
    with fused_calls() as calls:
        found = [patched() for _ in range(3)]
    assert len(calls) == 3 * 3 * LAYERS  # q/k/v, o and MLP
    assert expected[2] != expected[0]
    assert found == pytest.approx(expected, rel=1e-5 if precision == "float32" else 2e-2)


def test_both_read_the_same_frozen_weights():
    """Where a weight lies decides how fast it is read; what is trained is each one's own."""
    plain, patched = (step.__closure__ for step in step_pair(64, 4, BLOCK_PRECISIONS["float32"]))
    models = [
        next(cell.cell_contents for cell in cells or () if isinstance(cell.cell_contents, nn.Module))
        for cells in (plain, patched)
    ]
    pairs = list(zip(*(model.parameters() for model in models), strict=True))
    assert {theirs.requires_grad for theirs, _ in pairs} == {True, False}
    for theirs, ours in pairs:
        assert (ours is theirs) is not theirs.requires_grad


def test_a_time_of_each_and_the_spread_of_their_ratio(monkeypatch):
    clock, taken = [0], iter([0] * 10 + [3000, 2000, 2000, 1000, 1000, 3000])
    monkeypatch.setattr(step_times.time, "thread_time_ns", lambda: clock[0])

    def step() -> float:
        clock[0] += next(taken)
        return 0.0

    monkeypatch.setattr(step_times, "step_pair", lambda *_, **__: (step, step))
    found = step_time(64, 4, "float32", 0.1, steps=3)
    # The order of the two changes with each turn: plain 3, 1, 1 and patched 2, 2, 3 microseconds.
    assert found[:6] == (64, 4, "float32", 0.1, 1.0, 2.0)
    assert found.spread == pytest.approx((3 - 2 / 3) / 2)
