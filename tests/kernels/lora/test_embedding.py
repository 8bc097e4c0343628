"""The fused embedding against PEFT's formula in ordinary operations, in fp64, over its option grid."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from embedding_cases import HIDDEN, IDS, PADDING, VOCAB, make, plain
from hypothesis import given, settings
from hypothesis import strategies as st
from projection_cases import seeds

from patchkit.testing import Result, RoundingErrors
from patchkit_kernels.lora.embedding import EmbeddingAdapter, EmbeddingTable, lora_embedding
from patchkit_kernels.ops.dora_norm import dora_weight_norm


def trained(table):
    tensors = [table.weight, table.magnitude, *(t for adapter in table.adapters for t in adapter[:2])]
    return [tensor for tensor in tensors if tensor is not None and tensor.requires_grad]


def assert_same(expected, actual, variables, tolerance=1e-12):
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    assert (actual - expected).norm() <= tolerance * expected.norm()
    cotangent = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted, found = (torch.autograd.grad(y, variables, cotangent.to(y.dtype)) for y in (expected, actual))
    for a, b, variable in zip(wanted, found, variables, strict=True):
        assert b.shape == variable.shape
        assert b.dtype == variable.dtype
        assert (a - b).norm() <= tolerance * a.norm()


GRID = [
    pytest.param(
        {"ranks": ranks, "dora": dora, "scaled": scaled, "padding_idx": padding_idx, "train_weight": train_weight},
        id=f"r{ranks}{'-dora' * dora}{'-scaled' * scaled}{'-padding' * (padding_idx is not None)}"
        f"{'-trainW' * train_weight}",
    )
    for (ranks, dora), scaled, padding_idx, train_weight in itertools.product(
        [((2,), False), ((2,), True), ((1, 3), False)], (False, True), (None, PADDING), (False, True)
    )
]


@pytest.mark.parametrize("options", GRID)
def test_gradcheck(options):
    table, norm = make(**options)
    variables = trained(table)

    def function(*_):
        return lora_embedding(IDS, table, torch.float64, norm)

    assert_same(plain(IDS, table, torch.float64, norm), function(), variables)
    # The numerical derivative knows nothing of padding, whose rows get no gradient: ids without any.
    ids = IDS.clone()
    ids[ids == PADDING] = 7

    def without_padding(*_):
        return lora_embedding(ids, table, torch.float64, norm)

    assert torch.autograd.gradcheck(without_padding, variables)
    assert torch.autograd.gradgradcheck(without_padding, variables)


@pytest.mark.parametrize("create_graph", [False, True])
def test_padding_gets_no_gradient_from_a_scatter(create_graph):
    table, norm = make(dora=True, padding_idx=PADDING, train_weight=True)
    y = lora_embedding(torch.full((2, 3), PADDING), table, torch.float64, norm)
    found = torch.autograd.grad(y.sum(), trained(table), create_graph=create_graph)
    for tensor, gradient in zip(trained(table), found, strict=True):
        tensor.grad = gradient.detach()
    assert not table.weight.grad.any()
    assert not table.adapters[0].lora_a.grad.any()
    assert table.adapters[0].lora_b.grad.all()
    assert table.magnitude.grad.all()


@pytest.mark.parametrize("dora", [False, True])
def test_second_derivatives_of_what_is_trained_alone(dora):
    """The ids are not kept where nothing is scattered by them; the derivative is taken again all the same."""
    table, norm = make(dora=dora, scaled=True, train_weight=True)
    tensors = trained(table)
    for chosen in tensors:
        for tensor in tensors:
            tensor.requires_grad_(tensor is chosen)
        results = []
        for function in (plain, lora_embedding):
            y = function(IDS, table, torch.float64, norm)
            (first,) = torch.autograd.grad(y.pow(3).sum(), chosen, create_graph=True)
            results.append((first, *torch.autograd.grad(first.pow(2).sum(), chosen)))
        for wanted, found in zip(*results, strict=True):
            assert torch.allclose(wanted, found, rtol=1e-10)


@pytest.mark.parametrize("dora", [False, True])
def test_only_what_is_trained_gets_a_gradient(dora):
    table, norm = make(dora=dora, train_weight=True)
    for chosen in trained(table):
        for tensor in trained(table):
            tensor.grad = None
        frozen = [tensor for tensor in trained(table) if tensor is not chosen]
        for tensor in frozen:
            tensor.requires_grad_(False)
        expected = torch.autograd.grad(plain(IDS, table, torch.float64, norm).sum(), chosen)[0]
        lora_embedding(IDS, table, torch.float64, norm).sum().backward()
        assert torch.allclose(chosen.grad, expected, rtol=1e-12)
        assert all(tensor.grad is None for tensor in frozen)
        for tensor in frozen:
            tensor.requires_grad_(True)
    frozen_table = table._replace(weight=table.weight.detach(), adapters=(), magnitude=None)
    assert not lora_embedding(IDS, frozen_table, torch.float64).requires_grad


PRECISIONS = [
    # dtype of W and of the output, of A and B, of the product with B (autocast's, where it is another)
    (torch.float32, torch.float32, torch.float32),
    (torch.bfloat16, torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float32, torch.float32),
    (torch.float32, torch.float32, torch.bfloat16),
    (torch.float32, torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32, torch.bfloat16),
]


def output_and_gradients(function, table, norm, lora, cotangent):
    y = function(IDS, table, lora, norm)
    return [y, *torch.autograd.grad(y, trained(table), cotangent.to(y.dtype))]


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(
    ("base", "adapter", "lora", "dora"),
    # PEFT runs where DoRA's adapters are narrower than W: see patchkit/runtime/embedding.py.
    [(*p, dora) for p in PRECISIONS for dora in (False, True) if not dora or torch.promote_types(*p[:2]) == p[1]],
    ids=str,
)
def test_low_precision_is_no_worse_than_upstream(base, adapter, lora, dora, scaled):
    """Output and gradients, by the criterion of ``patchkit.testing.rounding``."""
    errors, total, rank, hidden = RoundingErrors(), "everything", 4, 64
    for seed in seeds(6):
        options = {"hidden": hidden, "dora": dora, "scaled": scaled, "train_weight": True, "seed": seed}
        table, norm = make((rank,), **options, dtype=base, lora_dtype=adapter)
        exact = precise(table)
        exact_norm = dora_weight_norm(exact.weight.t(), *exact.adapters[0]) if dora else None
        cotangent = torch.randn(*IDS.shape, hidden, generator=torch.Generator().manual_seed(seed)).to(base)
        ours = output_and_gradients(lora_embedding, table, norm, lora, cotangent)
        upstream = output_and_gradients(plain, table, norm, lora, cotangent)
        truth = output_and_gradients(plain, exact, exact_norm, torch.float64, cotangent)
        assert [t.dtype for t in ours] == [t.dtype for t in upstream] == [base, *(t.dtype for t in trained(table))]
        results = [Result(*found) for found in zip(truth, upstream, ours, strict=True)]
        summed = rank + hidden + IDS.numel()
        for index, result in enumerate(results):
            errors.add_draw(f"result {index}", [result], summed)
        errors.add_draw(total, results, summed, each_relative=True)
    assert not errors.failures(totals=[total])


def precise(table):
    """The same numbers in float64."""

    def wide(tensor):
        return None if tensor is None else tensor.detach().double().requires_grad_(tensor.requires_grad)

    adapters = tuple(EmbeddingAdapter(wide(a.lora_a), wide(a.lora_b), a.scaling) for a in table.adapters)
    return EmbeddingTable(wide(table.weight), adapters, table.padding_idx, wide(table.scale), wide(table.magnitude))


@pytest.mark.parametrize(
    "ids",
    [
        torch.tensor(5),
        torch.tensor([5, 1], dtype=torch.int32),
        torch.zeros(0, 4, dtype=torch.int64),
        torch.arange(8).view(2, 4).t(),
        torch.arange(8).view(2, 2, 2),
    ],
    ids=["scalar", "int32", "empty", "not contiguous", "3-D"],
)
@pytest.mark.parametrize("dora", [False, True])
def test_any_shape_of_ids(ids, dora):
    table, norm = make(dora=dora, train_weight=True)
    assert_same(plain(ids, table, torch.float64, norm), lora_embedding(ids, table, torch.float64, norm), trained(table))


def test_ids_out_of_range():
    table, _ = make()
    for ids in (torch.tensor([VOCAB]), torch.tensor([-1])):
        with pytest.raises(IndexError):
            lora_embedding(ids, table, torch.float64)


def test_transposed_factors():
    """PEFT's ensure_weight_tying hands views on."""
    table, _ = make()
    adapter = table.adapters[0]
    views = adapter._replace(
        lora_a=adapter.lora_a.detach().t().contiguous().t().requires_grad_(),
        lora_b=adapter.lora_b.detach().t().contiguous().t().requires_grad_(),
    )
    table = table._replace(adapters=(views,))
    assert_same(plain(IDS, table, torch.float64), lora_embedding(IDS, table, torch.float64), trained(table))


