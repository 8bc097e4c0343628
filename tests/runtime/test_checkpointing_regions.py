"""Regions of gradient checkpointing, piece by piece: whose hook it is, which choice follows, what is kept meanwhile."""

from __future__ import annotations

import functools
import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils import checkpoint as torchs

from patchkit.runtime import checkpointing
from patchkit.runtime.checkpointing import _Calls, _Region, _region_of, watched

FRAME = SimpleNamespace(unpack_error_cb=None)


def closure(**cells: object):
    """A function of torch's module with these names in its closure."""
    names = ", ".join(cells)
    scope: dict[str, object] = {"__name__": "torch.utils.checkpoint"}
    exec(f"def make({names}):\n    def hook(x):\n        return [x, {names}]\n    return hook", scope)
    return scope["make"](**cells)  # type: ignore[operator]


def wrapped(function):
    """As torch._dynamo.disable does."""

    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)

    return wrapper


def elsewhere(function):
    function.__module__ = "somebody.else"
    return function


class Callable:
    def __call__(self, tensor):
        return tensor


DEAD = weakref.ref(nn.Identity())  # of what is gone by now
REGIONS = {
    "the forward": (lambda: torchs._checkpoint_hook(FRAME).pack_hook, _Region(FRAME, None)),
    "the recomputation": (lambda: torchs._recomputation_hook(lambda: FRAME, 7).pack_hook, _Region(FRAME, 7)),
    "a recomputation whose frame is gone": (lambda: torchs._recomputation_hook(DEAD, 7).pack_hook, None),
    "wrapped once": (lambda: wrapped(closure(frame=FRAME)), _Region(FRAME, None)),
    "wrapped twice": (lambda: wrapped(wrapped(closure(frame=FRAME))), _Region(FRAME, None)),
    "only these names": (lambda: closure(target_frame_ref=lambda: FRAME, gid=7), _Region(FRAME, 7)),
    "more names": (lambda: closure(target_frame_ref=lambda: FRAME, gid=7, early_stop=True), _Region(FRAME, 7)),
    "without the number": (lambda: closure(target_frame_ref=lambda: FRAME), None),
    "without the frame": (lambda: closure(gid=7), None),
    "another closure of torch's": (lambda: closure(context=FRAME), None),
    "a function of torch's": (lambda: torchs.checkpoint, None),
    "somebody else's": (lambda: elsewhere(closure(frame=FRAME)), None),
    "a callable object": (lambda: Callable(), None),
    "a built-in": (lambda: len, None),
    "nothing": (lambda: None, None),
}


@pytest.mark.parametrize("case", REGIONS)
def test_whose_hook_it_is(case: str) -> None:
    """A frame whose graph is gone has no region, and nothing is asked of it."""
    make, expected = REGIONS[case]
    assert _region_of(make()) == expected


def test_choices_follow_in_the_order_of_the_calls() -> None:
    """For each module and each backward by itself; then there are none."""
    first, second = nn.Identity(), nn.Identity()
    calls = _Calls()
    for owner, choice in [(first, "a"), (second, "x"), (first, "b"), (first, "c")]:
        calls.add(owner, choice)
    assert [calls.following(first, 1) for _ in range(5)] == ["a", "b", "c", None, None]
    assert [calls.following(second, 1) for _ in range(2)] == ["x", None]
    assert [calls.following(first, 2) for _ in range(2)] == ["a", "b"]
    assert calls.following(nn.Identity(), 1) is None


def test_a_module_of_a_region_is_not_given_away() -> None:
    """Another one could get its identity."""
    calls, owner = _Calls(), nn.Identity()
    gone = weakref.ref(owner)
    calls.add(owner, "a")
    del owner
    gc.collect()
    assert gone() is not None


SAVES_ITS_OUTPUT = {"exp": torch.exp, "tanh": torch.tanh, "softmax": lambda x: x.softmax(-1), "sqrt": torch.sqrt}


def beside_a_region(compute, x: torch.Tensor) -> torch.Tensor:
    return watched(lambda: compute(x) * 1.0, lambda: None, x.device)


@pytest.mark.parametrize("name", SAVES_ITS_OUTPUT)
def test_what_is_computed_beside_a_region_can_go(name: str) -> None:
    """An operation that keeps its own output would keep itself alive, if what it keeps had its history."""
    x = torch.rand(2, 3, requires_grad=True)
    there = weakref.ref(x)  # the graph holds it
    gc.collect()
    gc.disable()
    try:
        y = beside_a_region(SAVES_ITS_OUTPUT[name], x)
        del x
        assert there() is not None
        del y
        assert there() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("draws", [0, 1, 3])
def test_both_computations_draw_the_same(draws: int) -> None:
    """The fused function draws what the modules drew, and what follows draws as if one of them had run."""
    seen = []

    def draw() -> str:
        seen.append([torch.rand(2).tolist() for _ in range(draws)])
        return "value"

    torch.manual_seed(3)
    assert watched(draw, draw, torch.device("cpu")) == "value"
    after = torch.rand(2).tolist()
    torch.manual_seed(3)
    expected = [torch.rand(2).tolist() for _ in range(draws)]
    assert seen == [expected, expected]
    assert after == torch.rand(2).tolist()


def test_nothing_is_saved_outside_of_training_and_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not checkpointing.is_saved_by_hooks()
    with torch.autograd.graph.save_on_cpu():
        assert checkpointing.is_saved_by_hooks()
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert not checkpointing.is_saved_by_hooks()
