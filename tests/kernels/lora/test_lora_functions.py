"""The fused autograd functions against the same formula in ordinary operations, in fp64, over their option grid."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from projection_cases import (
    ACTS,
    FP64,
    all_tensors,
    assert_same,
    make,
    plain,
    plain_mlp,
    tensors,
)
from structure_cases import MIXTURES, rounding_failures

from patchkit_kernels.lora.gated_mlp import lora_gated_mlp
from patchkit_kernels.lora.linear import lora_linear, lora_projections
from patchkit_kernels.lora.projection import Precision
from patchkit_kernels.ops.activations import GATED

GRID = [
    pytest.param(
        ranks,
        bias,
        base_grad,
        x_grad,
        id=f"r{ranks}-{'bias' if bias else 'nobias'}-{'trainW' if base_grad else 'frozenW'}-{'dx' if x_grad else 'nodx'}",
    )
    for ranks, bias, base_grad, x_grad in itertools.product([(2, 2, 2), (1, 0, 3), (0, 4, 0)], *[(False, True)] * 3)
]


@pytest.mark.parametrize(("ranks", "bias", "base_grad", "x_grad"), GRID)
def test_projections_gradcheck(ranks, bias, base_grad, x_grad):
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=x_grad)
    projections = [make(5, out, r, bias=bias, base_grad=base_grad) for out, r in zip((6, 3, 4), ranks, strict=True)]
    variables = [*([x] if x_grad else []), *tensors(projections)]

    def function(*_):
        return tuple(y for y in lora_projections(x, projections, FP64) if y.requires_grad)

    assert torch.autograd.gradcheck(function, variables)
    assert torch.autograd.gradgradcheck(function, variables)
    assert_same([plain(x, p) for p in projections], lora_projections(x, projections, FP64), variables)


RANKS = [((2, 3, 1), False), ((0, 2, 0), True), ((2, 0, 2), True), ((0, 0, 3), False)]
# What is trained and how gate and up are given is the same for every activation: some run through all of it.
GATED_GRID = [
    (activation, joint, ranks, base_grad)
    for activation in ACTS
    for joint in (False, "gate_first", "up_first")
    for ranks, base_grad in RANKS
    if activation in ("silu", "gelu_erf", "gelu_tanh") or (joint, base_grad) == ("up_first", False)
]


@pytest.mark.parametrize(("activation", "joint", "ranks", "base_grad"), GATED_GRID)
def test_gated_mlp_gradcheck(activation, joint, ranks, base_grad):
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    outs, ranks = ((12, 5), ranks[::2]) if joint else ((6, 6, 5), ranks)
    ins = (5,) * (len(outs) - 1) + (6,)
    *inputs, down = [
        make(i, o, r, bias=base_grad, base_grad=base_grad) for i, o, r in zip(ins, outs, ranks, strict=True)
    ]
    variables, first = [x, *tensors([*inputs, down])], joint != "up_first"

    def function(*_):
        return lora_gated_mlp(x, inputs, down, activation, FP64, gate_first=first)

    assert torch.autograd.gradcheck(function, variables)
    assert torch.autograd.gradgradcheck(function, variables)
    assert_same(plain_mlp(x, inputs, down, activation, first), function(), variables)


def test_frozen_input_of_the_first_layer():
    """Embeddings are frozen under LoRA: the first block's input needs no gradient, its adapters do."""
    x, *inputs = torch.randn(4, 5, dtype=torch.float64), make(5, 6, 2), make(5, 6, 2, seed=1)
    down = make(6, 5, 2)
    assert_same(
        plain_mlp(x, inputs, down, "silu"), lora_gated_mlp(x, inputs, down, "silu", FP64), tensors([*inputs, down])
    )


def test_only_down_is_adapted_and_nothing_else_needs_a_gradient():
    x, inputs, down = torch.randn(4, 5, dtype=torch.float64), [make(5, 6, 0), make(5, 6, 0)], make(6, 5, 2)
    assert_same(plain_mlp(x, inputs, down, "silu"), lora_gated_mlp(x, inputs, down, "silu", FP64), tensors([down]))


@pytest.mark.parametrize("unused", [(0,), (1, 2), (0, 2)])
def test_an_output_that_is_not_used_gives_no_gradient(unused):
    """As upstream: its parameters keep ``grad is None``, not zero."""
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    projections = [make(5, 6, 2, seed=i, base_grad=True) for i in range(3)]
    used = [i for i in range(3) if i not in unused]
    expected, actual = [plain(x, p) for p in projections], lora_projections(x, projections, FP64)
    assert_same([expected[i] for i in used], [actual[i] for i in used], [x, *tensors(projections)])


