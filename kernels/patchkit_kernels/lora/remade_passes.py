"""The two passes over an MLP, tile by tile, of :mod:`.remade_mlp`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from patchkit_kernels.lora.backward import input_backward
from patchkit_kernels.lora.call import AdapterNeeds, Call, Grads, Kept
from patchkit_kernels.lora.forward import draw_masks, project_rows, to_keep
from patchkit_kernels.lora.hidden_state import functions_of, inputs_of, limited
from patchkit_kernels.lora.low_rank import reduce
from patchkit_kernels.lora.memory import tiles_of
from patchkit_kernels.lora.mlp_parts import drop_again, reads_hidden, through_activation
from patchkit_kernels.lora.projection import dropout_scale, present
from patchkit_kernels.lora.tile_sums import TileSums
from patchkit_kernels.lora.tiles import KeptRows, Rows, cast_once, dense_once, kept_of_tile, mask_of_tile
from patchkit_kernels.ops.activations import Activation
from patchkit_kernels.ops.dropout import masked
from patchkit_kernels.ops.dropout_in_pieces import draw_packed
from patchkit_kernels.ops.not_before import not_before
from patchkit_kernels.ops.registration import dispatch_modes


class Form(NamedTuple):
    """What an MLP is besides its projections.

    Attributes:
        activation: its name.
        gate_first: see :mod:`patchkit_kernels.lora.hidden_state`.
        limit: of gate and up; None for none.
        dropout: the probability with which an element of the hidden state is zeroed.
        rows: how many tokens a tile has.
    """

    activation: Activation
    gate_first: bool | None
    limit: float | None
    dropout: float
    rows: int


class Drawn(NamedTuple):
    """What is made for all tokens before the first tile, and kept.

    Attributes:
        into: mask and t of each adapter of the projections of x.
        hidden: the packed mask of the hidden state; None if nothing of it is dropped.
        down: the mask of each of down's adapters; after forward also t, and the direction if its magnitude is trained.
    """

    into: list[list[Kept]]
    hidden: Tensor | None
    down: list[Kept]


def flows_back(into: Call, *, x_needed: bool) -> bool:
    """Whether anything flows back through the projections of x."""
    return x_needed or any(needs.any for needs in into.needs)


def remakes(into: Call, down: Call, *, x_needed: bool) -> bool:
    """Whether backward makes again what the projections of x yield."""
    return flows_back(into, x_needed=x_needed) or reads_hidden(down.needs[0], remakes=False)


def draw(x: Tensor, into: Call, down: Call, form: Form) -> Drawn:
    """Draw every mask in the order of upstream's calls, and make t of the adapters that read x ``[..., hidden]``."""
    precision, flat = into.precision, x.reshape(-1, x.shape[-1])
    adapters = [adapter for projection in into.projections for adapter in projection.adapters]
    masks = draw_masks(x, adapters, precision)
    rest = iter([Kept(*pair) for pair in zip(masks, reduce(flat, adapters, masks, precision), strict=True)])
    made = [[next(rest) for _ in projection.adapters] for projection in into.projections]
    (last,) = down.projections
    size = flat.shape[0], last.weight.shape[1]

    def drop(probability: float, dtype: torch.dtype) -> Tensor | None:
        return draw_packed(flat, *size, probability, dtype, form.rows) if probability else None

    hidden = drop(form.dropout, precision.output)
    return Drawn(made, hidden, [Kept(drop(adapter.dropout, precision.drawn)) for adapter in last.adapters])


