"""The error of results whose terms all have one sign: their sums are greatest, and so is what rounds a sum.

Random terms cancel one another. They would let a sum pass that is rounded where PEFT's is not.
"""

from __future__ import annotations

import pytest
import torch
from projection_cases import make, plain, plain_mlp, plain_ungated_mlp, precise, tensors
from straight_ways import general, in_lists
from structures import LORA

from patchkit.testing import Result, RoundingErrors
from patchkit_kernels.lora.choices import choosing
from patchkit_kernels.lora.gated_mlp import lora_gated_mlp
from patchkit_kernels.lora.linear import lora_projections
from patchkit_kernels.lora.mlp import lora_mlp
from patchkit_kernels.lora.projection import Precision

TOKENS, WIDTH, RANK, DRAWS = 32, 64, 4, 4
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
PRECISIONS = {
    "bfloat16": (BF16, BF16, None),
    "float32 adapters": (BF16, FP32, None),
    "autocast": (BF16, FP32, BF16),
    "float32 under autocast": (FP32, FP32, BF16),
    "float32 under float16 autocast": (FP32, FP32, FP16),
}
PARTS = {
    "one": (1, lambda x, made, precision: lora_projections(x, made, precision), lambda x, made: [plain(x, made[0])]),
    "three": (
        3,
        lambda x, made, precision: lora_projections(x, made, precision),
        lambda x, made: [plain(x, one) for one in made],
    ),
    "gated": (
        3,
        lambda x, made, precision: (lora_gated_mlp(x, made[:2], made[2], "relu", precision),),
        lambda x, made: [plain_mlp(x, made[:2], made[2], "relu")],
    ),
    "ungated": (
        2,
        lambda x, made, precision: (lora_mlp(x, *made, "relu", precision),),
        lambda x, made: [plain_ungated_mlp(x, *made, "relu")],
    ),
}


def positive(projection):
    for tensor in (projection.weight, *projection.adapters[0][:2]):
        tensor.data.abs_()
    projection.weight.data.mul_(0.1)  # so that what adapters give is the greater part
    return projection


def failures(part, precision):
    """Where the error is more than 1.1 times PEFT's."""
    base, lora, autocast = PRECISIONS[precision]
    inner = autocast or base
    given = Precision(inner, autocast or lora, inner, lora)
    count, fused, upstream = PARTS[part]
    errors = RoundingErrors()
    for draw in range(DRAWS):
        options = {"dtype": base, "lora_dtype": lora, "extras": (LORA,)}
        made = [positive(make(WIDTH, WIDTH, RANK, seed=10 * draw + i, **options)) for i in range(count)]
        generator = torch.Generator().manual_seed(draw)
        x = torch.rand(TOKENS, WIDTH, generator=generator).to(base).requires_grad_()
        exact = [precise(one) for one in made]
        x_exact = x.detach().double().requires_grad_()
        wanted = upstream(x_exact, exact)
        grads = [torch.rand(TOKENS, WIDTH, generator=generator).to(inner) for _ in wanted]
        truth = torch.autograd.grad(wanted, [x_exact, *tensors(exact)], [one.double() for one in grads])
        with torch.autocast("cpu", dtype=autocast or BF16, enabled=autocast is not None):
            theirs = upstream(x.clone(), made)  # autocast would cast a leaf once, and round the sum of its gradients
        theirs = torch.autograd.grad(theirs, [x, *tensors(made)], grads)
        ours = torch.autograd.grad(fused(x, made, given), [x, *tensors(made)], grads)
        for index, result in enumerate(zip(truth, theirs, ours, strict=True)):
            errors.add_draw(str(index) if index else "dx", [Result(*result)], summed=4 * WIDTH)
    return errors.failures(totals=["dx"])


@pytest.mark.parametrize("way", [None, in_lists, general])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("part", PARTS)
def test_errors_of_one_sign(part, precision, way, monkeypatch):
    if way is not None:
        way(monkeypatch)
    assert not failures(part, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("part", PARTS)
def test_with_dt_and_db_in_one_pass(part, precision):
    with choosing(emulated=True, one_pass_rank=RANK):
        assert not failures(part, precision)
