"""Products of bfloat16 rows with float32 adapters in pieces: errors against float64, what is chosen when, and memory.

A CPU has no product of bfloat16 that gives float32. It is computed there from the same operands, whose products are exact
and added up in float32, as a GPU's are.
"""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from projection_cases import make, plain, plain_mlp, plain_ungated_mlp, precise, seeded, seeds, tensors
from straight_ways import general, in_lists
from structures import ALL, BIASED, DORA, DORA_DROPPED, DROPPED, LORA
from test_adapter_functions import TOTAL
from test_mlp import Counted
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from patchkit.testing import Result, RoundingErrors
from patchkit.testing.measure import saved_bytes
from patchkit_kernels.lora import bf16x3 as products
from patchkit_kernels.lora import cross_entropy
from patchkit_kernels.lora.bf16x3 import bf16x3
from patchkit_kernels.lora.choices import Choices, choosing, chosen
from patchkit_kernels.lora.gated_mlp import lora_gated_mlp
from patchkit_kernels.lora.linear import lora_linear, lora_projections
from patchkit_kernels.lora.memory import RECOMPUTE, Memory
from patchkit_kernels.lora.mlp import lora_mlp
from patchkit_kernels.lora.projection import Adapter, Precision, Projection

BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
USUAL = Precision(BF16, FP32, BF16, FP32)
SIZES = TOKENS, WIDE, NARROW, RANK = 48, 32, 24, 4

BLOCKS = {
    # widths of the projections, ours, and upstream's
    "qkv": (
        [(WIDE, NARROW), (WIDE, 20), (WIDE, 20)],
        lambda x, p, **o: lora_projections(x, p, USUAL),
        lambda x, p: [plain(x, one) for one in p],
    ),
    "o": (
        [(WIDE, NARROW)],
        lambda x, p, **o: [lora_linear(x, p[0], USUAL)],
        lambda x, p: [plain(x, p[0])],
    ),
    "mlp": (
        [(WIDE, NARROW), (WIDE, NARROW), (NARROW, WIDE)],
        lambda x, p, **o: [lora_gated_mlp(x, p[:2], p[2], "silu", USUAL, **o)],
        lambda x, p: [plain_mlp(x, p[:2], p[2], "silu")],
    ),
    "mlp joint": (
        [(WIDE, 2 * NARROW), (NARROW, WIDE)],
        lambda x, p, **o: [lora_gated_mlp(x, p[:1], p[1], "gelu_tanh", USUAL, **o)],
        lambda x, p: [plain_mlp(x, p[:1], p[1], "gelu_tanh")],
    ),
    "ungated mlp": (
        [(WIDE, NARROW), (NARROW, WIDE)],
        lambda x, p, **o: [lora_mlp(x, *p, "gelu_erf", USUAL, **o)],
        lambda x, p: [plain_ungated_mlp(x, *p, "gelu_erf")],
    ),
}
ADAPTERS = {
    "lora": (LORA,),
    "dropout": (DROPPED,),
    "a bias of B": (BIASED,),
    "dora": (DORA,),
    "dora dropout": (DORA_DROPPED,),
    "all": (ALL,),
    "two": (LORA, LORA),
    "two, one dropped": (LORA, DROPPED),
    "dora after lora": (LORA, DORA),
    "three": (BIASED, LORA, DROPPED),
}


@pytest.fixture
def emulated():
    with choosing(emulated=True):
        yield


@pytest.fixture
def pieces(monkeypatch):
    """Every matrix that was taken apart."""
    taken, function = [], products.bf16_pieces
    monkeypatch.setattr(products, "bf16_pieces", lambda x, *args: taken.append(x) or function(x, *args))
    return taken


def drawn(sizes, extras, seed, *, base_grad=False):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(TOKENS, WIDE, generator=generator).to(BF16).requires_grad_()
    options = {"dtype": BF16, "lora_dtype": FP32, "bias": True, "extras": extras, "base_grad": base_grad}
    return x, [make(*size, RANK, **options, seed=3 * seed + i) for i, size in enumerate(sizes)]