def test_second_backward_gives_the_same_gradients():
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    projections = [make(5, 6, 2), make(5, 6, 3, seed=1), make(6, 5, 2)]
    y = lora_gated_mlp(x, projections[:2], projections[2], "gelu_tanh", FP64).sum()
    variables = [x, *tensors(projections)]
    first = torch.autograd.grad(y, variables, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, torch.autograd.grad(y, variables), strict=True))


def test_inputs_are_not_modified():
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    projections = [make(5, 6, 2, base_grad=True), make(5, 6, 3, seed=1), make(6, 5, 2, bias=True)]
    kept = all_tensors(projections)
    before = [t.detach().clone() for t in (x, *kept)]
    cotangent = torch.randn(4, 5, dtype=torch.float64)
    saved = cotangent.clone()
    lora_gated_mlp(x, projections[:2], projections[2], "silu", FP64).backward(cotangent)
    assert torch.equal(saved, cotangent)
    assert all(torch.equal(a, b) for a, b in zip(before, (x, *kept), strict=True))


def test_in_place_use_of_the_outputs():
    """Upstream code may scale the query in place (``query_states /= ...``)."""
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    projections = [make(5, 6, 2, seed=i) for i in range(3)]
    expected = [plain(x, p) for p in projections]
    actual = list(lora_projections(x, projections, FP64))
    expected[0] /= 3.0
    actual[0] /= 3.0
    assert_same(expected, actual, [x, *tensors(projections)])


LEADING = st.lists(st.integers(0, 4), max_size=3)


@settings(max_examples=60, deadline=None)
@given(
    leading=LEADING,
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    ranks=st.tuples(st.integers(0, 6), st.integers(0, 6)),
    strided=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_shape_and_stride(leading, sizes, ranks, strided, seed):
    """1-D to 4-D, empty batches, odd sizes, ranks over the width, transposed inputs."""
    shape = (*leading, sizes[0])
    x = torch.randn(
        shape[::-1] if strided else shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    x = (x.permute(*reversed(range(x.dim()))) if strided else x).requires_grad_()
    projections = [make(sizes[0], out, r, seed=seed) for out, r in zip(sizes[1:], ranks, strict=True)]
    variables = [x, *tensors(projections)]
    assert_same([plain(x, p) for p in projections], lora_projections(x, projections, FP64), variables)


@pytest.mark.parametrize("rank", [1, 8, 64, 256])
def test_ranks(rank):
    x, projection = torch.randn(3, 33, dtype=torch.float64, requires_grad=True), make(33, 17, rank)
    assert_same(plain(x, projection), lora_linear(x, projection, FP64), [x, *tensors([projection])])


@pytest.mark.parametrize(("base", "lora"), MIXTURES, ids=str)
def test_low_precision_is_no_worse_than_upstream(base, lora, device):
    """Output and gradients of the gated MLP, by the criterion of ``patchkit.testing.rounding``."""
    assert not rounding_failures(base, lora, device)


def test_what_is_kept_for_backward():
    """Between forward and backward: the block's input, gate and up, and t of each (the charter's cost model)."""
    kept: list[torch.Tensor] = []
    x = torch.randn(10, 5, requires_grad=True)
    single = Precision(*[torch.float32] * 4)
    inputs = [make(5, 6, 2, dtype=torch.float32, seed=i) for i in range(2)]
    down = make(6, 5, 2, dtype=torch.float32)
    parameters = {t.data_ptr() for t in all_tensors([*inputs, down])}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        lora_gated_mlp(x, inputs, down, "silu", single)
    assert sorted(tuple(t.shape) for t in kept if t.data_ptr() not in parameters) == [
        *[(10, 2)] * 3,
        (10, 5),
        (10, 6),
        (10, 6),
    ]


def test_matmuls_are_only_those_that_the_mathematics_needs():
    """Counted: no dW of a frozen weight, A's of one input stacked, and t is kept."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        products = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.products += function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
            return function(*args, **(kwargs or {}))

    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    projections = [make(5, 6, 2, seed=i) for i in range(3)]
    with Count() as forward:
        outputs = lora_projections(x, projections, FP64)
    with Count() as backward:
        sum(y.sum() for y in outputs).backward()
    assert forward.products == 3 + 1 + 3  # W each, the stacked A, B each
    assert backward.products == 3 + 1 + 3 + 3 + 1  # dx: W each and stacked A; dt and dB each; stacked dA


def test_activation_names_match_their_functions():
    """F3: each name is its own function; swapping erf and tanh is seen."""
    gate, up = torch.linspace(-6, 6, 101, dtype=torch.float64), torch.ones(101, dtype=torch.float64)
    for name, function in ACTS.items():
        found = GATED[name].forward(gate, up)
        assert torch.allclose(found, function(gate), rtol=0, atol=1e-12)
        others = [other for key, other in ACTS.items() if key != name]
        assert all((found - other(gate)).abs().max() > 1e-5 for other in others)
