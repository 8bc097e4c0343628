"""Rank-r products inside the activation's kernels: the same results as outside, where it is chosen and nowhere else."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from projection_cases import make, plain_mlp, precise, seeded, seeds
from straight_ways import in_lists
from structures import (
    BIASED,
    DROPPED,
    LORA,
    assert_equal,
    assert_own_memory,
    cotangents,
    factors_of,
    first_order,
    mlp,
    train,
    ungated_mlp,
)
from test_adapter_functions import TOTAL
from test_bf16x3 import BLOCKS, NARROW, SIZES, TOKENS, WIDE, errors_of, results_of
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from patchkit.testing import Result, RoundingErrors
from patchkit.testing.block_costs import BLOCK_PARTS, BLOCK_PRECISIONS, block_pair
from patchkit_kernels.lora import straight_arithmetic, straight_one_pass
from patchkit_kernels.lora import straight_in_activation as module
from patchkit_kernels.lora.choices import Choices, choosing
from patchkit_kernels.lora.gated_mlp import lora_gated_mlp
from patchkit_kernels.lora.memory import RECOMPUTE
from patchkit_kernels.lora.projection import Precision
from patchkit_kernels.lora.straight import trained
from patchkit_kernels.lora.straight_mlp import TrainedParts
from patchkit_kernels.ops.activations import GATED
from patchkit_kernels.ops.gated_low_rank_backward import FLOAT32_RANK
from patchkit_kernels.ops.gated_low_rank_operands import MAX_RANK

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
OPS = {"gated_low_rank": "forward", "gated_low_rank_backward": "backward"}
ON = {"emulated": True, "in_activation_rank": 32}


@pytest.fixture
def calls(monkeypatch):
    """The ops that ran."""
    found = []
    for name, word in OPS.items():
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, f=function, w=word: found.append(w) or f(*args))
    return found


@pytest.mark.parametrize("x_grad", [True, False])
@pytest.mark.parametrize("gate_first", [True, False])
@pytest.mark.parametrize("activation", GATED)
def test_the_same_results(activation, gate_first, x_grad, calls):
    """Outputs and gradients; the projections of these structures have biases."""
    structure = mlp((LORA,), (LORA,), (LORA,), activation=activation, gate_first=gate_first)
    train(structure, factors_of(structure) | ({"x"} if x_grad else set()))
    expected = first_order(structure, structure.fused)
    assert not calls
    with choosing(**ON):
        found = first_order(structure, structure.fused)
    assert calls == ["forward", "backward"]
    assert_equal(expected, found, activation, tolerance=1e-13)


def test_with_dy_read_once(calls, monkeypatch):
    ranks, function = [], module.low_rank_backward
    monkeypatch.setattr(module, "low_rank_backward", lambda *args: ranks.append(args[1].shape[1]) or function(*args))
    structure = mlp((LORA,), (LORA,), (LORA,))
    train(structure, factors_of(structure) | {"x"})
    expected = first_order(structure, structure.fused)
    with choosing(**ON, one_pass_rank=2):
        found = first_order(structure, structure.fused)
    assert (calls, ranks) == (["forward", "backward"], [2])
    assert_equal(expected, found, "one pass", tolerance=1e-13)


def test_ranks_of_their_own(calls):
    """Gate, up and down of three ranks, gate second."""
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    options = {"bias": True, "dtype": torch.float64, "extras": (LORA,)}
    sizes = [(5, 6, 3), (5, 6, 1), (6, 5, 2)]
    *into, down = (make(*size, **options, seed=i) for i, size in enumerate(sizes))
    leaves = [x, *(t for p in (*into, down) for t in (p.adapters[0].lora_a, p.adapters[0].lora_b))]
    found = []
    for choices in ({}, ON):
        with choosing(**choices):
            y = lora_gated_mlp(x, into, down, "silu", Precision(*[torch.float64] * 4), gate_first=False)
            found.append([y, *torch.autograd.grad(y, leaves, torch.ones_like(y))])
    assert calls == ["forward", "backward"]
    for expected, one in zip(*found, strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("first", [True, False])
def test_forward_and_backward_may_be_chosen_apart(first, calls, monkeypatch):
    """Each reads what the other has kept."""
    in_lists(monkeypatch)  # what is computed without lists goes back without them
    structure = mlp((LORA,), (LORA,), (LORA,))
    train(structure, factors_of(structure) | {"x"})
    expected = first_order(structure, structure.fused)
    rank, kept = ON["in_activation_rank"], []
    saving = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t)
    with choosing(emulated=True, in_activation_rank=rank if first else 0), saving:
        outputs = structure.fused()
    for tensor in structure.tensors.values():
        tensor.grad = None
    with choosing(emulated=True, in_activation_rank=0 if first else rank):
        torch.autograd.backward(outputs, cotangents(outputs))
    found = {name: tensor.grad for name, tensor in structure.tensors.items()} | {"output 0": outputs[0].detach()}
    assert calls == ["forward" if first else "backward"]
    assert_equal(expected, found, first, tolerance=1e-13)
    also = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: also.append(tuple(t.shape)) or t, lambda t: t):
        structure.fused()
    assert kept == also


@pytest.mark.parametrize(("dtype", "greatest"), [(torch.float32, FLOAT32_RANK), (torch.bfloat16, MAX_RANK)])
def test_a_rank_that_no_kernel_takes_is_left(dtype, greatest):
    """A choice of more would compute with the references of the ops, in float32 copies of gate and up."""
    x, precision = torch.randn(2, 8, dtype=dtype), Precision(*[dtype] * 4)
    for rank in (greatest, greatest + 1):
        inputs, down = trained([make(8, 16, rank, dtype=dtype)] * 2), trained([make(16, 8, rank, dtype=dtype)])
        parts = TrainedParts(inputs, down, "silu", True, precision)
        with choosing(emulated=True, in_activation_rank=64):
            assert module.in_activation(x, parts) is (rank == greatest)


@pytest.mark.parametrize("trained", ["all", "without a B"])
def test_second_derivatives_and_partly_frozen(trained, calls):
    """The general way, from what this forward has kept."""
    structure = mlp((LORA,), (LORA,), (LORA,))
    names = sorted((factors_of(structure) | {"x"}) - ({"up B0"} if trained != "all" else set()))
    train(structure, set(names))
    leaves, found = [structure.tensors[name] for name in names], []
    for choices in ({}, ON):
        with choosing(**choices):
            outputs = structure.fused()
            grads = torch.autograd.grad(outputs, leaves, cotangents(outputs), create_graph=True)
            found.append([*grads, *torch.autograd.grad(sum(g.square().sum() for g in grads), leaves)])
    assert set(calls) <= {"forward"}
    for expected, one in zip(*found, strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-11, atol=1e-11)


def test_where_gate_and_up_are_made_again(calls):
    """Forward is the usual one, so that what is made again is what was read."""
    structure = mlp((LORA,), (LORA,), (LORA,), memory=RECOMPUTE)
    train(structure, factors_of(structure) | {"x"})
    expected = first_order(structure, structure.fused)
    with choosing(**ON):
        found = first_order(structure, structure.fused)
    assert calls == ["backward"]
    assert_equal(expected, found, "made again", tolerance=1e-13)


def test_under_selective_checkpointing(calls):
    """It holds results of operations, and refuses to see them change."""
    structure = mlp((LORA,), (LORA,), (LORA,))
    train(structure, factors_of(structure) | {"x"})
    expected = first_order(structure, structure.fused)
    contexts = partial(create_selective_checkpoint_contexts, lambda *args, **options: CheckpointPolicy.MUST_SAVE)
    with choosing(**ON):
        found = first_order(
            structure, lambda: (checkpoint(lambda: structure.fused()[0], use_reentrant=False, context_fn=contexts),)
        )
    assert "forward" in calls
    assert_equal(expected, found, "checkpoint", tolerance=1e-13)


def mixed_errors(precision, base, lora, draws=8, usual=False):
    """As ``errors_of`` of test_bf16x3, in other dtypes; or beside the usual way in place of PEFT's formula."""
    errors = RoundingErrors()

    def ours(x, projections):
        return [lora_gated_mlp(x, projections[:2], projections[2], "silu", precision)]

    def upstream(x, projections):
        if not usual:
            return [plain_mlp(x, projections[:2], projections[2], "silu")]
        with choosing(in_activation_rank=0):
            return ours(x, projections)

    for seed in seeds(draws):
        x = torch.randn(TOKENS, WIDE, generator=torch.Generator().manual_seed(seed)).to(base).requires_grad_()
        options = {"dtype": base, "lora_dtype": lora, "bias": True, "extras": (LORA,)}
        sizes = [(WIDE, NARROW), (WIDE, NARROW), (NARROW, WIDE)]
        projections = [make(*size, 4, **options, seed=3 * seed + i) for i, size in enumerate(sizes)]
        x64, exact = x.detach().double().requires_grad_(), [precise(one) for one in projections]
        truth = results_of(seeded(lambda x, p: [plain_mlp(x, p[:2], p[2], "silu")]), x64, exact)
        theirs, found = (results_of(seeded(way), x, projections) for way in (upstream, ours))
        assert [t.dtype for t in found] == [t.dtype for t in theirs]
        results = [Result(*one) for one in zip(truth, theirs, found, strict=True)]
        for index, result in enumerate(results):
            errors.add_draw(f"result {index}", [result], summed=2 * sum(SIZES))
        errors.add_draw(TOTAL, results, 2 * sum(SIZES), each_relative=True)
    return errors