def results_of(function, x, projections, *, backward=nullcontext):
    """Outputs and gradients; these are made inside of a context."""
    outputs = function(x, projections)
    cotangents = [
        torch.randn(y.shape, generator=torch.Generator().manual_seed(i)).to(BF16).to(y.dtype)
        for i, y in enumerate(outputs)
    ]
    with backward():
        return [*outputs, *torch.autograd.grad(outputs, [x, *tensors(projections)], cotangents)]


def errors_of(block, extras, *, draws=8, base_grad=False, backward=nullcontext, **options):
    """The errors of ours beside those of PEFT's formula, over some draws."""
    errors, (sizes, ours, upstream) = RoundingErrors(), BLOCKS[block]
    for seed in seeds(draws):
        x, projections = drawn(sizes, extras, seed, base_grad=base_grad)
        exact, x64 = [precise(one) for one in projections], x.detach().double().requires_grad_()
        truth, theirs = (results_of(seeded(upstream), given, made) for given, made in ((x64, exact), (x, projections)))
        found = results_of(seeded(lambda x, p: ours(x, p, **options)), x, projections, backward=backward)
        assert [t.dtype for t in found] == [t.dtype for t in theirs]
        results = [Result(*one) for one in zip(truth, theirs, found, strict=True)]
        for index, result in enumerate(results):
            errors.add_draw(f"result {index}", [result], summed=2 * sum(SIZES))
        errors.add_draw(TOTAL, results, 2 * sum(SIZES), each_relative=True)
    return errors


@pytest.mark.parametrize("adapters", ADAPTERS)
@pytest.mark.parametrize("block", BLOCKS)
def test_no_worse_than_upstream(block, adapters, emulated, pieces):
    """The outputs and every gradient, at most 1.1 times PEFT's error, by ``patchkit.testing.rounding``."""
    assert not errors_of(block, ADAPTERS[adapters]).failures(totals=[TOTAL])
    assert pieces


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("adapters", ["lora", "dropout", "all", "two, one dropped"])
@pytest.mark.parametrize("block", BLOCKS)
def test_forward_and_backward_may_be_of_two_arithmetics(block, adapters, first, pieces, monkeypatch):
    """A small x and large outputs: each half chooses by its own size, and reads what the other has kept."""
    in_lists(monkeypatch)  # the others ask about the widest of all rows before they begin
    with choosing(emulated=first):
        found = errors_of(block, ADAPTERS[adapters], backward=partial(choosing, emulated=not first))
    assert not found.failures(totals=[TOTAL])
    assert pieces


@pytest.mark.parametrize("adapters", ["lora", "dropout"])
@pytest.mark.parametrize("block", BLOCKS)
def test_the_general_functions_are_no_worse_either(block, adapters, emulated, pieces, monkeypatch):
    general(monkeypatch)
    assert not errors_of(block, ADAPTERS[adapters]).failures(totals=[TOTAL])
    assert pieces


@pytest.mark.parametrize("memory", [RECOMPUTE, Memory(3)], ids=["recompute", "tiled"])
@pytest.mark.parametrize("adapters", ["lora", "dropout", "dora dropout", "three"])
@pytest.mark.parametrize("block", ["mlp", "ungated mlp"])
def test_mlps_that_are_made_again_are_no_worse(block, adapters, memory, emulated, pieces):
    assert not errors_of(block, ADAPTERS[adapters], memory=memory).failures(totals=[TOTAL])
    assert pieces


@pytest.mark.parametrize("adapters", ["lora", "dora dropout"])
def test_with_a_trained_base(adapters, emulated, pieces):
    assert not errors_of("qkv", ADAPTERS[adapters], base_grad=True).failures(totals=[TOTAL])
    assert not errors_of("mlp", ADAPTERS[adapters], base_grad=True, memory=Memory(3)).failures(totals=[TOTAL])
    assert pieces


