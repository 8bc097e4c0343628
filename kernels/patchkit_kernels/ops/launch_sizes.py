"""How much of its tensors a program of a kernel takes, and by how many warps: one table.

The defaults are sane without having been tried on a device: whole cache lines for each access, and no more registers
than a thread has. :mod:`patchkit.tuning` tries others of :data:`GRID` on a device and puts the fastest here. What a
program adds up by itself (the ``SPAN`` of a kernel) is not among them. A tile decides in which order its own sums are
made, and so the last bits of float32 sums; the same sizes give the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from patchkit_kernels.ops.current import Current


class Elements(NamedTuple):
    """Of a kernel that works element by element: adjacent elements for each program."""

    elements: int
    warps: int

    def __str__(self) -> str:
        return f"{self.elements} elements, {self.warps} warps"


class Tile(NamedTuple):
    """Of a kernel with products: the tile of ``[tokens, columns]`` that a program holds at a time."""

    tokens: int
    columns: int
    warps: int

    def __str__(self) -> str:
        return f"{self.tokens} × {self.columns}, {self.warps} warps"


class LaunchSizes(NamedTuple):
    """The sizes of each kernel.

    Attributes:
        elementwise: of :mod:`.elementwise`. 8 elements for each thread, which is one 16-byte access in 16 bits.
        low_rank_backward: of dy in :mod:`.low_rank_backward`.
        gated_low_rank: of gate and of up in :mod:`.gated_low_rank`: 16 rows for each warp, as its products have them.
        gated_low_rank_backward: of gate, up and d_hidden in :mod:`.gated_low_rank_backward`. Columns come first there:
            16 for each warp, which is what a product on tensor cores gives it.
        gated_low_rank_backward_float32: the same with factors in float32, whose pieces take registers too.
    """

    elementwise: Elements = Elements(1024, 4)
    low_rank_backward: Tile = Tile(32, 128, 8)
    gated_low_rank: Tile = Tile(64, 32, 4)
    gated_low_rank_backward: Tile = Tile(32, 128, 8)
    gated_low_rank_backward_float32: Tile = Tile(16, 128, 8)


GRID: Mapping[str, tuple[Elements | Tile, ...]] = {
    "elementwise": (Elements(1024, 4), Elements(512, 4), Elements(2048, 4), Elements(2048, 8), Elements(4096, 8)),
    "low_rank_backward": (Tile(32, 128, 8), Tile(32, 128, 4), Tile(32, 64, 4), Tile(64, 128, 8), Tile(32, 256, 8)),
    "gated_low_rank": (Tile(64, 32, 4), Tile(32, 64, 4), Tile(64, 64, 8), Tile(128, 32, 8)),
    "gated_low_rank_backward": (Tile(32, 128, 8), Tile(16, 128, 8), Tile(16, 64, 4), Tile(32, 64, 4)),
    "gated_low_rank_backward_float32": (Tile(16, 128, 8), Tile(16, 64, 4), Tile(32, 128, 8)),
}
"""What tuning tries for each field of :class:`LaunchSizes`, the default first."""

LAUNCH_SIZES = Current(LaunchSizes())
"""What kernels are launched with now."""
