"""The fused functions over everything an adapter can have: dropout, DoRA, a bias of B, and several adapters at once."""

from __future__ import annotations

import pytest
import torch
from pairwise import pairwise
from projection_cases import (
    FP64,
    Extra,
    all_tensors,
    assert_same,
    make,
    plain,
    plain_mlp,
    precise,
    seeded,
    seeds,
    tensors,
)

from patchkit.testing import Result, RoundingErrors
from patchkit_kernels.lora.gated_mlp import lora_gated_mlp
from patchkit_kernels.lora.linear import lora_linear, lora_projections
from patchkit_kernels.lora.projection import Precision

LORA, DORA = Extra(), Extra(dora=True)
DROPPED, DORA_DROPPED = Extra(dropout=0.4), Extra(dora=True, dropout=0.4)
BIASED, ALL = Extra(bias=True), Extra(dora=True, bias=True, dropout=0.4)
ADAPTERS = {
    "lora": (LORA,),
    "dropout": (DROPPED,),
    "dora": (DORA,),
    "dora dropout": (DORA_DROPPED,),
    "lora_bias": (BIASED,),
    "all": (ALL,),
    "two": (LORA, BIASED),
    "dora after lora": (DROPPED, DORA),
    "lora after dora": (DORA, DROPPED),
    "two dora": (DORA, DORA),
    "three": (DORA_DROPPED, BIASED, ALL),
}
GRID = pairwise(
    {
        "first": list(ADAPTERS),
        "second": ["lora", "dropout", "dora", None],
        "bias": [False, True],
        "base_grad": [False, True],
        "x_grad": [False, True],
    }
)


def named(case):
    return "-".join(f"{key}={value}" for key, value in case.items())


@pytest.mark.parametrize("case", GRID, ids=named)
def test_projections_gradcheck(case):
    x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=case["x_grad"])
    options = {"bias": case["bias"], "base_grad": case["base_grad"]}
    second = case["second"]
    projections = [
        make(5, 6, 2, extras=ADAPTERS[case["first"]], **options),
        make(5, 4, 3 if second else 0, extras=ADAPTERS[second] if second else (), **options),
    ]
    variables = [*([x] if case["x_grad"] else []), *tensors(projections)]

    @seeded
    def ours(*_):
        return tuple(y for y in lora_projections(x, projections, FP64) if y.requires_grad)

    @seeded
    def upstream():
        return [plain(x, p) for p in projections]

    # fast_mode: one random direction of each Jacobian. DoRA's norm is a constant by definition, which finite differences
    # of A, B, c and W would not see, so there upstream's own gradients are the reference.
    if not any(a.magnitude is not None for p in projections for a in p.adapters):
        assert torch.autograd.gradcheck(ours, variables, fast_mode=True)
        assert torch.autograd.gradgradcheck(ours, variables, fast_mode=True)
    assert_same(upstream(), seeded(lambda: lora_projections(x, projections, FP64))(), variables)
    assert_same(second_order(upstream(), variables), second_order(ours(), variables), variables)


