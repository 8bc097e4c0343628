"""The usual way of fused LoRA, written here from its formulas: adapters cast to the dtype of the activations.

Libraries that train fast do it so: A and B are cast to the dtype of x at each call, every product runs in that, and one
autograd function for each block keeps x and, in an MLP, gate and up. It is not PEFT's arithmetic where adapters are
wider than x, which is what the comparison is about. With one adapter of each projection, no dropout and no DoRA::

    y  = x W^T + b + s (x A^T) B^T
    dt = s dy B         dx = dy W + dt A
    dA = dt^T x         dB = s dy^T (x A^T)

The activations between the products of an MLP run patchkit's kernels, so that what differs is the way of LoRA.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from patchkit.testing.contenders.not_run import NotRunError
from patchkit_kernels.ops.activations import GATED, Activation

_ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "gelu": "gelu_erf", "gelu_pytorch_tanh": "gelu_tanh"}


class Frozen(NamedTuple):
    """What of a projection gets no gradient: its layer, from which W and b are read, and the scaling s."""

    layer: Any
    scaling: float

    def weight(self, dtype: torch.dtype) -> Tensor:
        """W ``[out, in]``, dequantised if need be."""
        weight = self.layer.weight
        state = getattr(weight, "quant_state", None)
        if state is not None:
            from bitsandbytes.functional import dequantize_4bit

            weight = dequantize_4bit(weight.data, state)
        return weight.to(dtype)  # type: ignore[no-any-return]


def frozen_and_factors(layer: Any) -> tuple[Frozen, list[Tensor]]:
    """Of a LoRA layer of PEFT: its frozen part, and A ``[r, in]`` and B ``[out, r]``.

    Raises:
        NotRunError: it has dropout or DoRA, for which this way has no formula here.
    """
    if layer.use_dora["default"] or getattr(layer.lora_dropout["default"], "p", 0.0):
        raise NotRunError("this reference is written for LoRA without dropout and DoRA")
    factors = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    return Frozen(layer.get_base_layer(), float(layer.scaling["default"])), factors


def _project(x: Tensor, frozen: Frozen, a: Tensor, b: Tensor) -> Tensor:
    """y ``[tokens, out]`` of x ``[tokens, in]``, A and B in the dtype of x."""
    y = torch.nn.functional.linear(x, frozen.weight(x.dtype), frozen.layer.bias)
    return y.addmm_(x @ a.t(), b.t(), alpha=frozen.scaling)


def _back(
    dy: Tensor, x: Tensor, frozen: Frozen, factors: Sequence[Tensor], dx: Tensor | None = None
) -> tuple[Tensor, ...]:
    """dx ``[tokens, in]``, added to what is given, dA and dB."""
    a, b = factors
    dt = torch.mm(dy, b).mul_(frozen.scaling)
    dx = torch.mm(dy, frozen.weight(dy.dtype)) if dx is None else dx.addmm_(dy, frozen.weight(dy.dtype))
    dx.addmm_(dt, a)
    return dx, torch.mm(dt.t(), x), torch.mm(dy.t(), x @ a.t()).mul_(frozen.scaling)


class CastProjections(torch.autograd.Function):
    """Projections of one input."""

    @staticmethod
    def forward(ctx: Any, frozen: Sequence[Frozen], x: Tensor, *factors: Tensor) -> tuple[Tensor, ...]:
        """Each ``[..., out]``. ``factors`` are A and B of each, in turn."""
        ctx.frozen = frozen
        ctx.save_for_backward(x, *factors)
        flat, cast = x.reshape(-1, x.shape[-1]), [factor.to(x.dtype) for factor in factors]
        with torch.autocast(x.device.type, enabled=False):
            ys = [_project(flat, one, cast[2 * i], cast[2 * i + 1]) for i, one in enumerate(frozen)]
        return tuple(y.view(*x.shape[:-1], -1) for y in ys)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        """The gradients of x and of every factor."""
        x, *factors = ctx.saved_tensors
        flat, cast = x.reshape(-1, x.shape[-1]), [factor.to(x.dtype) for factor in factors]
        dx, found = None, []
        for i, (one, grad) in enumerate(zip(ctx.frozen, grads, strict=True)):
            dy = grad.reshape(-1, grad.shape[-1])
            dx, *of_factors = _back(dy, flat, one, cast[2 * i : 2 * i + 2], dx)
            found += [of.to(factor.dtype) for of, factor in zip(of_factors, factors[2 * i :], strict=False)]
        assert dx is not None
        return None, dx.view_as(x), *found


class CastMLP(torch.autograd.Function):
    """``down(act(gate(x)) * up(x))``."""

    @staticmethod
    def forward(ctx: Any, frozen: Sequence[Frozen], name: Activation, x: Tensor, *factors: Tensor) -> Tensor:
        """``[..., hidden]``. ``factors`` are A and B of gate, up and down."""
        flat, cast = x.reshape(-1, x.shape[-1]), [factor.to(x.dtype) for factor in factors]
        with torch.autocast(x.device.type, enabled=False):
            gate, up = _project(flat, frozen[0], *cast[:2]), _project(flat, frozen[1], *cast[2:4])
            y = _project(GATED[name].run(gate, up), frozen[2], *cast[4:])
        ctx.frozen, ctx.name = frozen, name
        ctx.save_for_backward(x, gate, up, *factors)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        """The gradients of x and of every factor; the hidden state is made again from gate and up."""
        x, gate, up, *factors = ctx.saved_tensors
        flat, cast = x.reshape(-1, x.shape[-1]), [factor.to(x.dtype) for factor in factors]
        dy, down, b = grads[0].reshape(-1, grads[0].shape[-1]), ctx.frozen[2], cast[5]
        dt = torch.mm(dy, b).mul_(down.scaling)
        dh = torch.mm(dy, down.weight(dy.dtype)).addmm_(dt, cast[4])
        d_up, hidden = GATED[ctx.name].run_backward_recompute(dh, gate, up)  # dh is the gradient of gate now
        of_down = [torch.mm(dt.t(), hidden), torch.mm(dy.t(), hidden @ cast[4].t()).mul_(down.scaling)]
        dx, *of_up = _back(d_up, flat, ctx.frozen[1], cast[2:4])
        dx, *of_gate = _back(dh, flat, ctx.frozen[0], cast[:2], dx)
        found = [of.to(factor.dtype) for of, factor in zip([*of_gate, *of_up, *of_down], factors, strict=True)]
        return None, None, dx.view_as(x), *found


def install(model: nn.Module) -> None:
    """Put these functions where patchkit's stand in a patched model.

    Raises:
        NotRunError: an MLP has another activation, or a layer is not for this reference.
    """
    for module in model.modules():
        if "q_proj" in module._modules:
            module.__dict__["apply_qkv"] = _projections(module, "q_proj", "k_proj", "v_proj")
            o = _projections(module, "o_proj")
            module.__dict__["apply_o"] = lambda x, o=o: o(x)[0]
        elif "gate_proj" in module._modules:
            module.__dict__["forward"] = _mlp(module)


def _projections(module: nn.Module, *names: str) -> Callable[[Tensor], tuple[Tensor, ...]]:
    read = [frozen_and_factors(module._modules[name]) for name in names]
    frozen, factors = [one for one, _ in read], [factor for _, two in read for factor in two]
    return lambda x: CastProjections.apply(frozen, x, *factors)  # type: ignore[no-untyped-call]


def _mlp(module: nn.Module) -> Callable[[Tensor], Tensor]:
    config: Any = module.config
    named = str(getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None))
    if named not in _ACTIVATIONS:
        raise NotRunError(f"this reference has no activation {named}")
    name = _ACTIVATIONS[named]
    read = [frozen_and_factors(module._modules[one]) for one in ("gate_proj", "up_proj", "down_proj")]
    frozen, factors = [one for one, _ in read], [factor for _, two in read for factor in two]
    return lambda x: CastMLP.apply(frozen, name, x, *factors)  # type: ignore[no-untyped-call]
