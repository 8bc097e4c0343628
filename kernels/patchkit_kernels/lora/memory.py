"""How an MLP is computed so that what is as wide as its hidden state is not kept, and not there whole.

* *Recomputation*: gate and up are made again in backward, from x, in the operations and the order of forward.
* *Tiles*: the same for a tile of tokens at a time, forward and backward, so that no tensor ``[tokens, intermediate]``
  ever exists whole. That is exact, because no row of an MLP depends on another one: TiledMLP of Arctic Long Sequence
  Training, https://arxiv.org/abs/2506.13996, section 3.1.1. Only sums over tokens are added in another order.
"""

from __future__ import annotations

from typing import NamedTuple


class Memory(NamedTuple):
    """What is made again instead of kept.

    Attributes:
        tiles: how many tiles of tokens; 1 for all tokens at once; None for as many as :func:`rows_of_tile` finds.
    """

    tiles: int | None


RECOMPUTE, TILED = Memory(1), Memory(None)

_ROWS = 8
"""A tile has a multiple of so many rows: its bits of a dropout mask are whole bytes then, whatever a row's width."""


def rows_of_tile(memory: Memory, tokens: int, hidden: int) -> int:
    """How many tokens a tile has.

    By default there are ``ceil(tokens / hidden)`` tiles, as in DeepSpeed's TiledMLP (``ulysses_sp.py``) and in Axolotl.
    So a tile has at most ``hidden`` tokens, and its gate is no larger than the weight that it is made with. A tile with
    fewer would save nothing that counts beside the weights, and each product would wait longer for its weight.

    Args:
        memory: how many tiles are asked for.
        tokens: how many tokens there are.
        hidden: the width of x.

    Returns:
        At least 1; a multiple of 8 unless it is all tokens.
    """
    tiles = memory.tiles or -(-tokens // max(1, hidden))
    rows = -(-tokens // max(1, tiles))
    return max(1, min(tokens, -(-rows // _ROWS) * _ROWS))


def tiles_of(tokens: int, rows: int) -> list[slice]:
    """The tiles, one at least."""
    return [slice(start, min(start + rows, tokens)) for start in range(0, tokens, rows)] or [slice(0, 0)]