@pytest.mark.parametrize("dora", [False, True])
def test_what_is_kept_for_backward(dora):
    """The ids and a tensor of the rank's width; for DoRA g, the norm and what m scales, of which PEFT keeps two."""
    table, norm = make(dora=dora, scaled=True, train_weight=True)
    known = {tensor.data_ptr() for tensor in [*trained(table), table.scale]}

    def kept(function):
        shapes = []

        def pack(tensor):
            if tensor.data_ptr() not in known:
                shapes.append(tuple(tensor.shape))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            function(IDS, table, torch.float64, norm)
        return sorted(shapes)

    tokens, wide = IDS.numel(), (HIDDEN,)
    expected = [IDS.shape, (tokens, 2), *([wide, wide, (tokens, HIDDEN)] if dora else [])]
    assert kept(lora_embedding) == sorted(map(tuple, expected))
    assert sum(map(math.prod, kept(lora_embedding))) <= sum(map(math.prod, kept(plain)))


@pytest.mark.parametrize("dora", [False, True])
def test_two_backwards_are_equal(dora):
    table, norm = make(dora=dora, scaled=True, train_weight=True)
    y = lora_embedding(IDS, table, torch.float64, norm).square().sum()
    first = torch.autograd.grad(y, trained(table), retain_graph=True)
    second = torch.autograd.grad(y, trained(table))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("vocab", [1, 4099])
