"""MLPs that keep nothing as wide as their hidden state: against upstream's formula and those that keep it."""

from __future__ import annotations

import pytest
import torch
from projection_cases import ACTS, FP64, all_tensors, assert_same, make, plain_mlp, precise, seeded, seeds, tensors
from structures import (
    ALL,
    BIASED,
    DORA,
    DORA_DROPPED,
    DROPPED,
    LORA,
    STRUCTURES,
    assert_equal,
    factors_of,
    first_order,
    mlp,
    train,
    training_sets,
    ungated_mlp,
)
from test_changed_in_place import first, outcome
from test_cross_entropy_of_projections import Largest
from test_limited_mlp import LIMIT, parts, plain_limited
from test_mlp import Counted
from test_training_sets import gradients, second_order

from patchkit.testing import Result, RoundingErrors, count_flops, saved_bytes
from patchkit_kernels.lora import hidden_state, mlp_function, remade_passes, straight_mlp
from patchkit_kernels.lora.call import Call
from patchkit_kernels.lora.gated_mlp import lora_gated_mlp
from patchkit_kernels.lora.memory import RECOMPUTE, TILED, Memory, rows_of_tile, tiles_of
from patchkit_kernels.lora.mlp import lora_mlp
from patchkit_kernels.lora.projection import Precision
from patchkit_kernels.lora.tiles import cast_once
from patchkit_kernels.ops import dropout_in_pieces
from patchkit_kernels.ops.dropout import draw_mask, pack_mask
from patchkit_kernels.ops.dropout_in_pieces import draw_packed, draws_in_pieces

TOKENS = (2, 13)
"""In tiles of 8, 8, 8 and 2 tokens."""
TILES = Memory(4)
MLPS = {name: make for name, make in STRUCTURES.items() if "mlp" in name} | {
    "mlp several": lambda **o: mlp((LORA, DROPPED), (BIASED,), (LORA, BIASED), **o),
    "mlp dropped": lambda **o: mlp((DROPPED,), (DROPPED,), (DROPPED,), **o),
    "mlp all": lambda **o: mlp((ALL,), (DORA_DROPPED, LORA), (DORA_DROPPED,), dropout=0.3, **o),
    "mlp dora": lambda **o: mlp((DORA,), (DORA,), (DORA,), gate_first=False, **o),
    "ungated mlp dora": lambda **o: ungated_mlp((DORA,), (DORA_DROPPED, DORA), activation="silu", **o),
}
TRAINED = {
    "mlp": MLPS["mlp"],
    "mlp joint": lambda **o: mlp((LORA,), (LORA,), gate_first=False, **o),
    "mlp dropped": MLPS["mlp dropped"],
    "ungated mlp": MLPS["ungated mlp"],
}
"""What people train, which goes through a function of its own where all tokens are one tile."""
each_structure = pytest.mark.parametrize("name", MLPS)
each_memory = pytest.mark.parametrize("memory", [RECOMPUTE, TILES], ids=["recompute", "tiled"])


def gated(rank=2, dtype=torch.float32, extras=(LORA,), *, hidden=8, intermediate=24, base_grad=False):
    """Gate, up and down."""
    sizes = [(hidden, intermediate), (hidden, intermediate), (intermediate, hidden)]
    kinds = {"dtype": dtype, "extras": extras, "base_grad": base_grad}
    return [make(*size, rank, seed=seed, **kinds) for seed, size in enumerate(sizes)]


def all_of(dtype):
    return Precision(*[dtype] * 4)


@each_memory
@each_structure
def test_gradients(name, memory):
    """Each tensor trained alone, each frozen alone: upstream's numbers, and None where upstream leaves None."""
    structure = MLPS[name](tokens=TOKENS, memory=memory)
    # Of one tile every third, with x and without it in turn: the way through it is the same.
    for trained in list(training_sets(structure))[:: 3 if memory == RECOMPUTE else 1]:
        train(structure, trained)
        (expected,), (found,) = structure.upstream(), structure.fused()
        assert expected.requires_grad == found.requires_grad
        wanted = first_order(structure, structure.upstream)
        assert_equal(wanted, first_order(structure, structure.fused), (name, sorted(trained)))


@each_memory
@each_structure
def test_derivatives_by_the_way_of_ordinary_operations(name, memory):
    """Second ones, and batched ones, of what people train, of everything, and of down alone."""
    structure = MLPS[name](tokens=TOKENS, memory=memory)
    down = {one for one in structure.tensors if one.startswith("down")}
    for trained in (factors_of(structure) | {"x"}, set(structure.tensors), down):
        train(structure, trained)
        expected = second_order(structure, structure.upstream)
        assert_equal(expected, second_order(structure, structure.fused), name, tolerance=1e-9)
        wanted = gradients(structure, structure.upstream(), is_grads_batched=True)
        assert_equal(wanted, gradients(structure, structure.fused(), is_grads_batched=True), name)