def test_no_worse_than_upstream_with_float32_adapters(calls):
    """Over a bfloat16 base: at most 1.1 times PEFT's error, by ``patchkit.testing.rounding``."""
    assert "mlp" in BLOCKS
    with choosing(**ON):
        assert not errors_of("mlp", (LORA,)).failures(totals=[TOTAL])
    assert set(calls) == {"forward", "backward"}


@pytest.mark.parametrize("base", [BF16, FP16], ids=str)
def test_no_worse_than_upstream_in_one_dtype(base, calls):
    with choosing(**ON):
        assert not mixed_errors(Precision(base, base, base, base), base, base).failures(totals=[TOTAL])
    assert set(calls) == {"forward", "backward"}


def test_no_worse_than_the_usual_way_under_autocast(calls):
    """Float32 adapters whose products autocast makes in bfloat16."""
    with choosing(**ON):
        errors = mixed_errors(Precision(BF16, BF16, BF16, FP32), BF16, FP32, usual=True)
    assert not errors.failures(totals=[TOTAL])
    assert set(calls) == {"forward", "backward"}


OTHERS = {
    "dropout": (lambda: mlp((DROPPED,), (DROPPED,), (DROPPED,)), ON),
    "dropout of down alone": (lambda: mlp((LORA,), (LORA,), (DROPPED,)), ON),
    "dropout of the hidden state": (lambda: mlp((LORA,), (LORA,), (LORA,), dropout=0.4), ON),
    "a bias of B": (lambda: mlp((BIASED,), (LORA,), (LORA,)), ON),
    "a projection that yields both": (lambda: mlp((LORA,), (LORA,)), ON),
    "no gate": (lambda: ungated_mlp((LORA,), (LORA,), activation="silu"), ON),
    "a greater rank": (lambda: mlp((LORA,), (LORA,), (LORA,)), {**ON, "in_activation_rank": 1}),
    "not chosen": (lambda: mlp((LORA,), (LORA,), (LORA,)), {"emulated": True}),
    "a CPU": (lambda: mlp((LORA,), (LORA,), (LORA,)), {"in_activation_rank": 32}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_nowhere_else(name, calls):
    make_one, choices = OTHERS[name]
    structure = make_one()
    train(structure, factors_of(structure) | {"x"})
    with choosing(**choices):
        first_order(structure, structure.fused)
    assert not calls
    assert Choices().in_activation_rank == 0


@pytest.mark.parametrize("base", [BF16, FP16], ids=str)
def test_gradients_own_their_memory(base, calls):
    """All of it, but for the A's of one input."""
    structure = mlp((LORA,), (LORA,), (LORA,), dtype=base)
    train(structure, factors_of(structure))
    with choosing(**ON):
        found = first_order(structure, structure.fused)
    assert calls == ["forward", "backward"]
    grads = {name: grad for name, grad in found.items() if name in factors_of(structure)}
    assert [grad.dtype for grad in grads.values()] == [base] * 6
    assert_own_memory(grads)


MLP_OPS = {"float32": (24, 15), "bfloat16": (24, 15), "bfloat16 base, float32 adapters": (35, 20)}
"""Operations of the MLP without and with it, on a CPU; in the last, products with adapters are in float32, not in pieces."""
LAYER = {"float32": 0.55, "bfloat16": 0.55, "bfloat16 base, float32 adapters": 0.60}
"""The greatest part of PEFT's operations that the blocks of a layer may take with it."""


@pytest.mark.parametrize("precision", LAYER)
def test_operations_of_a_layer(precision, monkeypatch):
    for where in (module, straight_arithmetic, straight_one_pass):
        monkeypatch.setattr(where, "bf16x3", lambda *args: False)  # a CPU would emulate them
    plain, patched = 0, 0
    for part in BLOCK_PARTS:
        upstream, ours = block_pair(part, BLOCK_PRECISIONS[precision])
        before = ours.cost().compute_ops
        with choosing(**ON):
            after = ours.cost().compute_ops
        assert (before, after) == MLP_OPS[precision] if part == "mlp" else before == after
        plain, patched = plain + upstream.cost().compute_ops, patched + after
    assert patched <= LAYER[precision] * plain
