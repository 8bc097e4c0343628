"""The MLP without a gate: the fused function against the same formula in ordinary operations, over its options."""

from __future__ import annotations

from collections import Counter
from typing import get_args

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
    plain_mlp,
    plain_ungated_mlp,
    precise,
    seeded,
    seeds,
    tensors,
)
from structures import ALL, BIASED, DORA, DORA_DROPPED, DROPPED, LORA, STRUCTURES, train
from torch.utils._python_dispatch import TorchDispatchMode

from patchkit.testing import Result, RoundingErrors
from patchkit_kernels.lora.gated_mlp import lora_gated_mlp
from patchkit_kernels.lora.mlp import lora_mlp
from patchkit_kernels.lora.projection import Precision
from patchkit_kernels.ops.activations import Activation

SINGLE = Precision(*[torch.float32] * 4)
ADAPTERS = {
    "none": (),
    "lora": (LORA,),
    "dropout": (DROPPED,),
    "dora": (DORA,),
    "dora dropout": (DORA_DROPPED,),
    "lora_bias": (BIASED,),
    "all": (ALL,),
    "two": (LORA, BIASED),
    "dora after lora": (DROPPED, DORA),
    "lora after dora": (DORA, DROPPED),
    "three": (DORA_DROPPED, BIASED, ALL),
}


def pair(first, last, *, bias=False, base_grad=False, dtype=torch.float64, lora_dtype=None):
    """Up and down with these adapters, from 5 to 6 and back."""
    options = {"bias": bias, "base_grad": base_grad, "dtype": dtype, "lora_dtype": lora_dtype}
    return make(5, 6, 2, extras=first, seed=1, **options), make(6, 5, 2, extras=last, seed=2, **options)


def test_every_activation_is_tested():
    assert set(ACTS) == set(get_args(Activation))


@pytest.mark.parametrize("activation", ACTS)
@pytest.mark.parametrize(
    ("first", "last", "base_grad", "x_grad"),
    [("lora", "lora", False, True), ("none", "lora_bias", True, False), ("lora_bias", "none", True, True)],
)
def test_gradcheck(activation, first, last, base_grad, x_grad):
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=x_grad)
    up, down = pair(ADAPTERS[first], ADAPTERS[last], bias=base_grad, base_grad=base_grad)
    variables = [*([x] if x_grad else []), *tensors([up, down])]

    def function(*_):
        return lora_mlp(x, up, down, activation, FP64)

    assert torch.autograd.gradcheck(function, variables, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, variables, fast_mode=True)
    assert_same(plain_ungated_mlp(x, up, down, activation), function(), variables)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("last", ADAPTERS)
@pytest.mark.parametrize("first", ADAPTERS)
def test_everything_that_an_adapter_can_have(first, last, bias):
    """Outputs and gradients, and by that the masks: they are drawn for up, then for down."""
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    up, down = pair(ADAPTERS[first], ADAPTERS[last], bias=bias, base_grad=bias)
    activation = list(ACTS)[(len(first) + len(last)) % len(ACTS)]
    expected = seeded(lambda: plain_ungated_mlp(x, up, down, activation))()
    after = torch.rand(3)
    found = seeded(lambda: lora_mlp(x, up, down, activation, FP64))()
    assert torch.equal(after, torch.rand(3))  # the generator is left as upstream leaves it
    assert_same(expected, found, [x, *tensors([up, down])])


@settings(max_examples=40, deadline=None)
@given(
    leading=st.lists(st.integers(0, 4), max_size=3),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    ranks=st.tuples(st.integers(0, 6), st.integers(0, 6)),
    strided=st.booleans(),
    activation=st.sampled_from(list(ACTS)),
)
def test_any_shape_and_stride(leading, sizes, ranks, strided, activation):
    shape = (*leading, sizes[0])
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(shape[::-1] if strided else shape, dtype=torch.float64, generator=generator)
    x = (x.permute(*reversed(range(x.dim()))) if strided else x).requires_grad_()
    up, down = make(*sizes, ranks[0]), make(*sizes[::-1], ranks[1], seed=1)
    expected, found = plain_ungated_mlp(x, up, down, activation), lora_mlp(x, up, down, activation, FP64)
    assert found.shape == expected.shape
    assert_same(expected, found, [x, *tensors([up, down])])