@each_structure
def test_the_generator_is_left_as_upstream_leaves_it(name):
    structure = MLPS[name](tokens=TOKENS, memory=TILES)
    structure.upstream()
    after = torch.rand(3)
    structure.fused()
    assert torch.equal(after, torch.rand(3))


def passing(monkeypatch):
    """What gate and up were, at each time that something is made of them."""
    seen = []
    for module in (mlp_function, straight_mlp, remade_passes, hidden_state):
        function = module.inputs_of

        def spy(projected, gate_first, function=function):
            seen.append([one.detach().clone() for one in projected])
            return function(projected, gate_first)

        monkeypatch.setattr(module, "inputs_of", spy)
    return seen


@each_structure
def test_gate_and_up_are_bit_by_bit_those_of_forward(name, monkeypatch):
    """Also of every tile; and where all tokens are one tile, those that are kept without the option."""
    found = {}
    for memory in (None, RECOMPUTE, TILES):
        structure = MLPS[name](tokens=TOKENS, memory=memory)
        train(structure, set(structure.tensors))
        with monkeypatch.context() as context:
            seen = passing(context)
            first_order(structure, structure.fused)
        half = len(seen) // 2
        assert half == (4 if memory == TILES else 1)
        for forward, backward in zip(seen[:half], seen[half:], strict=True):
            assert all(map(torch.equal, forward, backward))
        found[memory] = seen[0]
    assert all(map(torch.equal, found[None], found[RECOMPUTE]))


@pytest.mark.parametrize("name", TRAINED)
def test_recomputation_gives_the_same_bits(name):
    """Of what people train: the output and every gradient are those without the option."""
    results = []
    for memory in (None, RECOMPUTE):
        structure = TRAINED[name](tokens=TOKENS, memory=memory)
        train(structure, factors_of(structure) | {"x"})
        results.append(first_order(structure, structure.fused))
    for one, wanted in results[0].items():
        assert (wanted is None) == (results[1][one] is None)
        assert wanted is None or torch.equal(results[1][one], wanted), one


@each_memory
@pytest.mark.parametrize("activation", ACTS)
def test_each_activation(activation, memory):
    for make_one in (
        lambda **o: mlp((LORA,), (LORA,), (LORA,), activation=activation, **o),
        lambda **o: ungated_mlp((LORA,), (LORA,), activation=activation, **o),
    ):
        structure = make_one(tokens=TOKENS, memory=memory)
        train(structure, factors_of(structure) | {"x"})
        wanted = first_order(structure, structure.upstream)
        assert_equal(wanted, first_order(structure, structure.fused), activation)


@each_memory
@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_limit(joint, dropout, memory):
    inputs, down = parts(joint, (LORA, DROPPED), bias=True)
    x = (2 * torch.randn(*TOKENS, 5, dtype=torch.float64)).requires_grad_()
    expected = seeded(lambda: plain_limited(x, inputs, down, "silu", True, dropout))()
    options = {"dropout": dropout, "limit": LIMIT, "memory": memory}
    found = seeded(lambda: lora_gated_mlp(x, inputs, down, "silu", FP64, **options))()
    assert_same(expected, found, [x, *tensors([*inputs, down])])