def test_norm_of_a_transposed_table(dtype, bias, vocab):
    """It is taken over ranges of the vocabulary, here several, and is that of the table stored the other way."""
    generator = torch.Generator().manual_seed(0)
    weight, lora_a, lora_b, lora_bias = (
        torch.randn(*shape, generator=generator).to(dtype) for shape in ((vocab, 96), (5, vocab), (96, 5), (96,))
    )
    lora_bias = lora_bias if bias else None
    exact = weight.double().t() + 0.7 * (lora_b.double() @ lora_a.double())
    exact = torch.linalg.norm(exact if lora_bias is None else exact + 0.7 * lora_bias.double()[:, None], dim=1)
    for table in (weight.t(), weight.t().contiguous()):
        norm = dora_weight_norm(table, lora_a, lora_b, 0.7, lora_bias)
        assert norm.dtype == torch.promote_types(dtype, torch.float32)
        assert (norm - exact).norm() <= 1e-6 * exact.norm()


def test_a_magnitude_of_zero():
    """F24: nothing divides by the parameter."""
    table, norm = make(dora=True)
    with torch.no_grad():
        table.magnitude[2] = 0
    y = lora_embedding(IDS, table, torch.float64, norm)
    y.sum().backward()
    assert not y[..., 2].any()
    assert all(torch.isfinite(tensor.grad).all() for tensor in trained(table))
    assert table.magnitude.grad[2] != 0


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(0, 40),
    vocab=st.integers(1, 50),
    hidden=st.integers(1, 33),
    rank=st.integers(1, 64),
    dora=st.booleans(),
    scaled=st.booleans(),
)
def test_any_size(tokens, vocab, hidden, rank, dora, scaled):
    table, norm = make((rank,), vocab=vocab, hidden=hidden, dora=dora, scaled=scaled, train_weight=True)
    ids = torch.randint(0, vocab, (tokens,), generator=torch.Generator().manual_seed(tokens))
    expected, actual = plain(ids, table, torch.float64, norm), lora_embedding(ids, table, torch.float64, norm)
    assert_same(expected, actual, trained(table), tolerance=1e-10)
