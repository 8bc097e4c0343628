"""An MLP with LoRA adapters that keeps nothing as wide as its hidden state: see :mod:`.memory`, :mod:`.mlp_function`.

For backward it keeps x, t of every adapter and the bits of dropout. A tile of tokens goes through the whole MLP before
the next one does, forward and backward. Where all tokens are one tile, gradients are those of :mod:`.mlp_function`;
with several, those that are sums over tokens are added up in float32 (:mod:`.tile_sums`).

Dropout is drawn as PEFT draws it, for all tokens before the first tile: for the adapters that read x, for the hidden
state, and for down's adapters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from patchkit_kernels.lora.arguments import (
    Structure,
    flatten,
    flatten_grads,
    flatten_kept,
    structure_of,
    unflatten,
    unflatten_kept,
)
from patchkit_kernels.lora.call import Call
from patchkit_kernels.lora.differentiable import differentiable_backward, wants_ordinary_operations, without_autocast
from patchkit_kernels.lora.forward import project_again
from patchkit_kernels.lora.hidden_state import functions_of, inputs_of, limited
from patchkit_kernels.lora.mlp_parts import calls_of, split
from patchkit_kernels.lora.projection import Precision, Projection, dropout_scale
from patchkit_kernels.lora.quantized_again import as_in_forward, autocast_of
from patchkit_kernels.lora.remade_passes import Drawn, Form, Passes, draw, flows_back, remakes
from patchkit_kernels.lora.saving import keep, kept, read_by_backward
from patchkit_kernels.lora.shapes import as_rows, with_leading
from patchkit_kernels.ops.dropout import masked


class RemadeMLP(torch.autograd.Function):
    """The last projection is down; the others read x: gate and up, one that yields both, or up alone."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, form: tuple[Any, ...], structure: Structure, precision: tuple[Any, ...], *tensors: Any
    ) -> Tensor:
        """``[..., hidden]``; keeps x, t and masks, directions of down, and every tensor that is read again."""
        ctx.form, ctx.structure, ctx.precision = form, structure, precision
        ctx.autocast = autocast_of(x, [weight for weight, _ in structure])
        ctx.set_materialize_grads(False)
        x_needed, needed = _of_arguments(ctx.needs_input_grad)
        into, down = calls_of(tensors, needed, structure, Precision(*precision))
        drawn = draw(x, into, down, Form(*form))
        y, made_down = Passes(into, down, Form(*form), drawn).forward(as_rows(x))
        again = remakes(into, down, x_needed=x_needed) or torch.compiler.is_compiling()
        ctx.unread = None if again else x.new_zeros(()).expand(x.shape)
        read = _read_again(into, x_needed=x_needed) if again else [None] * len(flatten(into.projections))
        read += read_by_backward(down, x_needed=flows_back(into, x_needed=x_needed))
        to_save = keep(ctx, tensors, read), flatten_kept([*drawn.into, made_down]), [drawn.hidden]
        ctx.counts = [len(part) for part in to_save]
        ctx.save_for_backward(x if again else None, *[tensor for part in to_save for tensor in part])
        return with_leading(y, x)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Any, ...]:
        """The gradients of x and of every tensor that needs one."""
        x, *saved = ctx.saved_tensors
        read, to_keep, (hidden,) = split(saved, ctx.counts)
        precision, form = Precision(*ctx.precision), Form(*ctx.form)
        structure: Structure = tuple(
            [
                (None if weight is None else as_in_forward(weight, ctx.autocast), options)
                for weight, options in ctx.structure
            ]
        )
        tensors, made = kept(ctx, read), unflatten_kept(to_keep, structure)
        if grad is None:
            return _to_arguments(None, [None] * len(tensors))
        x_needed, needed = _of_arguments(ctx.needs_input_grad)
        like, drawn = ctx.unread if x is None else x, Drawn(made[:-1], hidden, made[-1])
        if wants_ordinary_operations([grad]):
            again = _in_ordinary_operations(structure, precision, form, drawn)
            d_x, *rest = differentiable_backward(again, (like, *tensors), (x_needed, *needed), [grad])
            return _to_arguments(d_x, rest)
        into, down = calls_of(tensors, needed, structure, precision)
        d_x, found = Passes(into, down, form, drawn).backward(
            as_rows(grad), None if x is None else as_rows(x), like.dtype if x_needed else None
        )
        return _to_arguments(None if d_x is None else with_leading(d_x, like), flatten_grads(found, structure))


def _in_ordinary_operations(
    structure: Structure, precision: Precision, form: Form, drawn: Drawn
) -> Callable[..., list[Tensor]]:
    """The MLP of all tokens at once, from x and every tensor, in operations that autograd differentiates."""

    def again(x: Tensor, *tensors: Tensor | None) -> list[Tensor]:
        *inputs, down = unflatten(tensors, structure)
        projected = project_again(x, inputs, precision, drawn.into)
        functions = limited(functions_of(form.activation, form.gate_first), form.limit)
        hidden = functions.reference(*inputs_of(projected, form.gate_first))
        if drawn.hidden is not None:
            hidden = masked(hidden, drawn.hidden, dropout_scale(form.dropout))
        return [with_leading(project_again(hidden, [down], precision, [drawn.down])[0], x)]

    return again


def _read_again(call: Call, *, x_needed: bool) -> list[Tensor | None]:
    """The tensors of the projections that backward reads where it makes their outputs again, as ``flatten`` has them.

    That is all but A, since t is kept; and A where x needs a gradient.
    """
    read: list[Tensor | None] = []
    for weight, bias, adapters in call.projections:
        read += (weight if isinstance(weight, Tensor) else None, bias)
        for adapter in adapters:
            read += (adapter.lora_a if x_needed else None, adapter.lora_b, adapter.bias, adapter.factor)
    return read


def _of_arguments(needed: Sequence[bool]) -> tuple[bool, Sequence[bool]]:
    """Of what is said of each argument of the function, what is said of x and of the projections' tensors."""
    x, _form, _structure, _precision, *tensors = needed
    return x, tensors


def _to_arguments(d_x: Tensor | None, d_tensors: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """A gradient for each argument: x, form, structure, precision, and the projections' tensors."""
    return d_x, None, None, None, *d_tensors


def apply_remade_mlp(x: Tensor, projections: Sequence[Projection], form: Form, precision: Precision) -> Tensor:
    """:class:`RemadeMLP` of x ``[..., hidden]`` and projections with g in the place of every magnitude."""
    y: Tensor = RemadeMLP.apply(  # type: ignore[no-untyped-call]
        x, tuple(form), structure_of(projections), tuple(precision), *flatten(projections)
    )
    return y