@pytest.mark.parametrize("shape", [(5,), (0, 5), (17, 5), (2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("strided", [False, True])
@each_memory
def test_any_shape_and_stride(shape, strided, memory):
    x = torch.randn(shape[::-1] if strided else shape, dtype=torch.float64)
    x = (x.permute(*reversed(range(x.dim()))) if strided else x).requires_grad_()
    *inputs, down = gated(dtype=torch.float64, hidden=5, extras=(LORA, DROPPED))
    expected = seeded(lambda: plain_mlp(x, inputs, down, "silu"))()
    found = seeded(lambda: lora_gated_mlp(x, inputs, down, "silu", FP64, memory=memory))()
    assert found.shape == expected.shape
    assert_same(expected, found, [x, *tensors([*inputs, down])])
    cotangent = torch.randn_like(expected).expand(3, *expected.shape)[0].mT if len(shape) == 2 else None
    if cotangent is not None:  # a gradient that is not contiguous
        wanted, got = (
            torch.autograd.grad(y, x, cotangent.mT)
            for y in (
                seeded(lambda: plain_mlp(x, inputs, down, "silu"))(),
                seeded(lambda: lora_gated_mlp(x, inputs, down, "silu", FP64, memory=memory))(),
            )
        )
        torch.testing.assert_close(got, wanted)


LOW = {
    "bf16": (torch.bfloat16, torch.bfloat16),
    "float32 adapters": (torch.bfloat16, torch.float32),
    "fp16": (torch.float16, torch.float16),
}


@pytest.mark.parametrize("extras", [(LORA,), (DORA,)], ids=["lora", "dora"])
@pytest.mark.parametrize(("base", "lora"), LOW.values(), ids=LOW)
@each_memory
def test_low_precision_is_no_worse_than_upstream(base, lora, extras, memory):
    """Output and gradients, W's too, by the criterion of ``patchkit.testing.rounding``: sums over tiles are float32."""
    errors, total = RoundingErrors(), "everything"
    tokens, hidden, intermediate, rank = 48, 16, 24, 4
    for seed in seeds(4):
        x = torch.randn(tokens, hidden, generator=torch.Generator().manual_seed(seed)).to(base).requires_grad_()
        kinds = {"dtype": base, "lora_dtype": lora, "bias": True, "extras": extras, "base_grad": True}
        sizes = [(hidden, intermediate), (hidden, intermediate), (intermediate, hidden)]
        projections = [make(*size, rank, **kinds, seed=seed + i) for i, size in enumerate(sizes)]
        exact, x64 = [precise(p) for p in projections], x.detach().double().requires_grad_()
        cotangent = torch.randn(tokens, hidden, generator=torch.Generator().manual_seed(seed + 1)).to(base)

        def run(y, x, projections, cotangent=cotangent):
            return [y, *torch.autograd.grad(y, [x, *tensors(projections)], cotangent.to(y.dtype))]

        truth = run(plain_mlp(x64, exact[:2], exact[2], "silu"), x64, exact)
        upstream = run(plain_mlp(x, projections[:2], projections[2], "silu"), x, projections)
        precision = Precision(base, lora, base, lora)
        y = lora_gated_mlp(x, projections[:2], projections[2], "silu", precision, memory=memory)
        ours = run(y, x, projections)
        assert [t.dtype for t in ours] == [t.dtype for t in upstream]
        results = [Result(*found) for found in zip(truth, upstream, ours, strict=True)]
        errors.add_draw(total, results, 2 * (tokens + hidden + intermediate + rank), each_relative=True)
    assert not errors.failures(totals=[total])


def test_sums_over_tiles_are_not_rounded_one_by_one():
    """256 tiles with the same gradient each: in bfloat16, a sum stops growing where the next part is too small."""
    tokens, hidden = 2048, 8
    *inputs, down = gated(dtype=torch.bfloat16, intermediate=16, base_grad=True)
    x = torch.ones(tokens, hidden, dtype=torch.bfloat16, requires_grad=True)
    found = []
    for memory in (None, Memory(256)):
        y = lora_gated_mlp(x, inputs, down, "silu", all_of(torch.bfloat16), memory=memory)
        found.append(torch.autograd.grad(y.float().sum(), tensors([*inputs, down])))
    for whole, tiled in zip(*found, strict=True):
        assert (whole.float() - tiled.float()).norm() <= 2**-6 * whole.float().norm()


ADAPTERS = {
    "lora": (LORA,),
    "a bias of B": (BIASED,),
    "dropout": (DROPPED,),
    "dora": (DORA,),
    "dora dropout": (DORA_DROPPED,),
    "several": (LORA, DROPPED, DORA),
}


@pytest.mark.parametrize("base_grad", [False, True])
@pytest.mark.parametrize("name", ADAPTERS)
def test_the_hidden_state_is_never_there_whole(name, base_grad, monkeypatch):
    """512 tokens in tiles of 32: nothing is larger than x, in forward or backward; one draw is, where it must be."""
    tokens, hidden, intermediate = 512, 8, 24
    *inputs, down = gated(extras=ADAPTERS[name], base_grad=base_grad)
    x = torch.randn(tokens, hidden, requires_grad=True)
    largest = {}
    for pieces in (True, False):
        monkeypatch.setattr(dropout_in_pieces, "draws_in_pieces", lambda dtype, pieces=pieces: pieces)
        with Largest(x, *all_tensors([*inputs, down])) as seen:
            y = lora_gated_mlp(x, inputs, down, "silu", all_of(torch.float32), memory=Memory(16))
            y.backward(torch.ones_like(y))
        largest[pieces] = seen.elements
    draws = any(extra.dropout for extra in ADAPTERS[name])
    assert largest[True] <= x.numel() < tokens * intermediate
    assert largest[False] == (tokens * intermediate if draws else largest[True])
    with Largest(x, *all_tensors([*inputs, down])) as seen:
        lora_gated_mlp(x, inputs, down, "silu", all_of(torch.float32)).sum().backward()
    assert seen.elements >= tokens * intermediate


@pytest.mark.usefixtures("masks_in_bits")
@pytest.mark.parametrize("memory", [RECOMPUTE, Memory(8)], ids=["recompute", "tiled"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_what_is_kept(name, memory):
    """x; t of every adapter; a bit for each element that dropout may zero; of DoRA g, and what down's scales."""
    tokens, hidden, intermediate, rank = 64, 8, 24, 2
    *inputs, down = gated(rank, extras=ADAPTERS[name])
    x = torch.randn(tokens, hidden, requires_grad=True)
    exclude = [x, *all_tensors([*inputs, down])]
    kept = saved_bytes(
        lambda: lora_gated_mlp(x, inputs, down, "silu", all_of(torch.float32), memory=memory), exclude=exclude
    )
    ranks = 3 * rank * len(ADAPTERS[name])
    drawing = len([extra for extra in ADAPTERS[name] if extra.dropout])
    scaled = len([extra for extra in ADAPTERS[name] if extra.dora])
    bits = drawing * tokens * (2 * hidden + intermediate) // 8
    # The norm, which m is divided by, is kept by the division.
    factors = scaled * 2 * (2 * intermediate + hidden) * 4
    assert kept == tokens * ranks * 4 + bits + scaled * tokens * hidden * 4 + factors


@each_memory
def test_no_copy_of_a_weight_is_kept_of_few_rows(memory):
    """Under autocast over float32, where these are few rows. What is asked for is to keep less."""
    *inputs, down = gated()
    x = torch.randn(4, 8, requires_grad=True)
    precision, exclude = Precision(*[torch.bfloat16] * 3, torch.float32), [x, *all_tensors([*inputs, down])]

    def kept(memory):
        return saved_bytes(lambda: lora_gated_mlp(x, inputs, down, "silu", precision, memory=memory), exclude=exclude)

    copies, ts, gate_and_up = 3 * 8 * 24 * 2, 3 * 4 * 2 * 2, 2 * 4 * 24 * 2
    assert kept(memory) == ts
    assert kept(None) == ts + gate_and_up + copies


def test_flops_are_those_of_gate_and_up_more():
    """The products with W and B of gate and up, made twice, in as many tiles as there are."""
    tokens, hidden, intermediate, rank = 64, 8, 24, 2
    *inputs, down = gated(rank)
    x = torch.randn(tokens, hidden, requires_grad=True)
    flops = {
        memory: count_flops(
            lambda memory=memory: (
                lora_gated_mlp(x, inputs, down, "silu", all_of(torch.float32), memory=memory).sum().backward()
            )
        )
        for memory in (None, RECOMPUTE, Memory(8))
    }
    again = 2 * 2 * tokens * intermediate * (hidden + rank)
    assert flops[RECOMPUTE] == flops[Memory(8)] == flops[None] + again


@each_memory
@pytest.mark.parametrize("name", ["mlp", "mlp gelu", "mlp mixed", "mlp joint dropout", "ungated mlp down alone"])
def test_a_tensor_that_changes_in_between_is_an_error_and_no_wrong_number(name, memory):
    structure = MLPS[name](tokens=TOKENS, memory=memory)
    raised = 0
    for trained in list(training_sets(structure))[::5]:
        for changed in structure.tensors:
            train(structure, trained)
            expected = outcome(structure, structure.upstream, changed, first)
            train(structure, trained)
            found = outcome(structure, structure.fused, changed, first)
            raised += found is None
            if found is not None:
                assert expected is not None
                assert_equal(expected, found, (sorted(trained), changed))
    assert raised


@each_structure
def test_the_same_in_a_dispatch_mode(name):
    """Where no result of an operation of forward may change: checkpointing may hold it."""
    structure = MLPS[name](tokens=TOKENS, memory=TILES)
    train(structure, factors_of(structure) | {"x"})
    expected = first_order(structure, structure.fused)
    with Counted():
        found = first_order(structure, structure.fused)
    assert_equal(expected, found, name, tolerance=1e-13)
    with Counted() as forward:
        structure.fused()
    assert not {op for op in forward.ops if op.endswith("_") and op != "bernoulli_"}


def test_nothing_is_kept_without_gradients():
    structure = MLPS["mlp several"](tokens=TOKENS, memory=TILES)
    train(structure, factors_of(structure))
    (expected,) = structure.fused()
    with torch.no_grad():
        (found,) = structure.fused()
    assert found.grad_fn is None
    assert torch.equal(found, expected)


@pytest.mark.parametrize("memory", [RECOMPUTE, Memory(2)], ids=["recompute", "tiled"])
def test_compiled_code_keeps_no_more(memory):
    """A compiler, to which gate and up made again are gate and up, does not keep them instead."""
    tokens, hidden, intermediate = 64, 16, 40
    *inputs, down = gated(hidden=hidden, intermediate=intermediate)
    x = torch.randn(tokens, hidden, requires_grad=True)
    results = []
    for compiled in (False, True):

        def function(x):
            return lora_gated_mlp(x, inputs, down, "silu", all_of(torch.float32), memory=memory)

        run = torch.compile(function, backend="aot_eager_decomp_partition", fullgraph=True) if compiled else function
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            y = run(x)
        weights = {t.data_ptr() for t in all_tensors([*inputs, down])}
        assert not [t.shape for t in kept if intermediate in t.shape and t.data_ptr() not in weights]
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *tensors([*inputs, down])])])
    for eager, found in zip(*results, strict=True):
        torch.testing.assert_close(found, eager, rtol=1e-5, atol=1e-5)


def test_weights_are_cast_once_for_all_tiles():
    """To the dtype of their products: W of DoRA is read in that of the adapters as well, and stays what it is."""
    given = [make(8, 24, 2, extras=extras) for extras in [(LORA,), (DORA,)]]
    precision = Precision(torch.bfloat16, torch.float32, torch.bfloat16, torch.float32)
    lora, dora = cast_once(Call(given, [], precision)).projections
    assert lora.weight.dtype == torch.bfloat16
    assert dora.weight is given[1].weight
    for adapter in (*lora.adapters, *dora.adapters):
        assert adapter.lora_a.dtype == adapter.lora_b.dtype == torch.float32


SIZES = {
    (TILED, 32768, 4096): 4096,
    (TILED, 4096, 4096): 4096,
    (TILED, 4097, 4096): 2056,
    (TILED, 100, 4096): 100,
    (TILED, 0, 4096): 1,
    (TILED, 9, 0): 8,
    (RECOMPUTE, 32768, 64): 32768,
    (Memory(8), 32768, 4096): 4096,
    (Memory(3), 26, 5): 16,
    (Memory(1000), 26, 5): 8,
}


@pytest.mark.parametrize(("asked", "rows"), SIZES.items(), ids=str)
def test_tiles(asked, rows):
    """No more tokens than a row of W has elements, in tiles of whole bytes that together are all tokens."""
    assert rows_of_tile(*asked) == rows
    tokens = asked[1]
    tiles = tiles_of(tokens, rows)
    assert [i for tile in tiles for i in range(tile.start, tile.stop)] == list(range(tokens))
    assert all(tile.start % 8 == 0 for tile in tiles)


@pytest.mark.parametrize("pieces", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(40, 48), (43, 7), (7, 33), (64, 1)])
def test_a_mask_in_pieces_is_the_mask(rows, columns, dtype, pieces, monkeypatch):
    if not pieces:
        monkeypatch.setattr(dropout_in_pieces, "draws_in_pieces", lambda dtype: False)
    torch.manual_seed(3)
    expected, state = pack_mask(draw_mask(torch.empty(rows, columns, dtype=dtype), 0.3)), torch.get_rng_state()
    torch.manual_seed(3)
    assert torch.equal(draw_packed(torch.empty(0), rows, columns, 0.3, dtype, 16), expected)
    assert torch.equal(torch.get_rng_state(), state)


def test_trying_the_generator_draws_nothing_of_it():
    draws_in_pieces.cache_clear()
    state = torch.get_rng_state()
    draws_in_pieces(torch.float32)
    assert torch.equal(torch.get_rng_state(), state)


def test_memory_of_an_mlp_without_a_gate():
    up, down = make(8, 24, 2, dtype=torch.float32), make(24, 8, 2, dtype=torch.float32)
    x = torch.randn(64, 8, requires_grad=True)
    kept = {
        memory: saved_bytes(
            lambda memory=memory: lora_mlp(x, up, down, "relu", all_of(torch.float32), memory=memory),
            exclude=[x, *all_tensors([up, down])],
        )
        for memory in (None, RECOMPUTE, Memory(4))
    }
    assert kept[RECOMPUTE] == kept[Memory(4)] == kept[None] - 64 * 24 * 4 == 64 * 4 * 4
