"""The steps that are timed: each is what training computes, and what is chosen is what runs."""

from __future__ import annotations

import pytest
import torch

from patchkit.tuning.questions import TINY, Setting, ask
from patchkit.tuning.ways import PRECISIONS, TOLERANCE, asked, mlp_step, projection_step
from patchkit_kernels.lora import straight_in_activation, straight_one_pass
from patchkit_kernels.lora.choices import Choices, chosen

CPU = Setting("cpu", TINY, 1)


@pytest.mark.parametrize("dtype", PRECISIONS.values(), ids=str)
@pytest.mark.parametrize(("make", "count"), [(mlp_step, 3), (projection_step, 1)])
def test_a_step_is_forward_and_backward(make, count, dtype):
    y, d_x, *gradients = make("cpu", TINY, 4, dtype)()
    assert y.shape == d_x.shape == (TINY.tokens, TINY.hidden)
    assert y.dtype == d_x.dtype == torch.bfloat16
    assert len(gradients) == 2 * count
    assert {one.dtype for one in gradients} == {dtype}
    assert all(float(one.float().norm()) > 0 for one in (y, d_x, *gradients))


def test_what_is_chosen_runs_and_nothing_of_it_stays(monkeypatch):
    calls = []
    for module, name in (
        (straight_one_pass, "low_rank_backward"),
        (straight_in_activation, "gated_low_rank"),
        (straight_in_activation, "gated_low_rank_backward"),
    ):
        original = getattr(module, name)

        def seen(*given, original=original, name=name):
            calls.append(name)
            return original(*given)

        monkeypatch.setattr(module, name, seen)
    steps = [mlp_step("cpu", TINY, 4, torch.float32), projection_step("cpu", TINY, 4, torch.float32)]
    ways = {"apart": {}, "one pass": {"one_pass_rank": 4}, "in activation": {"in_activation_rank": 4}}
    for candidate in asked("which?", CPU, steps, ways).candidates:
        calls.append(candidate.label)
        candidate.run()
    expected = ["apart", "one pass", *["low_rank_backward"] * 4, "in activation", "gated_low_rank"]
    assert calls == [*expected, "gated_low_rank_backward"]
    assert chosen() == Choices()


@pytest.mark.parametrize("dtype", PRECISIONS.values(), ids=str)
def test_all_ways_give_the_same(dtype):
    ways = {
        "apart": {},
        "on copies": {"bf16x3": False},
        "one pass": {"one_pass_rank": 16},
        "in activation": {"in_activation_rank": 16},
    }
    steps = [mlp_step("cpu", TINY, 16, dtype), projection_step("cpu", TINY, 16, dtype)]
    answer = ask(asked("which?", CPU, steps, ways), CPU)
    assert [one.reason for one in answer.tried] == [""] * len(ways)
    assert TOLERANCE < 2.0**-5
