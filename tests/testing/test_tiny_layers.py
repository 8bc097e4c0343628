"""Which layers a tiny model keeps: a prefix with every kind, or the first of each."""

from __future__ import annotations

import pytest

from patchkit.testing.tiny.layers import MOST, is_layer_indices, kept_layers, per_layer, renumbered

KEPT = {
    # what there is for each layer: the layers that are kept
    "nothing": ([], 30, [0, 1]),
    "one kind": (["a" * 30], 30, [0, 1]),
    "fewer layers than two": (["a"], 1, [0]),
    "two kinds at once": (["ab" * 15], 30, [0, 1]),
    "the second kind late": (["aaab" * 6], 24, [0, 1, 2, 3]),
    "the second kind first": (["b" + "a" * 20], 21, [0, 1]),
    "the second kind too late for a prefix": (["a" * 20 + "b" * 20], 40, [0, 20]),
    "three kinds, one too late": (["ab" * 10 + "c" * 4], 24, [0, 1, 20]),
    "two lists, whose pairs are the kinds": (["aabb" * 5, "cdcd" * 5], 20, [0, 1, 2, 3]),
    "a schedule beside kinds": ([range(40), "ab" * 20], 40, [0, 1]),
}  # fmt: skip


@pytest.mark.parametrize("case", KEPT)
def test_the_layers_that_are_kept(case: str) -> None:
    lists, count, expected = KEPT[case]
    kept = kept_layers(count, lists)
    assert kept == expected
    assert len(kept) <= MOST


@pytest.mark.parametrize(("name", "value", "count"), [
    ("mlp_only_layers", (0, 3), 8), ("deepstack_visual_indexes", [1, 2], 8), ("fullatt_block_indexes", [7], 8),
])  # fmt: skip
def test_lists_of_layers(name: str, value: object, count: int) -> None:
    assert is_layer_indices(name, value, count)


@pytest.mark.parametrize(("name", "value", "count"), [
    ("full_attn_idxs", [8], 8), ("moe_layers", [], 8), ("moe_layers", [2, 1], 8), ("moe_layers", [1, 1], 8),
    ("moe_layers", [-1], 8), ("moe_layers", [True], 8), ("moe_layers", [0.5], 8), ("moe_layers", 3, 8),
    ("hidden_sizes", [1, 2], 8),
])  # fmt: skip
def test_other_lists(name: str, value: object, count: int) -> None:
    assert not is_layer_indices(name, value, count)


@pytest.mark.parametrize(("numbers", "kept", "expected"), [
    ([0, 3, 7], [0, 1, 2, 3], [0, 3]), ([20], [0, 20], [1]), ([5, 6], [0, 1], [1]), ([0], [0], [0]),
])  # fmt: skip
def test_numbers_of_layers_that_are_kept(numbers: list[int], kept: list[int], expected: list[int]) -> None:
    assert renumbered(numbers, kept) == expected


def test_fields_with_an_entry_for_each_layer() -> None:
    values = {"layer_types": ["a"] * 4, "rope": (0, 1, 0, 1), "other": [1, 2], "name": "abcd", "nested": [[1] * 9] * 4}
    assert set(per_layer(values, 4)) == {"layer_types", "rope"}