class Passes:
    """An MLP and what was drawn for it.

    Args:
        into: the projections of x.
        down: the projection of the hidden state.
        form: what it is besides.
        drawn: what was drawn, and for backward what was kept.
    """

    def __init__(self, into: Call, down: Call, form: Form, drawn: Drawn) -> None:
        self._into, self._down, self._form, self._drawn = into, down, form, drawn
        self._functions = limited(functions_of(form.activation, form.gate_first), form.limit)
        self._width = down.projections[0].weight.shape[1]

    def forward(self, flat: Tensor) -> tuple[Tensor, list[Kept]]:
        """``y`` of x ``[tokens, hidden]``, and what is kept of each adapter of down."""
        tokens, drawn = flat.shape[0], self._drawn.down
        tiles = tiles_of(tokens, self._form.rows)
        into, down = (cast_once(call) if len(tiles) > 1 else call for call in (self._into, self._down))
        y, kept = Rows(tokens), [KeptRows(tokens) for _ in drawn]
        for part in tiles:
            projected, _ = self._project(flat[part], into, part)
            hidden = self._hidden(projected, part)
            del projected
            of_tile, made = self._project_down(hidden, down, part)
            y.add(part, of_tile)
            for rows, one in zip(kept, made, strict=True):
                rows.add(part, one)
            del hidden, of_tile, made  # before those of the next tile are made
        return present(y.result()), [rows.result(one.mask) for rows, one in zip(kept, drawn, strict=True)]

    def backward(
        self, grad: Tensor, flat: Tensor | None, dtype: torch.dtype | None
    ) -> tuple[Tensor | None, list[Grads | None]]:
        """dx ``[tokens, hidden]``, and the gradients of each projection.

        Args:
            grad: dy, ``[tokens, hidden]``.
            flat: x, ``[tokens, hidden]``; None if nothing is made again.
            dtype: of dx; None if it is not needed.
        """
        tokens = grad.shape[0]
        tiles = tiles_of(tokens, self._form.rows)
        alone = len(tiles) == 1
        of_down = TileSums(self._down.projections, alone=alone)
        of_into = TileSums(self._into.projections, alone=alone)
        back, d_x = flows_back(self._into, x_needed=dtype is not None), Rows(tokens)
        into, down = (call if alone else cast_once(call) for call in (self._into, self._down))
        into_dense, down_dense = (call if alone else dense_once(call) for call in (into, down))
        for part in tiles:
            kept = [kept_of_tile(one, part, self._width) for one in self._drawn.down]
            flow = input_backward([grad[part]], down_dense, [kept], self._down.precision.output if back else None)
            if flat is None:
                of_down.add(flow, None)
                continue
            projected, made = self._project(not_before(flat[part], grad[part]), into, part)
            if flow.x is None:
                of_down.add(flow, self._hidden(projected, part))
                continue
            hidden, grads = self._through_activation(flow.x, projected, part)
            del projected
            of_down.add(flow, hidden)
            del hidden, flow
            flow = input_backward(grads, into_dense, made, dtype)
            del grads
            d_x.add(part, flow.x)
            of_into.add(flow, flat[part])
            del flow, made  # before those of the next tile are made
        return d_x.result(), of_into.result() + of_down.result()

    def _project(self, x: Tensor, into: Call, part: slice) -> tuple[list[Tensor], list[list[Kept]]]:
        """What the projections of x yield for a tile ``[tile, hidden]``, and what backward reads of their adapters."""
        outputs, kept = [], []
        for projection, needs, whole in zip(into.projections, into.needs, self._drawn.into, strict=True):
            of_tile = [kept_of_tile(one, part, x.shape[1]) for one in whole]
            y, made = project_rows(x, projection, of_tile, into.precision)
            outputs.append(y)
            kept.append(_read(made, needs.adapters, into))
        return outputs, kept

    def _hidden(self, projected: Sequence[Tensor], part: slice) -> Tensor:
        """What down reads of a tile."""
        hidden = self._functions.forward(*inputs_of(projected, self._form.gate_first))
        mask = mask_of_tile(self._drawn.hidden, part, self._width)
        if mask is not None and not torch.compiler.is_compiling() and dispatch_modes():
            # Selective checkpointing holds results of operations, and refuses to see them change.
            return masked(hidden, mask, dropout_scale(self._form.dropout))
        return self._drop(hidden, part)

    def _drop(self, buffer: Tensor | None, part: slice) -> Tensor:
        mask = mask_of_tile(self._drawn.hidden, part, self._width)
        dropped: Tensor = drop_again(buffer, mask=mask, probability=self._form.dropout)
        return dropped

    def _project_down(self, hidden: Tensor, down: Call, part: slice) -> tuple[Tensor, list[Kept]]:
        """What down yields for a tile ``[tile, intermediate]``, and what is kept of its adapters."""
        (projection,), (needs,), precision = down
        masks = [mask_of_tile(one.mask, part, self._width) for one in self._drawn.down]
        ts = reduce(hidden, projection.adapters, masks, precision)
        given = [Kept(*pair) for pair in zip(masks, ts, strict=True)]
        y, made = project_rows(hidden, projection, given, precision)
        return y, _read(made, needs.adapters, down)

    def _through_activation(
        self, d_hidden: Tensor, projected: Sequence[Tensor], part: slice
    ) -> tuple[Tensor | None, Sequence[Tensor]]:
        """What down read, if its gradients need it, and the gradients of what the projections of x yield."""
        wanted = reads_hidden(self._down.needs[0], remakes=False)
        hidden, grads = through_activation(
            self._functions, self._drop(d_hidden, part), projected, self._form.gate_first, with_hidden=wanted
        )
        return None if hidden is None else self._drop(hidden, part), grads


def _read(made: Sequence[Kept], needs: Sequence[AdapterNeeds], call: Call) -> list[Kept]:
    """Of what was made of each adapter, what backward reads; t is not made again."""
    return [to_keep(*pair, call.precision, remakes=False) for pair in zip(made, needs, strict=True)]
