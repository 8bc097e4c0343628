"""Masks of several adapters that are drawn into one tensor: the same outputs and gradients as one after the other."""

from __future__ import annotations

import pytest
import torch
from projection_cases import make, tensors
from straight_ways import general, in_lists
from structures import LORA
from test_straight_host_work import asked, backward_of
from torch.utils._python_dispatch import TorchDispatchMode

from patchkit_kernels.lora import straight, straight_saving
from patchkit_kernels.lora.gated_mlp import lora_gated_mlp
from patchkit_kernels.lora.linear import lora_projections
from patchkit_kernels.lora.projection import Precision
from patchkit_kernels.ops import dropout_once

PRECISIONS = {
    "one dtype": (torch.float64, torch.float64, Precision(*[torch.float64] * 4)),
    "wider adapters": (torch.float32, torch.float64, Precision(*[torch.float32, torch.float64] * 2)),
    "narrower products": (torch.float32, torch.float64, Precision(*[torch.float32] * 3, torch.float64)),
}
PROBABILITIES = {"one": (0.4, 0.4, 0.4), "several": (0.4, 0.3, 0.4)}


@pytest.fixture(params=[True, False], ids=["packed", "unpacked"], autouse=True)
def packed(request, monkeypatch):
    """Whether masks are kept in bits, as those of larger inputs are."""
    monkeypatch.setattr(dropout_once, "UNPACKED", 0 if request.param else 2**13)
    return request.param


