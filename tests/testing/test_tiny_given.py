"""Inputs that are written down: shapes told of a configuration, and what is in them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from patchkit.errors import TinyModelError
from patchkit.testing.tiny.given import Given, given_form

CONFIG = SimpleNamespace(width=6, inner=SimpleNamespace(sizes=[4, 7]), whole=True, name="x")


def tensor(one: Given, seed: int = 0) -> torch.Tensor:
    return given_form({"x": one}, CONFIG, {"x"}, batch=2, length=5, seed=seed)["x"]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((3,), (3,)),
        (("batch", "length", "width"), (2, 5, 6)),
        (("inner.sizes.0", "inner.sizes.1"), (4, 7)),
        ((("batch", "width"), (2, "length")), (12, 10)),
        ((), ()),
    ],
)
def test_a_shape_is_told_of_the_configuration(shape: tuple[Any, ...], expected: tuple[int, ...]) -> None:
    assert tensor(Given(shape)).shape == expected


@pytest.mark.parametrize("part", ["height", "inner.sizes.2", "inner.sizes.x", "width.0", "inner", "whole", "name"])
def test_what_is_no_size_is_said(part: str) -> None:
    with pytest.raises(TinyModelError, match=f"no size of an input: SimpleNamespace has no number {part}"):
        tensor(Given((part,)))


@pytest.mark.parametrize(
    ("holds", "expected"),
    [
        ("count", [[0, 1, 2], [0, 1, 2]]),
        (7, [[7, 7, 7], [7, 7, 7]]),
        (1, [[1, 1, 1], [1, 1, 1]]),
        (True, [[True] * 3, [True] * 3]),
        (False, [[False] * 3, [False] * 3]),
        ((1, 4, 4), [[1, 4, 4], [1, 4, 4]]),
    ],
)
def test_what_is_the_same_for_each_seed(holds: Any, expected: list[list[int]]) -> None:
    found = tensor(Given(("batch", 3), holds))
    assert found.dtype == torch.tensor(expected).dtype
    assert found.tolist() == expected
    found[0, 0] = 0  # entries of their own
    assert found[1].tolist() == expected[1]


def test_what_is_drawn_depends_on_the_seed() -> None:
    for holds, dtype in (("normal", torch.float32), ("tokens", torch.int64)):
        one = Given((200,), holds)  # type: ignore[arg-type]
        assert tensor(one).dtype is dtype
        assert torch.equal(tensor(one), tensor(one))
        assert not torch.equal(tensor(one), tensor(one, seed=1))


@pytest.mark.parametrize(("below", "lowest"), [(90, 3), (5, 3), (3, 2), (1, 0)])
def test_tokens_are_below_what_is_said_and_special_where_there_are_no_others(below: int, lowest: int) -> None:
    found = tensor(Given((2000,), "tokens", below))
    assert (int(found.min()), int(found.max())) == (lowest, below - 1)


def test_what_a_forward_does_not_take_is_left_out() -> None:
    both = {"x": Given((2,)), "y": Given(("no_such_size",))}
    assert set(given_form(both, CONFIG, {"x": None}, 2, 5, 0)) == {"x"}
