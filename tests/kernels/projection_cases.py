"""Projections of random numbers, and the same formulas in ordinary operations, for tests of the fused functions."""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
import torch.nn.functional as F

from patchkit_kernels.lora.projection import Adapter, Precision, Projection

FP64 = Precision(*[torch.float64] * 4)
ACTS = {
    "silu": F.silu,
    "gelu_erf": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: torch.square(F.relu(x)),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "sigmoid": torch.sigmoid,
}


class Extra(NamedTuple):
    """What an adapter has besides A and B."""

    dora: bool = False
    bias: bool = False
    dropout: float = 0.0


LORA = (Extra(),)


def make(
    inputs,
    outputs,
    rank,
    *,
    bias=False,
    base_grad=False,
    dtype=torch.float64,
    lora_dtype=None,
    seed=0,
    extras=LORA,
    device="cpu",
):
    """A projection with one adapter for each of ``extras``, of order one; rank 0 has none."""
    generator = torch.Generator().manual_seed(seed + 7 * outputs + rank)

    def draw(*shape, dtype=dtype, grad=True):
        drawn = torch.randn(*shape, generator=generator, dtype=torch.float64) / shape[-1] ** 0.5
        return drawn.to(device, dtype).requires_grad_(grad)

    lora = lora_dtype or dtype
    weight, offset = draw(outputs, inputs, grad=base_grad), draw(outputs, grad=base_grad) if bias else None
    adapters = []
    for extra in extras if rank else ():
        adapters.append(
            Adapter(
                draw(rank, inputs, dtype=lora),
                draw(outputs, rank, dtype=lora),
                0.7,
                draw(outputs, dtype=lora) if extra.bias else None,
                (1 + draw(outputs, dtype=lora, grad=False)).requires_grad_() if extra.dora else None,
                extra.dropout,
            )
        )
    return Projection(weight, offset, tuple(adapters))


def seeds(count):
    """As many seeds; PATCHKIT_TEST_SEED gives others, to see that a test does not pass by luck."""
    first = 1000 * int(os.environ.get("PATCHKIT_TEST_SEED", "0"))
    return range(first, first + count)


def seeded(function):
    """The function with the same random numbers at every call."""

    def call(*args):
        if not torch.compiler.is_compiling():  # which cannot trace it
            torch.manual_seed(5)
        return function(*args)

    return call


def all_tensors(projections):
    """Every tensor, in order."""
    found = [t for p in projections for t in (p.weight, p.bias, *[t for a in p.adapters for t in a])]
    return [t for t in found if isinstance(t, torch.Tensor)]


def tensors(projections):
    """Every tensor that is trained."""
    return [t for t in all_tensors(projections) if t.requires_grad]


def precise(projection):
    """The same numbers in float64."""

    def wide(value):
        return value.detach().double().requires_grad_(value.requires_grad) if torch.is_tensor(value) else value

    adapters = tuple(type(a)(*map(wide, a)) for a in projection.adapters)
    return Projection(wide(projection.weight), wide(projection.bias), adapters)


def plain(x, p):
    """PEFT's ``lora.Linear.forward`` and ``DoraLinearLayer.forward`` in words of torch."""
    result = F.linear(x, p.weight, p.bias)
    dtype = result.dtype
    for a in p.adapters:
        x = x.to(a.lora_a.dtype)
        dropped = F.dropout(x, a.dropout) if a.dropout else x
        low_rank = F.linear(F.linear(dropped, a.lora_a), a.lora_b, a.bias)
        if a.magnitude is None:
            result = result + low_rank * a.scaling
            continue
        delta = F.linear(F.linear(torch.eye(x.shape[-1], dtype=x.dtype, device=x.device), a.lora_a), a.lora_b, a.bias).T
        norm = torch.linalg.norm(p.weight.to(x.dtype) + a.scaling * delta, dim=1).detach()
        factor = a.magnitude / norm
        base = result if p.bias is None else result - p.bias
        if a.dropout:
            base = F.linear(dropped, p.weight.to(x.dtype))
        result = result + (factor - 1) * base + factor * low_rank * a.scaling
    return result.to(dtype)


def plain_mlp(x, inputs, down, activation, gate_first=True, dropout=0.0):
    """The gated MLP in words of torch."""
    parts = [plain(x, p) for p in inputs]
    first, second = parts if len(parts) == 2 else parts[0].chunk(2, -1)
    gate, up = (first, second) if gate_first else (second, first)
    return plain(F.dropout(ACTS[activation](gate) * up, dropout), down)


def plain_ungated_mlp(x, up, down, activation, dropout=0.0):
    """The MLP without a gate in words of torch."""
    return plain(F.dropout(ACTS[activation](plain(x, up)), dropout), down)


def assert_same(expected, actual, variables, tolerance=1e-10):
    """Outputs and gradients of two functions of the same variables, relative to their norm."""
    expected, actual = ([t] if torch.is_tensor(t) else list(t) for t in (expected, actual))
    assert [t.requires_grad for t in expected] == [t.requires_grad for t in actual]
    for a, b in zip(expected, actual, strict=True):
        assert a.dtype == b.dtype
        assert (a - b).norm() <= tolerance * a.norm()
    expected, actual = ([t for t in found if t.requires_grad] for found in (expected, actual))
    if not expected:
        return
    cotangents = [
        torch.randn(t.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64).to(t.dtype)
        for i, t in enumerate(expected)
    ]
    wanted = torch.autograd.grad(expected, variables, cotangents, allow_unused=True)
    found = torch.autograd.grad(actual, variables, cotangents, allow_unused=True)
    for a, b in zip(wanted, found, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.shape == b.shape
            assert a.dtype == b.dtype
            assert (a - b).norm() <= tolerance * a.norm()
