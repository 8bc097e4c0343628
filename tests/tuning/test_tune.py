"""Everything that is asked, in which order, and what follows from the answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from patchkit.tuning import tune as module
from patchkit.tuning.launches import ABOUT, TOLERANCE, draw, tiles
from patchkit.tuning.questions import TINY, Answer, Question, Setting, Shape, Tried
from patchkit.tuning.record import LEAST_ELEMENTS, Tuned
from patchkit.tuning.tune import AT_MOST, chosen_ways, tune
from patchkit_kernels.lora.choices import Choices, chosen
from patchkit_kernels.ops.launch_sizes import GRID, LAUNCH_SIZES, LaunchSizes

CPU = Setting("cpu", TINY, 1)
LARGE = Setting("cpu", Shape("large", 64, 128, 2**17), 1)
"""In which shape all numbers of elements are asked about."""


class Device:
    """Answers questions by their titles: the other candidate where one of these words is in it, else the usual one."""

    def __init__(self, *words: str) -> None:
        self.words, self.asked = words, []

    def __call__(self, question: Question, setting: Setting | None = None) -> Answer:
        self.asked.append((question.title, LAUNCH_SIZES.value, chosen()))
        other = any(word in question.title for word in self.words)
        return Answer(question.title, tuple([Tried(one.label, 1.0, 1.0) for one in question.candidates]), int(other))

    @property
    def titles(self) -> list[str]:
        return [title for title, _, _ in self.asked]


@pytest.fixture(autouse=True)
def _no_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mlp_step", "projection_step"):
        monkeypatch.setattr(module, name, lambda *given: list)


def test_as_usual_where_nothing_is_faster(monkeypatch):
    device = Device()
    monkeypatch.setattr(module, "ask", device)
    before, after = [], []
    found = tune(CPU, before.append, after.append)
    assert found.sizes == LaunchSizes()
    assert found.choices == {
        "bf16x3": True,
        "least_elements": TINY.tokens * TINY.hidden,
        "one_pass_rank": 0,
        "in_activation_rank": 0,
    }
    assert before == device.titles == [one.title for one in after] == [one.title for one in found.answers]
    assert before[: len(GRID)] == [f"{ABOUT[field]}: tile" for field in LaunchSizes._fields]
    assert len(before) == len(GRID) + 3  # where one way loses, its greater ranks are not asked about
    assert (LAUNCH_SIZES.value, chosen()) == (LaunchSizes(), Choices())


def test_all_that_is_faster_is_used_in_what_is_asked_next(monkeypatch):
    device = Device("tile", "one pass", "rank-r", "host's time")
    monkeypatch.setattr(module, "ask", device)
    found = tune(LARGE)
    assert found.sizes == LaunchSizes(**{field: grid[1] for field, grid in GRID.items()})
    assert found.choices == {
        "bf16x3": True,
        "least_elements": 2**16,
        "one_pass_rank": 64,
        "in_activation_rank": 32,
    }
    assert len(found.answers) == AT_MOST
    of_tiles = [sizes for title, sizes, _ in device.asked if title.endswith(": tile")]
    of_ways = [sizes for title, sizes, _ in device.asked if not title.endswith(": tile")]
    assert set(of_tiles) == {LaunchSizes()}
    assert set(of_ways) == {found.sizes}
    _, _, last = device.asked[-1]
    assert last == Choices(least_elements=2**16, one_pass_rank=64)
    assert (LAUNCH_SIZES.value, chosen()) == (LaunchSizes(), Choices())


def test_pieces_that_are_slower_are_not_asked_about_again():
    device = Device("float32 adapters over bfloat16")
    found = chosen_ways(LARGE, device)
    assert found == {"bf16x3": False, "one_pass_rank": 0, "in_activation_rank": 0}
    assert not [title for title in device.titles if "host" in title]


@pytest.mark.parametrize(
    ("faster", "least"),
    [((), 2**23), ((2**22,), 2**22), ((2**22, 2**20), 2**20), ((2**22, 2**18), 2**22), ((2**20, 2**18), 2**23)],
    ids=str,
)
def test_from_as_many_elements_on_as_it_stays_faster(faster, least):
    device = Device(*[f"with {elements // 64} tokens" for elements in faster])
    assert chosen_ways(LARGE, device)["least_elements"] == least


def test_a_shape_is_asked_about_once():
    """One with as many elements as a number that is asked about by itself."""
    device = Device("host's time")
    shape = LARGE.shape._replace(tokens=2**22 // LARGE.shape.hidden)
    assert chosen_ways(Setting("cpu", shape, 1), device)["least_elements"] == 2**16
    assert len([title for title in device.titles if "host's time" in title]) == len(LEAST_ELEMENTS) - 1


@pytest.mark.parametrize(
    ("slower", "greatest"),
    [("rank 16, float32", 0), ("rank 16, bfloat16", 0), ("rank 32, bfloat16", 16), ("rank 64, float32", 32), ("", 64)],
)
def test_a_rank_counts_if_adapters_of_both_dtypes_are_faster(slower, greatest):
    class Slower(Device):
        def __call__(self, question, setting=None):
            answer = super().__call__(question, setting)
            return answer if not slower or slower not in answer.title else Answer(answer.title, answer.tried, 0)

    assert chosen_ways(CPU, Slower("one pass"))["one_pass_rank"] == greatest


def test_numbers_are_the_same_every_time():
    assert torch.equal(draw("cpu", 3, 4, seed=1), draw("cpu", 3, 4, seed=1))
    assert not torch.equal(draw("cpu", 3, 4, seed=1), draw("cpu", 3, 4, seed=2))
    assert draw("cpu", 300, 400).float().std() == pytest.approx(0.1, rel=0.02)


@pytest.mark.parametrize("field", GRID)
def test_a_candidate_launches_with_its_size(field, monkeypatch):
    """Kernels do not run here; what is asked of them does."""
    seen = []
    for name in ("gated_low_rank", "gated_low_rank_backward", "low_rank_backward"):
        launched = getattr(sys.modules["patchkit.tuning.launches"], name)
        monkeypatch.setattr(launched, "launch", lambda *given: seen.append(LAUNCH_SIZES.value) or [given[0]] * 2)
    kernel = sys.modules["patchkit.tuning.launches"].GATED["silu"]
    for name in ("launch", "launch_backward_recompute"):
        monkeypatch.setattr(kernel, name, lambda *given: seen.append(LAUNCH_SIZES.value) or given[0])
    question = tiles(field, CPU)
    assert question.tolerance == TOLERANCE
    assert [one.label for one in question.candidates] == [str(size) for size in GRID[field]]
    for candidate, size in zip(question.candidates, GRID[field], strict=True):
        seen.clear()
        candidate.run()
        assert {getattr(sizes, field) for sizes in seen} == {size}
    assert LAUNCH_SIZES.value == LaunchSizes()


@pytest.mark.parametrize("field", [field for field in GRID if field != "elementwise"])
def test_adapters_are_of_each_dtype_over_bfloat16(field, monkeypatch):
    given = []
    for name in ("gated_low_rank", "gated_low_rank_backward", "low_rank_backward"):
        launched = getattr(sys.modules["patchkit.tuning.launches"], name)
        monkeypatch.setattr(launched, "launch", lambda *tensors: given.append(tensors) or [tensors[0]] * 2)
    tiles(field, CPU).candidates[0].run()
    found = []
    for tensors in given:
        flat = [one for part in tensors for one in (part if isinstance(part, list) else [part])]
        dtypes = {one.dtype for one in flat if isinstance(one, torch.Tensor) and 16 in one.shape}
        assert {one.dtype for one in flat if isinstance(one, torch.Tensor) and 16 not in one.shape} == {torch.bfloat16}
        found.append(dtypes)
    both = [{torch.bfloat16}, {torch.float32}]
    expected = {"gated_low_rank_backward": both[:1], "gated_low_rank_backward_float32": both[1:]}
    assert found == expected.get(field, both)


@pytest.mark.slow
def test_everything_is_rehearsed_in_the_interpreter():
    """Every kernel runs in every size of its grid, and gives the same."""
    pytest.importorskip("triton", reason="the interpreter is part of Triton")
    path = Path(__file__).with_name("rehearse_tuning.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, path], env=environment, capture_output=True, text=True, timeout=400)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    titles = result.pop("titles")
    found = Tuned.from_json(result)
    assert titles == [one.title for one in found.answers]
    assert len(titles) >= len(GRID) + 3
    for answer in found.answers:
        assert [one.reason for one in answer.tried] == [""] * len(answer.tried), answer.title
        assert all(one.microseconds > 0 for one in answer.tried)
