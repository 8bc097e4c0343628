"""Products with a stack of adapted matrices against the stack multiplied out, for every way to say what row is whose."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import pytest
import torch

from patchkit.testing import Result, RoundingErrors, count_ops
from patchkit_kernels.lora.stack import StackAdapter, lora_stack
from patchkit_kernels.lora.stack_products import Batched, Gathered, Grouped

MATRICES, WIDTH, OUT = 4, 6, 5
GROUPS = {
    "every matrix": [2, 3, 1, 2],
    "some matrices": [0, 5, 0, 2],
    "the last alone": [0, 0, 0, 3],
    "none": [0, 0, 0, 0],
}


def grouped_by_loop(rows, stack, *, offs):
    """What ``torch._grouped_mm`` computes, in any dtype, with a derivative; on two stacks of rows too."""
    bounds = [0, *offs.tolist()]
    pairs = list(itertools.pairwise(bounds))
    if stack.dim() == 2:
        return torch.stack([rows[:, a:b] @ stack[a:b] for a, b in pairs])
    parts = [rows[a:b] @ stack[i] for i, (a, b) in enumerate(pairs)]
    return torch.cat([*parts, rows.new_zeros(len(rows) - bounds[-1], stack.shape[2])])


class Setting(NamedTuple):
    """One way to multiply, and the same with a stack of plain matrices.

    Attributes:
        products: what is given to the function.
        shape: of x without its last dimension.
        owners: the matrix of each row of ``x.reshape(-1, width)``; None for a row of none.
    """

    products: object
    shape: tuple[int, ...]
    owners: list[int | None]


def grouped(counts, *, native, rest=0, multiply=grouped_by_loop):
    owners = [index for index, count in enumerate(counts) for _ in range(count)]
    offsets = torch.tensor(counts).cumsum(0).to(torch.int32)
    return Setting(Grouped(offsets, multiply, native=native), (len(owners) + rest,), [*owners, *[None] * rest])


def gathered(owners):
    return Setting(Gathered(torch.tensor(owners, dtype=torch.int64)), (len(owners),), owners)


def batched(rows):
    return Setting(Batched(), (MATRICES, rows), [index for index in range(MATRICES) for _ in range(rows)])


SETTINGS = {
    **{f"grouped, {name}": grouped(counts, native=False) for name, counts in GROUPS.items()},
    "grouped, with rows of no matrix": grouped([1, 2, 0, 1], native=False, rest=2),
    "grouped in one operation": grouped([2, 3, 1, 2], native=True),
    "gathered": gathered([3, 0, 3, 3, 1]),
    "gathered, none": gathered([]),
    "batched": batched(3),
}


def make(setting, ranks=(2,), *, dtype=torch.float64, turned=False, seed=0, width=WIDTH, out=OUT):
    """x, W and adapters whose contribution is half of W's; W stored as ``[matrices, out, in]`` if ``turned``."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape, scale=1.0):
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(dtype)

    weight = draw(MATRICES, width, out, scale=width**-0.5)
    weight = weight.mT.contiguous().mT if turned else weight
    adapters = [
        StackAdapter(
            draw(MATRICES, width, rank, scale=width**-0.5).requires_grad_(),
            draw(MATRICES, rank, out, scale=rank**-0.5).requires_grad_(),
            0.5 + 0.25 * index,
        )
        for index, rank in enumerate(ranks)
    ]
    return draw(*setting.shape, width).requires_grad_(), weight, adapters


def plain(x, weight, adapters, setting):
    """The same by a stack ``W + s L R``."""
    total = weight + sum(adapter.scaling * (adapter.left @ adapter.right) for adapter in adapters)
    rows = x.reshape(-1, x.shape[-1])
    found = [rows[i] @ total[owner] for i, owner in enumerate(setting.owners) if owner is not None]
    missing = [None] * len(setting.owners)
    y = torch.stack(found) if found else (x.sum() + total.sum()) * rows.new_zeros(0, weight.shape[2])
    y = torch.cat([y, y.new_zeros(len(missing) - len(y), weight.shape[2])])
    return y.reshape(*setting.shape, weight.shape[2])


def factors(adapters):
    return [factor for adapter in adapters for factor in adapter[:2]]


def assert_same(wanted, found, tolerance=1e-13):
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    assert (found - wanted).norm() <= tolerance * wanted.norm()


