"""Tiles of tokens: what belongs to one of them, and rows put together of all."""

from __future__ import annotations

import torch
from torch import Tensor

from patchkit_kernels.lora.call import Call, Kept
from patchkit_kernels.lora.projection import Precision, Projection
from patchkit_kernels.ops.registration import dispatch_modes


class Rows:
    """``[tokens, n]``, a tile at a time; nothing until the first tile is there.

    Args:
        tokens: of all tiles together.
    """

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._whole: Tensor | None = None
        self._parts: list[Tensor] = []

    def add(self, part: slice, tile: Tensor | None) -> None:
        """Add the next tile; None where there is nothing to put together."""
        if tile is None:
            return
        if tile.shape[0] == self._tokens:
            self._whole = tile
        elif torch.compiler.is_compiling() or dispatch_modes():  # who looks on must not see a result change
            self._parts.append(tile)
        else:
            if self._whole is None:
                self._whole = tile.new_empty((self._tokens, tile.shape[1]))
            self._whole[part] = tile

    def result(self) -> Tensor | None:
        """All of them, or None if there was none."""
        return torch.cat(self._parts) if self._parts else self._whole


class KeptRows:
    """What forward keeps of one adapter of down, a tile at a time.

    Args:
        tokens: of all tiles together.
    """

    def __init__(self, tokens: int) -> None:
        self._reduced, self._direction = Rows(tokens), Rows(tokens)

    def add(self, part: slice, made: Kept) -> None:
        """Add the next tile."""
        self._reduced.add(part, made.reduced)
        self._direction.add(part, made.direction)

    def result(self, mask: Tensor | None) -> Kept:
        """For all tokens, with the mask of all."""
        return Kept(mask, self._reduced.result(), self._direction.result())


def mask_of_tile(packed: Tensor | None, part: slice, width: int) -> Tensor | None:
    """The packed mask of a tile, from that of all rows of this width. A tile begins with a whole byte."""
    return None if packed is None else packed[part.start * width // 8 : -(-part.stop * width // 8)]


def kept_of_tile(kept: Kept, part: slice, width: int) -> Kept:
    """What is kept of one adapter, for a tile of its input of this width."""
    mask, reduced, direction = kept
    return Kept(
        mask_of_tile(mask, part, width),
        None if reduced is None else reduced[part],
        None if direction is None else direction[part],
    )


def cast_once(call: Call) -> Call:
    """The call with W, A and B in the dtypes of their products, so that they are not cast for every tile."""
    return call._replace(projections=[_cast(projection, call.precision) for projection in call.projections])


def dense_once(call: Call) -> Call:
    """The same with every quantised W dequantised, for products with W alone."""
    dense = [
        one if isinstance(one.weight, Tensor) else one._replace(weight=one.weight.dense()) for one in call.projections
    ]
    return cast_once(call._replace(projections=dense))


def _cast(projection: Projection, precision: Precision) -> Projection:
    weight, _, adapters = projection
    # DoRA reads W in the dtype of the adapters too, which may be wider.
    if isinstance(weight, Tensor) and all(one.factor is None for one in adapters):
        weight = weight.to(precision.base)
    cast = [
        one._replace(lora_a=one.lora_a.to(precision.lora), lora_b=one.lora_b.to(precision.lora)) for one in adapters
    ]
    return projection._replace(weight=weight, adapters=tuple(cast))