def shapes_kept(x, up, down, activation="gelu_erf", **options):
    """The shapes of what autograd saves, parameters and stand-ins for x (of one element) left out."""
    kept: list[torch.Tensor] = []
    parameters = {t.data_ptr() for t in all_tensors([up, down])}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        lora_mlp(x, up, down, activation, SINGLE, **options)
    return sorted(tuple(t.shape) for t in kept if t.data_ptr() not in parameters)


@pytest.mark.usefixtures("masks_in_bits")
@pytest.mark.parametrize("activation", ACTS)
def test_what_is_kept_for_backward(activation):
    """x, the output of up, whatever the activation, and t of each; with dropout a bit for each element and mask.

    Not t where dropout stands before down: that is not the structure that people train, and x and A are there.
    """
    x, ts = torch.randn(16, 5, requires_grad=True), [(16, 2), (16, 2)]
    assert shapes_kept(x, *pair((LORA,), (LORA,), dtype=torch.float32), activation) == [*ts, (16, 5), (16, 6)]
    masks = [(16 * 5 // 8,), (16 * 6 // 8,)]
    found = shapes_kept(x, *pair((DROPPED,), (DROPPED,), dtype=torch.float32), activation)
    assert found == sorted([*ts, (16, 5), (16, 6), *masks])
    found = shapes_kept(x, *pair((LORA,), (DROPPED,), dtype=torch.float32), activation, dropout=0.4)
    assert found == sorted([(16, 5), (16, 6), (16 * 6 // 8,), (16 * 6 // 8,)])


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_no_mask_is_kept_where_nothing_flows_back_through_it(dropout):
    x = torch.randn(16, 5)
    assert shapes_kept(x, *pair((), (LORA,), dtype=torch.float32), dropout=dropout) == [(16, 2), (16, 6)]


@pytest.mark.parametrize("probability", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("last", ["none", "lora", "dropout", "dora dropout"])
@pytest.mark.parametrize("first", ["none", "lora", "dropout"])
@pytest.mark.parametrize("gated", [False, True])
def test_dropout_of_what_down_is_given(gated, first, last, probability):
    """Drawn after the masks of the projections before it and before those of down, and as often as upstream draws."""
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    up, down = pair(ADAPTERS[first], ADAPTERS[last], bias=True, base_grad=first == last)
    inputs = [make(5, 6, 2, extras=ADAPTERS[first], seed=3), up] if gated else [up]

    def upstream():
        if gated:
            return plain_mlp(x, inputs, down, "silu", dropout=probability)
        return plain_ungated_mlp(x, up, down, "silu", probability)

    def ours():
        if gated:
            return lora_gated_mlp(x, inputs, down, "silu", FP64, dropout=probability)
        return lora_mlp(x, up, down, "silu", FP64, dropout=probability)

    expected = seeded(upstream)()
    after = torch.rand(3)
    found = seeded(ours)()
    assert torch.equal(after, torch.rand(3))
    assert_same(expected, found, [x, *tensors([*inputs, down])])


def only(trained, projections):
    """Have these tensors of the first adapters alone, by letters and their projection, require a gradient."""
    for name, projection in zip(("up", "down"), projections, strict=True):
        for tensor in all_tensors([projection]):
            tensor.requires_grad_(False)
        for letter, tensor in (("W", projection.weight), ("A", projection.adapters[0].lora_a)):
            tensor.requires_grad_(f"{name} {letter}" in trained)
        projection.adapters[0].lora_b.requires_grad_(f"{name} B" in trained)


@pytest.mark.parametrize(
    ("trained", "x_grad", "kept"),
    [
        ((), True, [(16, 6)]),  # the activation's derivative
        (("down W",), False, [(16, 6)]),  # its value, which is made once
        (("down A",), False, [(16, 6)]),
        (("down B",), False, [(16, 2)]),
        (("up B",), False, [(16, 2), (16, 6)]),
        (("up A",), False, [(16, 5), (16, 6)]),
        (("up A", "up B", "down A", "down B"), False, [(16, 2), (16, 2), (16, 5), (16, 6)]),  # both t
    ],
)
def test_less_is_kept_where_less_is_read(trained, x_grad, kept):
    x, projections = torch.randn(16, 5, requires_grad=x_grad), pair((LORA,), (LORA,), dtype=torch.float32)
    only(trained, projections)
    assert shapes_kept(x, *projections) == kept


class Counted(TorchDispatchMode):
    """Counts the ops that run, by name."""

    def __init__(self):
        super().__init__()
        self.ops = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.ops[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))

    @property
    def products(self):
        return sum(self.ops[name] for name in ("mm", "addmm", "addmm_"))


def test_matmuls_are_only_those_that_the_mathematics_needs():
    x, (up, down) = torch.randn(4, 5, dtype=torch.float64, requires_grad=True), pair((LORA,), (LORA,))
    with Counted() as forward:
        y = lora_mlp(x, up, down, "gelu_erf", FP64)
    with Counted() as backward:
        y.sum().backward()
    assert forward.products == 2 * 3  # W, A, B
    assert backward.products == 2 * (2 + 1 + 2)  # dx: W and A; dt; dB and dA
    assert (forward.ops["gelu_erf"], backward.ops["gelu_erf_backward_recompute"]) == (1, 1)


@pytest.mark.parametrize("trained", [("up A",), ("down B", "up B")])
def test_the_value_is_made_again_only_where_down_reads_it(trained):
    x, projections = torch.randn(4, 5, dtype=torch.float64, requires_grad=True), pair((LORA,), (LORA,))
    only(trained, projections)
    y = lora_mlp(x, *projections, "relu", FP64)
    with Counted() as backward:
        y.sum().backward()
    again = "down B" in trained
    assert (backward.ops["relu_backward_recompute"], backward.ops["relu_backward"]) == (int(again), int(not again))


def test_inputs_are_not_modified():
    x, (up, down) = torch.randn(4, 5, dtype=torch.float64, requires_grad=True), pair((ALL,), (ALL,), base_grad=True)
    cotangent = torch.randn(4, 5, dtype=torch.float64)
    given = [x, cotangent, *all_tensors([up, down])]
    before = [t.detach().clone() for t in given]
    y = lora_mlp(x, up, down, "relu2", FP64)
    first = torch.autograd.grad(y, [x, *tensors([up, down])], cotangent, retain_graph=True)
    second = torch.autograd.grad(y, [x, *tensors([up, down])], cotangent)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, given, strict=True))


@pytest.mark.parametrize("activation", ACTS)
@pytest.mark.parametrize(
    ("base", "lora"),
    [(torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32), (torch.float16, torch.float32)],
    ids=str,
)
def test_low_precision_is_no_worse_than_upstream(activation, base, lora):
    """Output and gradients, by the criterion of ``patchkit.testing.rounding``."""
    errors, total = RoundingErrors(), "everything"
    tokens, hidden, intermediate, rank = 48, 24, 32, 4
    for seed in seeds(4):
        x = torch.randn(tokens, hidden, generator=torch.Generator().manual_seed(seed)).to(base).requires_grad_()
        kinds = {"rank": rank, "dtype": base, "lora_dtype": lora, "bias": True}
        projections = [
            make(hidden, intermediate, **kinds, seed=seed),
            make(intermediate, hidden, **kinds, seed=seed + 1),
        ]
        exact, x64 = [precise(p) for p in projections], x.detach().double().requires_grad_()
        cotangent = torch.randn(tokens, hidden, generator=torch.Generator().manual_seed(seed + 1)).to(base)

        def run(y, x, projections, cotangent=cotangent):
            return [y, *torch.autograd.grad(y, [x, *tensors(projections)], cotangent.to(y.dtype))]

        truth = run(plain_ungated_mlp(x64, *exact, activation), x64, exact)
        upstream = run(plain_ungated_mlp(x, *projections, activation), x, projections)
        ours = run(lora_mlp(x, *projections, activation, Precision(base, lora, base, lora)), x, projections)
        assert [t.dtype for t in ours] == [t.dtype for t in upstream]
        results = [Result(*found) for found in zip(truth, upstream, ours, strict=True)]
        summed = 2 * (tokens + hidden + intermediate + rank)
        for index, result in enumerate(results):
            errors.add_draw(f"result {index}", [result], summed)
        errors.add_draw(total, results, summed, each_relative=True)
    assert not errors.failures(totals=[total])


@pytest.mark.parametrize("name", [name for name in STRUCTURES if "mlp" in name])
def test_second_derivatives_with_the_masks_that_were_drawn(name):
    structure = STRUCTURES[name]()
    train(structure, set(structure.tensors))
    variables = list(structure.tensors.values())

    def derivatives(function):
        first = torch.autograd.grad(function()[0].square().sum(), variables, create_graph=True)
        loss = sum(one.square().sum() for one in first)
        return [*first, *torch.autograd.grad(loss, variables, allow_unused=True)]

    for expected, found in zip(derivatives(structure.upstream), derivatives(structure.fused), strict=True):
        assert (expected is None) == (found is None)
        assert expected is None or (expected - found).norm() <= 1e-10 * expected.norm() + 1e-14