@pytest.mark.parametrize("adapters", ["lora", "dropout", "a bias of B", "dora", "two, one dropped"])
def test_the_loss_of_a_head_is_no_worse(adapters, emulated, pieces, monkeypatch):
    monkeypatch.setattr(cross_entropy, "LEAST_TOKENS", 8)
    monkeypatch.setattr(cross_entropy, "chunk_of", lambda *sizes: 8)
    errors = RoundingErrors()
    for seed in seeds(6):
        x, (head,) = drawn([(WIDE, 48)], ADAPTERS[adapters], seed)
        target = torch.randint(0, 48, (TOKENS,), generator=torch.Generator().manual_seed(seed))

        def upstream(x, projections, target=target):
            logits = plain(x, projections[0])
            return [F.cross_entropy(logits.to(torch.promote_types(logits.dtype, FP32)), target)]

        def ours(x, projections, target=target):
            return [cross_entropy.lora_cross_entropy(x, target, projections[0], USUAL)]

        x64, exact = x.detach().double().requires_grad_(), precise(head)
        ways = (seeded(upstream), x64, [exact]), (seeded(upstream), x, [head]), (seeded(ours), x, [head])
        results = [Result(*one) for one in zip(*itertools.starmap(results_of, ways), strict=True)]
        errors.add_draw(TOTAL, results, 2 * sum(SIZES), each_relative=True)
    assert not errors.failures(totals=[TOTAL])
    assert pieces


def test_low_rank_first_is_better_unless_the_adapter_dominates(emulated):
    """Which rounds the adapter's part, where PEFT rounds that of W: why it is not what runs unasked."""

    def ratio(scale):
        errors = RoundingErrors()
        for seed in seeds(6):
            x, projections = drawn([(WIDE, 64)], (LORA._replace(),), seed)
            with torch.no_grad():
                projections[0].adapters[0].lora_b.mul_(scale)
            truth = plain(x.double(), precise(projections[0]))
            with choosing(low_rank_first=True):
                found = lora_linear(x, projections[0], USUAL)
            errors.add_draw(TOTAL, [Result(truth, plain(x, projections[0]), found)], sum(SIZES))
        (measured,) = errors.measurements(totals=[TOTAL])
        return measured.error

    assert ratio(0.1) < 0.9
    assert ratio(10.0) > 1.2
    assert chosen().low_rank_first is False


# --- products -----------------------------------------------------------------------------------------------------------