def second_order(outputs, variables):
    """A function of the first derivatives, to be differentiated again."""
    total = sum(y.square().sum() for y in outputs if y.requires_grad)
    found = torch.autograd.grad(total, variables, create_graph=True, allow_unused=True)
    return sum((g.square().sum() for g in found if g is not None), torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize("down", list(ADAPTERS))
@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("gate_first", [True, False])
def test_gated_mlp(down, joint, gate_first):
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    first = ADAPTERS[list(ADAPTERS)[(list(ADAPTERS).index(down) + 3) % len(ADAPTERS)]]
    if joint:
        inputs = [make(5, 12, 2, bias=True, base_grad=True, extras=first)]
    else:
        inputs = [make(5, 6, 2, bias=True, extras=first), make(5, 6, 3, base_grad=True, extras=(DROPPED,))]
    last = make(6, 5, 2, bias=True, base_grad=True, extras=ADAPTERS[down])
    variables = [x, *tensors([*inputs, last])]

    @seeded
    def ours(*_):
        return lora_gated_mlp(x, inputs, last, "gelu_tanh", FP64, gate_first=gate_first)

    @seeded
    def upstream():
        return plain_mlp(x, inputs, last, "gelu_tanh", gate_first)

    assert_same(upstream(), ours(), variables)
    assert_same(second_order([upstream()], variables), second_order([ours()], variables), variables)
    if all(a.magnitude is None for p in (*inputs, last) for a in p.adapters):
        assert torch.autograd.gradcheck(ours, variables, fast_mode=True)


def test_draws_leave_the_generator_as_upstream_does():
    x = torch.randn(3, 7, 5)
    precision = Precision(*[torch.float32] * 4)
    projections = [make(5, 6, 2, dtype=torch.float32, extras=(DROPPED, LORA, DORA_DROPPED), seed=i) for i in range(2)]
    torch.manual_seed(1)
    lora_projections(x, projections, precision)
    after = torch.rand(3)
    torch.manual_seed(1)
    for p in projections:
        plain(x, p)
    assert torch.equal(after, torch.rand(3))


@pytest.mark.parametrize("layout", ["transposed", "sliced", "expanded"])
def test_masks_follow_the_layout_of_the_input(layout):
    """Torch draws in the order of memory, so a transposed input gets another mask than its contiguous copy."""
    x = (
        {
            "transposed": torch.randn(5, 7, 3).permute(2, 1, 0),
            "sliced": torch.randn(3, 7, 10)[..., ::2],
            "expanded": torch.randn(1, 7, 5).expand(3, 7, 5),
        }[layout]
        .double()
        .requires_grad_()
    )
    projections = [make(5, 6, 2, extras=(DROPPED,)), make(5, 4, 3, extras=(DORA_DROPPED,))]
    expected = seeded(lambda: [plain(x, p) for p in projections])()
    assert_same(expected, seeded(lambda: lora_projections(x, projections, FP64))(), [x, *tensors(projections)])


@pytest.mark.parametrize("extra", [DROPPED, DORA_DROPPED, ALL])
def test_everything_dropped(extra):
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    projection = make(5, 6, 2, extras=(extra._replace(dropout=1.0),))
    assert_same(plain(x, projection), lora_linear(x, projection, FP64), [x, *tensors([projection])])


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_zero_magnitude(dropout):
    """F24: no division by the parameter."""
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    projection = make(5, 6, 2, bias=True, extras=(DORA._replace(dropout=dropout),))
    with torch.no_grad():
        projection.adapters[0].magnitude[2] = 0
    expected = seeded(lambda: plain(x, projection))()
    actual = seeded(lambda: lora_linear(x, projection, FP64))()
    assert_same(expected, actual, [x, *tensors([projection])])
    (gradient,) = torch.autograd.grad(lora_linear(x, projection, FP64).sum(), [projection.adapters[0].magnitude])
    assert gradient.isfinite().all()


@pytest.mark.parametrize("leading", [(), (0,), (2, 0), (1,), (3, 2, 2)])
@pytest.mark.parametrize("extra", [DROPPED, DORA, ALL], ids=str)
def test_leading_shapes(leading, extra):
    x = torch.randn(*leading, 5, dtype=torch.float64, requires_grad=True)
    projections = [make(5, 6, 2, extras=(extra,)), make(5, 3, 1, extras=(LORA, extra))]
    expected = seeded(lambda: [plain(x, p) for p in projections])()
    assert_same(expected, seeded(lambda: lora_projections(x, projections, FP64))(), [x, *tensors(projections)])


DTYPES = [
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float32),
    (torch.float16, torch.float16),
]


@pytest.mark.parametrize(("base", "lora"), DTYPES, ids=str)
@pytest.mark.parametrize("adapters", ["dropout", "dora", "dora dropout", "lora_bias", "two", "dora after lora"])
def test_low_precision_is_no_worse_than_upstream(adapters, base, lora):
    """The output and every gradient, over some draws, by the criterion of ``patchkit.testing.rounding``."""
    assert not errors_of(seeded(lora_linear), ADAPTERS[adapters], base, lora).failures(totals=[TOTAL])


TOTAL = "everything"