TRAINED = {
    "all": lambda x, adapters: [x, *factors(adapters)],
    "factors": lambda x, adapters: factors(adapters),
    "L": lambda x, adapters: [adapter.left for adapter in adapters],
    "R": lambda x, adapters: [adapter.right for adapter in adapters],
    "x": lambda x, adapters: [x],
    "R and x": lambda x, adapters: [x, *[adapter.right for adapter in adapters]],
}


@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("ranks", [(2,), (1, 3)], ids=str)
@pytest.mark.parametrize("turned", [False, True], ids=["in-out", "out-in"])
@pytest.mark.parametrize("name", SETTINGS)
def test_outputs_and_gradients(name, turned, ranks, trained):
    setting = SETTINGS[name]
    x, weight, adapters = make(setting, ranks, turned=turned)
    wanted = TRAINED[trained](x, adapters)
    for tensor in [x, *factors(adapters)]:
        tensor.requires_grad_(any(tensor is one for one in wanted))
    expected, actual = plain(x, weight, adapters, setting), lora_stack(x, weight, adapters, setting.products)
    assert_same(expected, actual)
    cotangent = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    # Rows of no matrix are nobody's: what flows back through them is not asked for.
    mask = torch.tensor([owner is not None for owner in setting.owners]).reshape(*setting.shape, 1)
    wanted_grads, found_grads = (torch.autograd.grad(y, wanted, cotangent * mask) for y in (expected, actual))
    for a, b in zip(wanted_grads, found_grads, strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("name", [name for name in SETTINGS if "none" not in name])
def test_derivatives_of_derivatives(name):
    setting = SETTINGS[name]
    x, weight, adapters = make(setting, (1, 2), width=3, out=2)

    def function(x, *found):
        pairs = [StackAdapter(*found[2 * i : 2 * i + 2], adapter.scaling) for i, adapter in enumerate(adapters)]
        return lora_stack(x, weight, pairs, setting.products)

    assert torch.autograd.gradcheck(function, (x, *factors(adapters)))
    assert torch.autograd.gradgradcheck(function, (x, *factors(adapters)))


def test_a_frozen_adapter_passes_second_derivatives_on():
    setting = SETTINGS["gathered"]
    x, weight, adapters = make(setting)
    for factor in factors(adapters):
        factor.requires_grad_(False)
    (found,) = torch.autograd.grad(
        lora_stack(x, weight, adapters, setting.products).square().sum(), x, create_graph=True
    )
    (wanted,) = torch.autograd.grad(plain(x, weight, adapters, setting).square().sum(), x, create_graph=True)
    second = [torch.autograd.grad(one.square().sum(), x)[0] for one in (wanted, found)]
    assert_same(*second)


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_kept(name):
    """x, t and the factors; nothing of the width of W but W itself."""
    setting = SETTINGS[name]
    x, weight, adapters = make(setting, (2,))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        lora_stack(x, weight, adapters, setting.products)
    own = {tensor.data_ptr() for tensor in [x, weight, *factors(adapters)] if tensor.numel()}
    made = [tensor for tensor in kept if tensor.data_ptr() not in own and tensor.numel()]
    assert sum(tensor.numel() for tensor in made) == (len(setting.owners) * 2)


def test_x_is_not_kept_for_frozen_adapters():
    setting = SETTINGS["gathered"]
    x, weight, adapters = make(setting)
    for factor in factors(adapters):
        factor.requires_grad_(False)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        lora_stack(x, weight, adapters, setting.products)
    assert {tensor.data_ptr() for tensor in kept} == {tensor.data_ptr() for tensor in [weight, *factors(adapters)]}


class Recorded:
    """A product that wants what torch's wants, and counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, rows, stack, *, offs):
        self.calls += 1
        sizes = [rows.shape[1], *stack.shape[1:]] if stack.dim() == 3 else [rows.shape[0], stack.shape[1]]
        assert not [size for size in sizes if size * rows.element_size() % 16]
        return grouped_by_loop(rows, stack, offs=offs)


# float64, so that even widths are aligned: of forward, and of backward.
NATIVE = {
    "all aligned": ((4, 6, 2), (3, 5)),
    "an odd rank": ((4, 6, 3), (1, 1)),
}


@pytest.mark.parametrize("name", NATIVE)
def test_factors_are_grouped_in_one_operation_where_they_are_aligned(name):
    (width, out, rank), (forward, backward) = NATIVE[name]
    recorded = Recorded()
    setting = grouped([2, 0, 1, 2], native=True, multiply=recorded)
    x, weight, adapters = make(setting, (rank,), width=width, out=out)
    y = lora_stack(x, weight, adapters, setting.products)
    assert recorded.calls == forward
    torch.autograd.grad(y.sum(), [x, *factors(adapters)])
    assert recorded.calls == forward + backward


def test_a_matrix_without_rows_costs_nothing():
    costs = []
    for name in ("every matrix", "the last alone"):
        setting = grouped(GROUPS[name], native=False)
        x, weight, adapters = make(setting)
        costs.append(count_ops(lambda: lora_stack(x, weight, adapters, setting.products)).ops)  # noqa: B023
    assert costs[1] < costs[0]


@pytest.mark.parametrize("name", SETTINGS)
def test_the_result_may_be_changed_in_place(name):
    setting = SETTINGS[name]
    x, weight, adapters = make(setting)
    y = lora_stack(x, weight, adapters, setting.products).add_(1.0)
    assert_same(plain(x, weight, adapters, setting) + 1.0, y)
    y.sum().backward()


@pytest.mark.parametrize("name", ["grouped, some matrices", "gathered", "batched"])
def test_autocast_touches_nothing(name):
    setting = SETTINGS[name]
    x, weight, adapters = make(setting, dtype=torch.float32)
    plainly = lora_stack(x, weight, adapters, setting.products)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(lora_stack(x, weight, adapters, setting.products), plainly)


@pytest.mark.skipif(not hasattr(torch, "_grouped_mm"), reason="this torch has no grouped products")
@pytest.mark.parametrize("rank", [4, 8, 3], ids=lambda rank: f"r{rank}")
def test_torchs_own_grouped_products(rank):
    """In one operation where the rank allows it; a rank that is not aligned is looped over."""
    setting = grouped([2, 0, 3, 4], native=True, multiply=torch._grouped_mm)
    x, weight, adapters = make(setting, (rank,), dtype=torch.float32, width=8, out=12)
    try:
        actual = lora_stack(x, weight, adapters, setting.products)
    except (NotImplementedError, RuntimeError) as error:
        pytest.skip(f"not on this device: {error}")
    expected = plain(x, weight, adapters, setting)
    assert_same(expected, actual, 1e-6)
    wanted, found = (torch.autograd.grad(y.square().sum(), [x, *factors(adapters)]) for y in (expected, actual))
    for a, b in zip(wanted, found, strict=True):
        assert_same(a, b, 1e-5)


LOW_PRECISION = {
    "grouped": grouped([7, 0, 9, 8], native=False),
    "gathered": gathered([0, 2, 2, 3, 1, 1, 0, 3, 2, 2, 1, 0]),
    "batched": batched(6),
}


@pytest.mark.parametrize("name", LOW_PRECISION)
def test_rounding_error_in_bfloat16(name):
    """At most 1.1 times that of a stack that is rounded to bfloat16, as PEFT makes it."""
    setting, errors = LOW_PRECISION[name], RoundingErrors()
    for draw in range(8):
        x, weight, adapters = make(setting, (4,), dtype=torch.bfloat16, seed=draw, width=32, out=24)
        variables = [x, *factors(adapters)]
        wide = [tensor.detach().double().requires_grad_() for tensor in variables]
        pair = [StackAdapter(wide[1], wide[2], adapters[0].scaling)]
        with torch.no_grad():
            cotangent = torch.randn(*setting.shape, 24, generator=torch.Generator().manual_seed(draw)).bfloat16()
        truth = plain(wide[0], weight.double(), pair, setting)
        stack = torch.baddbmm(weight, adapters[0].left, adapters[0].right, alpha=adapters[0].scaling)
        upstream = plain(x, stack, [], setting)
        ours = lora_stack(x, weight, adapters, setting.products)
        grads = [
            torch.autograd.grad(y, tensors, cotangent.to(y.dtype))
            for y, tensors in ((truth, wide), (upstream, variables), (ours, variables))
        ]
        errors.add_draw("y", [Result(truth.detach(), upstream.detach(), ours.detach())])
        for part, results in zip(("dx", "dL", "dR"), zip(*grads, strict=True), strict=True):
            errors.add_draw(part, [Result(*results)])
    assert not errors.failures(totals=["y", "dx", "dL", "dR"])
