"""Backward computes in the dtypes of forward, whatever autocast says while it runs."""

from __future__ import annotations

import contextlib

import pytest
import torch
from structures import STRUCTURES, cotangents, train

AUTOCAST = {
    "off": contextlib.nullcontext,
    "bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "float16": lambda: torch.autocast("cpu", torch.float16),
}


@pytest.mark.parametrize("way", ["plain", "create_graph", "batched"])
@pytest.mark.parametrize("during", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.filterwarnings("ignore:.*performance drop")
def test_float32_forward(name, during, way):
    """The bits of a backward without autocast, and upstream's dtypes."""
    structure = STRUCTURES[name](dtype=torch.float32)
    train(structure, set(structure.tensors))
    leaves = list(structure.tensors.values())
    found = {}
    for kind in ("off", during):
        outputs = structure.fused()
        given, options = cotangents(outputs), {}
        if way == "batched":
            given, options = [g.expand(2, *g.shape) for g in given], {"is_grads_batched": True}
        with AUTOCAST[kind]():
            found[kind] = torch.autograd.grad(outputs, leaves, given, create_graph=way == "create_graph", **options)
    with AUTOCAST[during]():
        outputs = structure.upstream()
    upstream = torch.autograd.grad(outputs, leaves, cotangents(outputs))
    for expected, gradient, other in zip(found["off"], found[during], upstream, strict=True):
        assert torch.equal(expected, gradient)
        assert gradient.dtype == other.dtype


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("during", AUTOCAST)
@pytest.mark.parametrize("extras", ["lora", "dropout", "dora", "dora dropout", "all", "two"])
def test_forward_in_autocast(extras, during, create_graph):
    """float32 tensors, products in bfloat16: the usual mixed precision, with backward outside autocast or inside."""
    from projection_cases import make, seeded, tensors
    from structures import ALL, BIASED, DORA, DORA_DROPPED, DROPPED, LORA

    from patchkit_kernels.lora.linear import lora_linear
    from patchkit_kernels.lora.projection import Precision

    table = {
        "lora": (LORA,),
        "dropout": (DROPPED,),
        "dora": (DORA,),
        "dora dropout": (DORA_DROPPED,),
        "all": (ALL,),
        "two": (LORA, BIASED),
    }
    projection = make(5, 6, 2, dtype=torch.float32, bias=True, base_grad=True, extras=table[extras])
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    half = torch.bfloat16
    found = []
    for inside in ("off", during):
        with torch.autocast("cpu", half):
            y = seeded(lora_linear)(x, projection, Precision(half, half, half, torch.float32))
        with AUTOCAST[inside]():
            cotangent = torch.linspace(-1, 1, y.numel()).view(y.shape).to(half)
            found.append(torch.autograd.grad(y, [x, *tensors([projection])], cotangent, create_graph=create_graph))
    assert {g.dtype for g in found[0]} == {torch.float32}
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