class Nothing(TorchDispatchMode):
    """Sees the operations and changes none."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class Case:
    """Three projections or an MLP, all of them dropped, of an input of whole bytes."""

    def __init__(self, part, precision="one dtype", probabilities="one", *, x_grad=True):
        base, lora, self.precision = PRECISIONS[precision]
        extras = [LORA._replace(dropout=p) for p in PROBABILITIES[probabilities]]
        ranks, features = (2, 3, 2), (8, 8, 16 if part == "mlp" else 8)
        outs = (16, 16, 8) if part == "mlp" else (6, 4, 4)
        self.part = part
        self.projections = [
            make(features[i], outs[i], ranks[i], dtype=base, lora_dtype=lora, seed=i, extras=(extras[i],))
            for i in range(3)
        ]
        self.x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(base)
        self.x.requires_grad_(x_grad)
        self.variables = [t for t in (self.x, *tensors(self.projections)) if t.requires_grad]

    def outputs(self):
        torch.manual_seed(7)
        if self.part == "mlp":
            *inputs, down = self.projections
            return (lora_gated_mlp(self.x, inputs, down, "silu", self.precision),)
        return lora_projections(self.x, self.projections, self.precision)

    def grads(self, outputs, **options):
        weights = [torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y) for y in outputs]
        return torch.autograd.grad(outputs, self.variables, weights, **options)


def in_turn(monkeypatch):
    monkeypatch.setattr(straight, "draws_together", lambda x, probabilities: False)


def assert_close(found, expected, precision="one dtype"):
    tolerance = 1e-13 if precision == "one dtype" else 2e-6
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.allclose(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("way", [in_turn, general])
@pytest.mark.parametrize("x_grad", [True, False])
@pytest.mark.parametrize("probabilities", PROBABILITIES)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("part", ["qkv", "mlp"])
def test_the_same_in_any_way(part, precision, probabilities, x_grad, way, monkeypatch):
    case = Case(part, precision, probabilities, x_grad=x_grad)
    outputs = case.outputs()
    grads, after = case.grads(outputs), torch.rand(2)
    way(monkeypatch)
    expected = case.outputs()
    assert_close(outputs, expected, precision)
    assert_close(grads, case.grads(expected), precision)
    assert torch.equal(torch.rand(2), after)


def test_one_tensor_is_kept_for_the_masks_of_one_input(packed):
    """But where hooks are: a checkpoint may be made again where they are drawn one after the other."""

    def sizes(tensors):
        return [t.numel() for t in tensors if t.dtype == torch.uint8 or (t.dim() == 3 and len(t) == 3)]

    def kept(probabilities):
        return sizes(Case("qkv", probabilities=probabilities).outputs()[0].grad_fn.saved_tensors)

    assert kept("one") == ([3 * 6] if packed else [3 * 6 * 8])
    assert kept("several") == [6, 6, 6]
    seen = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.append(t) or t, lambda t: t):
        Case("qkv").outputs()
    assert sizes(seen) == [6, 6, 6]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("part", ["qkv", "mlp"])
def test_backward_twice(part, precision):
    """What is kept is not written over."""
    case = Case(part, precision)
    outputs = case.outputs()
    first = case.grads(outputs, retain_graph=True)
    assert all(torch.equal(*pair) for pair in zip(first, case.grads(outputs), strict=True))


@pytest.mark.parametrize("part", ["qkv", "mlp"])
def test_a_mode_that_is_entered_for_backward_alone(part):
    case = Case(part)
    expected = case.grads(case.outputs())
    outputs = case.outputs()
    with Nothing():
        found = case.grads(outputs)
    assert_close(found, expected)


@pytest.mark.parametrize("part", ["qkv", "mlp"])
def test_where_the_general_backward_takes_over(part, monkeypatch):
    """Gradients of some, and gradients that are differentiated again."""
    case = Case(part)

    def asked():
        outputs = case.outputs()
        some = torch.autograd.grad(outputs[0].sum(), case.variables[2], retain_graph=True)
        first = case.grads(outputs, create_graph=True)
        return (*some, *torch.autograd.grad(first[0].pow(2).sum(), case.variables[1:]))

    found = asked()
    general(monkeypatch)
    assert_close(found, asked())


READS = {"Tensor.dim", "Tensor.is_contiguous", "Tensor.is_floating_point", "Tensor.numel"}
CALLS = {("qkv", True): (24, 35), ("mlp", True): (31, 43), ("qkv", False): (21, 30), ("mlp", False): (25, 33)}


@pytest.mark.parametrize("in_pieces", [True, False])
@pytest.mark.parametrize("part", ["qkv", "mlp"])
def test_how_much_is_asked_of_torch(part, in_pieces, packed, monkeypatch):
    """In forward and in backward, but for what only reads of a tensor. Each draw of its own adds one, and a view."""
    monkeypatch.setattr(dropout_once, "draws_in_pieces", lambda dtype: in_pieces)
    case = Case(part)
    backward_of(case.outputs())  # which makes the tables of dropout
    forward, outputs = asked(case.outputs)
    backward, _ = backward_of(outputs)
    del forward["manual_seed"]
    counts = [
        sum(count for name, count in names.items() if name not in READS and not name.endswith("__get__"))
        for names in (forward, backward)
    ]
    more = 0 if in_pieces else (3 if part == "qkv" else 2)
    forward_calls, backward_calls = CALLS[part, packed]
    assert counts == [forward_calls + more, backward_calls]


def test_the_masks_apart():
    masks = [torch.arange(6, dtype=torch.uint8)]
    assert [mask.tolist() for mask in straight_saving.apart(masks, 3)] == [[0, 1], [2, 3], [4, 5]]
    assert straight_saving.apart(masks, 1) is masks
    assert straight_saving.apart((), 3) == ()


@pytest.mark.parametrize("count", [1, 3])
def test_the_masks_apart_of_what_was_multiplied_with(count):
    factors = torch.tensor([[0.0, 2.0] * 4, [2.0, 0.0] * 4]).repeat(count, 1, 1)
    for kept in (factors, *([factors[0]] if count == 1 else [])):
        assert [mask.tolist() for mask in straight_saving.apart([kept], count)] == [[0b10101010, 0b01010101]] * count


SUMS = {
    "bfloat16": (torch.bfloat16, (256.0, 1.0, 1.0)),  # whose sum bfloat16 rounds to 256
    "float16": (torch.float16, (40000.0, 30000.0, 20000.0)),  # whose sum float16 does not hold
}


@pytest.mark.parametrize("dropout", [0.0, 1e-9])  # drawn, and nothing dropped
@pytest.mark.parametrize("way", [None, in_lists, general])
@pytest.mark.parametrize("name", SUMS)
def test_dx_is_summed_in_its_own_dtype(name, way, dropout, monkeypatch):
    """Under autocast over float32 each product is rounded, as PEFT rounds it, and their sum is not."""
    if way is not None:
        way(monkeypatch)
    inner, terms = SUMS[name]
    extras = (LORA._replace(dropout=dropout),)
    projections = [make(8, 6, 2, dtype=torch.float32, seed=i, extras=extras) for i in range(3)]
    for i, (projection, term) in enumerate(zip(projections, terms, strict=True)):
        adapter = projection.adapters[0]
        with torch.no_grad():
            projection.weight.zero_()
            adapter.lora_a.fill_(0.0)[0] = term
            adapter.lora_b.fill_(0.0)[0, 0] = 1.0
        projections[i] = projection._replace(adapters=(adapter._replace(scaling=1.0),))
    x = torch.randn(4, 8, requires_grad=True)
    outputs = lora_projections(x, projections, Precision(inner, inner, inner, torch.float32))
    grads = [torch.zeros_like(y).index_fill_(1, torch.tensor(0), 1.0) for y in outputs]
    (d_x,) = torch.autograd.grad(outputs, [x], grads)
    assert d_x.dtype is torch.float32
    assert torch.equal(d_x, torch.full((4, 8), sum(terms)))