def errors_of(function, extras, base, lora, draws=6):
    """The errors of a function like ``lora_linear`` beside those of PEFT's formula."""
    errors = RoundingErrors()
    tokens, inputs, outputs, rank = 96, 48, 64, 8
    for seed in seeds(draws):
        x = torch.randn(tokens, inputs, generator=torch.Generator().manual_seed(seed)).to(base).requires_grad_()
        projection = make(inputs, outputs, rank, dtype=base, lora_dtype=lora, bias=True, extras=extras, seed=seed)
        exact, x64 = precise(projection), x.detach().double().requires_grad_()
        cotangent = torch.randn(tokens, outputs, generator=torch.Generator().manual_seed(seed + 1)).to(base)
        ours, upstream, truth = (
            [y, *torch.autograd.grad(y, [given, *tensors([p])], cotangent.to(y.dtype))]
            for y, given, p in (
                (function(x, projection, Precision(base, lora, base, lora)), x, projection),
                (seeded(plain)(x, projection), x, projection),
                (seeded(plain)(x64, exact), x64, exact),
            )
        )
        assert [t.dtype for t in ours] == [t.dtype for t in upstream]
        results = [Result(*found) for found in zip(truth, upstream, ours, strict=True)]
        for index, result in enumerate(results):
            # No path from a tensor to a result passes through more sums than one over each of these.
            errors.add_draw(f"result {index}", [result], summed=tokens + inputs + outputs + rank)
        errors.add_draw(TOTAL, results, tokens + inputs + outputs + rank, each_relative=True)
    return errors


def kept_shapes(function, projections):
    """Shapes and dtypes of what autograd saves, parameters and their stand-ins left out."""
    parameters = {t.data_ptr() for t in all_tensors(projections)}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        function()
    return sorted((str(t.dtype), tuple(t.shape)) for t in kept if t.data_ptr() not in parameters)


@pytest.mark.usefixtures("masks_in_bits")
def test_what_is_kept_for_backward():
    """x; t; a bit for each element and mask; for DoRA g and, where m trains, the norm and one tensor like the output.

    Not t where x and A are there and not everything is of the structure that people train.
    """
    x, single = torch.randn(16, 8, requires_grad=True), Precision(*[torch.float32] * 4)

    def shapes(*extras, frozen=False):
        projection = make(8, 6, 2, dtype=torch.float32, extras=extras)
        if frozen:
            projection.adapters[0].magnitude.requires_grad_(False)
        return kept_shapes(lambda: lora_linear(x, projection, single), [projection])

    whole, bits = ("torch.float32", (16, 8)), ("torch.uint8", (16,))
    factor = norm = ("torch.float32", (6,))
    direction, reduced = ("torch.float32", (16, 6)), ("torch.float32", (16, 2))
    assert shapes(LORA) == [reduced, whole]
    assert shapes(DROPPED) == [reduced, whole, bits]
    assert shapes(DROPPED, DROPPED) == [whole, bits, bits]
    assert shapes(DORA) == sorted([whole, factor, norm, direction])
    assert shapes(DORA, frozen=True) == sorted([whole, factor])
    assert shapes(DORA_DROPPED) == sorted([whole, bits, factor, norm, direction])


@pytest.mark.parametrize("trained", ["A", "B", "b"])
@pytest.mark.parametrize("x_grad", [False, True])
def test_what_is_kept_where_little_is_trained(trained, x_grad):
    """Where dB cannot have t from x and A, which upstream would not keep, t itself; where nothing reads x, not x."""
    x, single = torch.randn(16, 8, requires_grad=x_grad), Precision(*[torch.float32] * 4)
    projection = make(8, 6, 2, dtype=torch.float32, bias=True)
    adapter = projection.adapters[0]
    for name, tensor in (("A", adapter.lora_a), ("B", adapter.lora_b), ("b", projection.bias)):
        tensor.requires_grad_(name == trained)
    wanted = {"A": [(16, 8)], "B": [(16, 2)], "b": []}[trained]
    assert [shape for _, shape in kept_shapes(lambda: lora_linear(x, projection, single), [projection])] == wanted
