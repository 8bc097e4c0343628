"""One training step of a cell: its inputs, forward, and backward from fixed gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from patchkit.module_tree import users_model
from patchkit.testing.contenders.cell import Cell
from patchkit.testing.contenders.not_run import NotRunError

Function = Callable[..., Any]


def module_with(model: nn.Module, name: str) -> Any:
    """The first module that has a child of this name.

    Raises:
        NotRunError: there is none.
    """
    for module in model.modules():
        if name in module._modules:
            return module
    raise NotRunError(f"the model has no {name}")


def function_of(model: nn.Module, cell: Cell, *, fused: bool) -> tuple[Function, list[list[int]]]:
    """What is run, and the shapes of its inputs.

    With ``cell.layers`` the stack, of hidden states ``[1, tokens, hidden]``. Else the blocks of one layer, of the input
    of q/k/v ``[1, tokens, hidden]``, that of o ``[1, tokens, heads x head_dim]`` and that of the MLP ``[1, tokens,
    hidden]``.

    Args:
        model: see :func:`~patchkit.testing.contenders.models.build_model`.
        cell: likewise.
        fused: whether the blocks are patched.

    Raises:
        NotRunError: they are to be patched and are not.
    """
    hidden = [1, cell.tokens, int(cell.sizes["hidden_size"])]
    if cell.layers:
        return _stack(model, cell), [hidden]
    attention, mlp = module_with(model, "q_proj"), module_with(model, "gate_proj")
    if fused and not (hasattr(attention, "apply_qkv") and hasattr(attention, "apply_o")):
        raise NotRunError("its attention is not patched: patchkit.apply gave a report that says why")

    def blocks(x: Tensor, context: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        if fused:
            return (*attention.apply_qkv(x), attention.apply_o(context), mlp(y))
        qkv = attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)
        return (*qkv, attention.o_proj(context), mlp(y))

    width = int(attention.o_proj.in_features)
    if not cell.checkpointing:
        return blocks, [hidden, [1, cell.tokens, width], hidden]

    def again(*inputs: Tensor) -> Any:
        return checkpoint(blocks, *inputs, use_reentrant=False)

    return again, [hidden, [1, cell.tokens, width], hidden]


def _stack(model: nn.Module, cell: Cell) -> Function:
    own: Any = users_model(model)
    if cell.checkpointing:
        own.gradient_checkpointing_enable({"use_reentrant": False})

    def stack(x: Tensor) -> tuple[Tensor, ...]:
        return (model(inputs_embeds=x, use_cache=False)[0],)

    return stack


class Run:
    """A function with inputs and gradients of its outputs.

    Args:
        model: whose parameters get gradients.
        function: see :func:`function_of`.
        shapes: of its inputs.
        cell: says dtype and device.
        fake: a mode in which inputs are made that have no data.

    Attributes:
        inputs: leaves that want gradients, as in the middle of a model.
    """

    def __init__(
        self, model: nn.Module, function: Function, shapes: Sequence[Sequence[int]], cell: Cell, fake: Any = None
    ) -> None:
        self._model, self._function, self._cell = model, function, cell
        if fake is None:
            self.inputs = [_numbers(shape, cell, seed).requires_grad_() for seed, shape in enumerate(shapes)]
            return
        with fake:
            options: dict[str, Any] = {"dtype": cell.dtypes.base, "device": cell.device}
            self.inputs = [torch.empty(shape, **options).requires_grad_() for shape in shapes]

    def prepare(self) -> None:
        """Make the gradients of the outputs; with this, forward has run once."""
        outputs = self.forward()
        shapes = [list(one.shape) for one in outputs]
        self.grads = [
            _numbers(shape, self._cell, 9 + seed).to(one.dtype)
            for seed, (shape, one) in enumerate(zip(shapes, outputs, strict=True))
        ]

    def forward(self) -> tuple[Tensor, ...]:
        """The outputs, with their graph."""
        with self._cell.dtypes.region(self._cell.device):
            return tuple(self._function(*self.inputs))

    def backward(self, outputs: Sequence[Tensor]) -> None:
        """Gradients of inputs and adapters."""
        torch.autograd.backward(outputs, self.grads)

    def clear(self) -> None:
        """Drop all gradients."""
        for one in (*self.inputs, *self._model.parameters()):
            one.grad = None

    def gradients(self) -> dict[str, Tensor]:
        """Of the inputs and of each parameter that has one, by names that wrappers do not change."""
        found = {f"input {index}": one.grad for index, one in enumerate(self.inputs)}
        found |= {name: one.grad for name, one in self._model.named_parameters()}
        return {name: one for name, one in found.items() if one is not None}


def _numbers(shape: Sequence[int], cell: Cell, seed: int) -> Tensor:
    generator = torch.Generator(cell.device).manual_seed(seed)
    return torch.randn(*shape, generator=generator, device=cell.device).to(cell.dtypes.base)
