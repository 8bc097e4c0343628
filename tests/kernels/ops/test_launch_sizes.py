"""The sizes of launches, and the grid that is tried of them."""

from __future__ import annotations

import pytest

from patchkit_kernels.ops import gated_low_rank, gated_low_rank_backward, low_rank_backward
from patchkit_kernels.ops.launch_sizes import GRID, LAUNCH_SIZES, Elements, LaunchSizes, Tile

SPANS = {
    "low_rank_backward": low_rank_backward.SPAN,
    "gated_low_rank_backward": gated_low_rank_backward.SPAN,
    "gated_low_rank_backward_float32": gated_low_rank_backward.SPAN,
}


def is_power_of_two(number: int) -> bool:
    return number & (number - 1) == 0 < number


@pytest.mark.parametrize("field", LaunchSizes._fields)
def test_a_grid_begins_with_the_usual_size_and_has_each_once(field: str) -> None:
    assert GRID[field][0] == getattr(LaunchSizes(), field) == getattr(LAUNCH_SIZES.value, field)
    assert 2 < len(GRID[field]) == len(set(GRID[field])) == len(set(map(str, GRID[field])))


@pytest.mark.parametrize("field", LaunchSizes._fields)
def test_a_compiler_takes_all_of_a_grid(field: str) -> None:
    """Powers of two, no side of a product below 16, and spans of whole tiles, whose sums stay where they are."""
    for size in GRID[field]:
        assert all(map(is_power_of_two, size))
        if isinstance(size, Tile):
            assert min(size.tokens, size.columns) >= 16
            along = size.columns if field == "gated_low_rank" else size.tokens
            assert SPANS.get(field, gated_low_rank.SPAN) % along == 0
        else:
            assert size.elements >= 32 * size.warps


def test_they_are_said() -> None:
    assert str(Elements(1024, 4)) == "1024 elements, 4 warps"
    assert str(Tile(16, 64, 2)) == "16 × 64, 2 warps"