PRODUCTS = {
    "x A^T": (lambda x, f, t: products.times_transposed(x, f.t(), 0.7), lambda x, f, t: 0.7 * x @ f),
    "dy B": (lambda x, f, t: products.times(x, f, 0.7), lambda x, f, t: 0.7 * x @ f),
    "dt^T x": (lambda x, f, t: products.over_tokens(t, x, 0.7), lambda x, f, t: 0.7 * t.t() @ x),
    "dy^T t": (lambda x, f, t: products.over_tokens_of_rows(x, t, 0.7), lambda x, f, t: 0.7 * x.t() @ t),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_with_three_pieces_have_the_error_of_float32(name):
    """At most that of the same product in float32, to which rows are cast; two pieces would be 2**7 times that."""
    ours, theirs = PRODUCTS[name]
    errors = RoundingErrors()
    for seed in seeds(4):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(200, 56, generator=generator).to(BF16)
        factor, t = torch.randn(56, 5, generator=generator), torch.randn(200, 5, generator=generator)
        truth, upstream = theirs(x.double(), factor.double(), t.double()), theirs(x.float(), factor, t)
        found = ours(x, factor, t)
        assert found.dtype == FP32
        errors.add_draw(TOTAL, [Result(truth, upstream, found)], summed=200)
    assert not errors.failures(totals=[TOTAL])


def test_a_product_that_is_rounded_to_bfloat16_is_that_of_the_truth():
    """But where the truth lies within 2**-15 of the middle between two numbers."""
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(300, 8, generator=generator), torch.randn(8, 70, generator=generator)
    truth = 0.7 * left.double() @ right.double()
    ways = (
        products.low_rank_product(left, right, 0.7),
        products.left_pieces(left) @ products.right_pieces(right.t(), 0.7).t(),
    )
    for found in ways:
        assert found.dtype == BF16
        assert (found == truth.to(BF16)).float().mean() > 0.98
        assert (found.double() - truth).norm() <= 1.001 * (truth.to(BF16).double() - truth).norm()


# --- what is chosen -------------------------------------------------------------------------------------------------------

DTYPES = list(itertools.product((BF16, FP16, FP32), (BF16, FP32, FP64), (BF16, FP16, FP32)))


@pytest.mark.parametrize(("given", "lora", "output"), DTYPES, ids=str)
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_only_bfloat16_rows_and_float32_adapters(given, lora, output, device):
    precision = Precision(BF16, lora, output, lora)
    with FakeTensorMode():
        rows = torch.empty(1024, 1024, dtype=given, device=device)
        wanted = (given, lora, output) == (BF16, FP32, BF16)
        assert bf16x3(rows, precision) == (wanted and device == "cuda")
        with choosing(emulated=True):
            assert bf16x3(rows, precision) == wanted
        with choosing(bf16x3=False):
            assert not bf16x3(rows, precision)


def test_on_amd_devices_nothing_of_it(monkeypatch):
    monkeypatch.setattr(products, "HAS_WIDE_OUTPUT", False)
    with FakeTensorMode():
        assert not bf16x3(torch.empty(1024, 1024, dtype=BF16, device="cuda"), USUAL)


def test_few_rows_are_cast(monkeypatch):
    """But for a compiler, which makes a graph for many sizes."""
    with FakeTensorMode():
        large, small = (torch.empty(rows, 1024, dtype=BF16, device="cuda") for rows in (1024, 1023))
        assert bf16x3(large, USUAL)
        assert not bf16x3(small, USUAL)
        with choosing(least_elements=0):
            assert bf16x3(small, USUAL)
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert bf16x3(small, USUAL)


def test_the_usual_choices():
    assert chosen() == Choices()
    with choosing(emulated=True) as inside:
        assert chosen() is inside


# --- what is made and kept ----------------------------------------------------------------------------------------------


class WideResults(TorchDispatchMode):
    """The names and sizes of operations that gave float32 tensors of some size."""

    def __init__(self, elements):
        super().__init__()
        self.elements, self.found = elements, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.dtype == FP32 and leaf.numel() >= self.elements:
                self.found.append((func.__name__, tuple(leaf.shape)))
        return out


MANY, TIMES = 512, 64
"""Tokens, and how much wider than above everything is but the rank: a rank's width is little beside it."""


def without_values(block, adapters):
    """Forward and backward of a block with so many adapters on torch's device that computes shapes only."""

    def empty(*shape, dtype=BF16, grad=False):
        return torch.empty(shape, dtype=dtype, device="meta", requires_grad=grad)

    sizes, ours, _ = BLOCKS[block]
    x = empty(MANY, TIMES * WIDE, grad=True)
    projections = []
    for inputs, outputs in ((TIMES * i, TIMES * o) for i, o in sizes):
        factors = [
            Adapter(empty(RANK, inputs, dtype=FP32, grad=True), empty(outputs, RANK, dtype=FP32, grad=True), 0.7)
            for _ in range(adapters)
        ]
        projections.append(Projection(empty(outputs, inputs), empty(outputs), tuple(factors)))
    outputs = ours(x, projections)
    return torch.autograd.grad(outputs, [x, *tensors(projections)], [torch.empty_like(y) for y in outputs])


@pytest.mark.parametrize("way", ["straight", "general"])
@pytest.mark.parametrize("adapters", [1, 2])
@pytest.mark.parametrize("block", BLOCKS)
def test_no_float32_copy_of_activations(block, adapters, way, monkeypatch):
    """Neither of x nor of dy, nor a product as wide as y: nothing of float32 is as large as the smallest of these."""
    if way == "general":
        general(monkeypatch)
    least = MANY * TIMES * 20
    with WideResults(least) as cast:
        without_values(block, adapters)
    assert cast.found
    # As on a GPU, where torch has the product.
    monkeypatch.setattr(products, "wide_product", lambda left, right: torch.mm(left, right, out_dtype=FP32))
    with choosing(emulated=True), WideResults(least) as wide:
        found = without_values(block, adapters)
    assert wide.found == []
    assert {grad.dtype for grad in found} == {BF16, FP32}


@pytest.mark.usefixtures("masks_in_bits")
@pytest.mark.parametrize("adapters", ["lora", "dropout", "two", "dora"])
@pytest.mark.parametrize("block", BLOCKS)
def test_as_much_is_kept(block, adapters):
    sizes, ours, _ = BLOCKS[block]
    x, projections = drawn(sizes, ADAPTERS[adapters], 0)
    excluded = [*tensors(projections), *[t for p in projections for t in (p.weight, p.bias)]]
    kept = []
    for on in (False, True):
        with choosing(emulated=on):
            kept.append(saved_bytes(lambda: ours(x, projections), exclude=excluded))
    assert kept[0] == kept[1] > 0


@pytest.mark.parametrize("adapters", ["lora", "dropout"])
@pytest.mark.parametrize("block", BLOCKS)
def test_the_same_in_a_dispatch_mode(block, adapters, emulated):
    """Which sees the ops, and in forward no result of an operation change."""
    sizes, ours, _ = BLOCKS[block]
    x, projections = drawn(sizes, ADAPTERS[adapters], 0)
    expected = results_of(seeded(ours), x, projections)
    with Counted() as counted:
        found = results_of(seeded(ours), x, projections)
    assert all(map(torch.equal, expected, found))
    assert any(op == "bf16_pieces" for op in counted.ops)
    with Counted() as forward:
        seeded(ours)(x, projections)
    assert not {op for op in forward.ops if op.endswith("_") and op != "bernoulli_"}


@pytest.mark.parametrize("block", ["qkv", "mlp"])
def test_compiled(block, emulated):
    """In one graph, with the pieces in it, and to the rounding of the same functions."""
    sizes, ours, _ = BLOCKS[block]
    x, projections = drawn(sizes, (LORA,), 0)
    torch.compiler.reset()
    names = []

    def backend(graph, inputs):
        names.extend(str(node.target) for node in graph.graph.nodes)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(lambda x: ours(x, projections), fullgraph=True, backend=backend)
    found, expected = (results_of(function, x, projections) for function in (lambda x, _: compiled(x), ours))
    for one, wanted in zip(found, expected, strict=True):
        assert one.dtype == wanted.dtype
        assert (one.double() - wanted.double()).norm() <= 2**-7 * wanted.double().norm()
    torch.compiler.reset()


@pytest.mark.parametrize("adapters", ["lora", "dropout", "dora"])
def test_differentiable_twice(adapters, emulated):
    """Where the backward is to be differentiated, ordinary operations compute it, on rows that are cast."""
    x, projections = drawn([(WIDE, NARROW)], ADAPTERS[adapters], 0)
    found = []
    for function in (lambda: lora_linear(x, projections[0], USUAL), lambda: plain(x, projections[0])):
        y = seeded(function)()
        (grad,) = torch.autograd.grad(y.float().square().sum(), [projections[0].adapters[0].lora_a], create_graph=True)
        found.append(torch.autograd.grad(grad.square().sum(), projections[0].adapters[0].lora_b)[0])
    ours, theirs = found
    assert (ours - theirs).norm() <= 2**-5 * theirs.norm()
