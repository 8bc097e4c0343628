"""What stands for an adapted weight gives what the multiplied weight gives, whatever is asked of it or done with it."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from patchkit.runtime.adapted_weight import AdaptedWeight
from patchkit.testing import fused_calls
from patchkit_kernels.lora.stack import StackAdapter

generator = torch.Generator().manual_seed(0)


def draw(*shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


X, BATCH, SQUARE = draw(5, 4), draw(3, 5, 4), draw(2, 5, 4)
INDICES = torch.tensor([2, 0, 0, 1, 2])
OFFSETS = torch.tensor([2, 2, 5], dtype=torch.int32)
MATRIX = (draw(6, 4), [StackAdapter(draw(6, 2), draw(2, 4), 0.5), StackAdapter(draw(6, 3), draw(3, 4), 2.0)])
STACK = (
    draw(3, 6, 4),
    [StackAdapter(draw(3, 6, 2), draw(3, 2, 4), 0.5), StackAdapter(draw(3, 6, 1), draw(3, 1, 4), 2.0)],
)
TURNED = (STACK[0].mT.contiguous(), [StackAdapter(r.mT.contiguous(), l.mT.contiguous(), s) for l, r, s in STACK[1]])  # noqa: E741


def dense(weight, adapters):
    return weight + sum(scaling * (left @ right) for left, right, scaling in adapters)


LINEAR, STACKED = "lora_linear", "lora_stack"

PRODUCTS = {
    "linear": (MATRIX, lambda w: F.linear(X, w), {LINEAR: 1}),
    "linear with a bias": (MATRIX, lambda w: F.linear(X, w, torch.arange(6.0, dtype=torch.float64)), {LINEAR: 1}),
    "linear, bias by name": (MATRIX, lambda w: F.linear(X, w, bias=torch.ones(6).double()), {LINEAR: 1}),
    "linear of a batch": (MATRIX, lambda w: F.linear(BATCH, w), {LINEAR: 1}),
    "linear of nothing": (MATRIX, lambda w: F.linear(X[:0], w), {LINEAR: 1}),
    "linear, turned twice": (MATRIX, lambda w: F.linear(X, w.t().T), {LINEAR: 1}),
    "@": (MATRIX, lambda w: X @ w.t(), {LINEAR: 1}),
    "matmul": (MATRIX, lambda w: torch.matmul(X, w.T), {LINEAR: 1}),
    "matmul of a tensor": (MATRIX, lambda w: X.matmul(w.mT), {LINEAR: 1}),
    "in float32": (MATRIX, lambda w: F.linear(X.float(), w.float()), {LINEAR: 1}),
    "by to": (MATRIX, lambda w: F.linear(X.float(), w.to(torch.float32)), {LINEAR: 1}),
    "by type": (MATRIX, lambda w: F.linear(X.float(), w.type(torch.float32)), {LINEAR: 1}),
    "to its own dtype": (MATRIX, lambda w: F.linear(X, w.to(torch.float64)), {LINEAR: 1}),
    "one of a stack": (STACK, lambda w: F.linear(X, w[1]), {LINEAR: 1}),
    "by a tensor": (STACK, lambda w: F.linear(X, w[INDICES[0]]), {LINEAR: 1}),
    "several of a stack": (STACK, lambda w: F.linear(X, w[1]) + F.linear(X, w[2]), {LINEAR: 2}),
    "one of a turned stack": (TURNED, lambda w: X @ w[-1], {LINEAR: 1}),
    "gathered": (STACK, lambda w: torch.bmm(w[INDICES], X[..., None]), {STACKED: 1}),
    "gathered, turned": (TURNED, lambda w: torch.bmm(X[:, None], w[INDICES]), {STACKED: 1}),
    "all of a stack": (TURNED, lambda w: torch.bmm(BATCH, w), {STACKED: 1}),
    "all of a stack, transposed": (STACK, lambda w: torch.bmm(BATCH, w.transpose(1, 2)), {STACKED: 1}),
}

OTHERS = {
    "of one vector": (MATRIX, lambda w: F.linear(X[0], w)),
    "on the left": (MATRIX, lambda w: w @ X.t()),
    "as an argument by name": (MATRIX, lambda w: F.linear(X, weight=w)),
    "a bias of another dtype": (MATRIX, lambda w: F.linear(X, w, torch.ones(6, dtype=torch.float64).expand(6))),
    "of all": (STACK, lambda w: torch.matmul(X, w.mT)),
    "gathered, many rows": (STACK, lambda w: torch.bmm(draw_again(), w[INDICES].mT)),
    "a sum": (MATRIX, lambda w: w.sum()),
    "arithmetic": (MATRIX, lambda w: torch.add(w, 1.0)),
    "in a list": (MATRIX, lambda w: torch.cat([w, w])),
    "several": (STACK, lambda w: torch.stack([w[0], torch.ones(6, 4).double(), w[1]])),
    "a slice": (STACK, lambda w: w[1:]),
    "a mask": (STACK, lambda w: w[torch.tensor([True, False, True])]),
    "many indices": (STACK, lambda w: w[INDICES.reshape(5, 1)]),
    "a row": (MATRIX, lambda w: w[2]),
    "other dimensions": (STACK, lambda w: w.transpose(0, 1)),
    "T of a matrix's copy": (MATRIX, lambda w: w.clone().T),
    "its device": (MATRIX, lambda w: w.to("cpu")),
    "its kind": (MATRIX, lambda w: w.type(torch.float64, non_blocking=True)),
    "of the gathered": (STACK, lambda w: w[INDICES].sum(0)),
    "one of the gathered": (STACK, lambda w: w[INDICES][3]),
    "an einsum": (STACK, lambda w: torch.einsum("bi,eoi->beo", X, w)),
}


def draw_again():
    return torch.linspace(-1.0, 1.0, 5 * 2 * 4, dtype=torch.float64).reshape(5, 2, 4)


def trained(weight, adapters):
    return weight, [
        StackAdapter(left.clone().requires_grad_(), right.clone().requires_grad_(), s) for left, right, s in adapters
    ]


def compare(given, use):
    """Value and gradients; the fused functions that ran."""
    ours, theirs = trained(*given), trained(*given)
    wanted = use(dense(*theirs))
    with fused_calls() as calls:
        found = use(AdaptedWeight(*ours))
    assert type(found) is torch.Tensor
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
    tolerance = 1e-12 if wanted.dtype == torch.float64 else 1e-5
    assert (found - wanted).norm() <= tolerance * wanted.norm()
    grads = [
        torch.autograd.grad(y.square().sum(), [f for one in adapters for f in one[:2]])
        for y, (_, adapters) in ((wanted, theirs), (found, ours))
    ]
    for a, b in zip(*grads, strict=True):
        assert (a - b).norm() <= tolerance * a.norm()
    return Counter(calls)


@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name):
    given, use, calls = PRODUCTS[name]
    assert compare(given, use) == calls


@pytest.mark.parametrize("name", OTHERS)
def test_everything_else(name):
    """By the tensor that PEFT would have made."""
    calls = compare(*OTHERS[name])
    assert not calls or name == "a bias of another dtype"


@pytest.mark.skipif(not hasattr(torch, "_grouped_mm"), reason="this torch has no grouped products")
@pytest.mark.parametrize("turned", [False, True], ids=["out-in", "in-out"])
def test_grouped_products(turned):
    """torch wants rows of 16 bytes."""
    weight, adapter = draw(3, 8, 4).float(), StackAdapter(draw(3, 8, 2).float(), draw(3, 2, 4).float(), 0.5)
    x = draw(5, 8 if turned else 4).float()

    def use(w):
        return torch._grouped_mm(x, w if turned else w.transpose(-2, -1), offs=OFFSETS)

    try:
        assert compare((weight, [adapter]), use) == {STACKED: 1}
    except NotImplementedError as error:
        pytest.skip(f"torch {torch.__version__} has no grouped products on this device: {error}")


def test_what_it_says_of_itself():
    stands, tensor = AdaptedWeight(*MATRIX), dense(*MATRIX)
    for name in ("shape", "dtype", "device", "ndim", "requires_grad", "is_cuda", "itemsize"):
        assert getattr(stands, name) == getattr(tensor, name), name
    assert (stands.dim(), stands.size(0), stands.numel()) == (2, 6, 24)
    assert stands.data_ptr() == MATRIX[0].data_ptr()
    assert not hasattr(stands, "_anything")
    assert AdaptedWeight(*STACK)[INDICES].shape == (5, 6, 4)
    with pytest.raises(AttributeError, match="no_such"):
        _ = stands.no_such


def test_products_under_autocast_are_rounded_once_each():
    """In autocast's dtype, as of a tensor."""
    given = MATRIX[0].float(), [StackAdapter(left.float(), right.float(), s) for left, right, s in MATRIX[1]]
    with torch.autocast("cpu", torch.bfloat16), fused_calls() as calls:
        found, wanted = F.linear(X.float(), AdaptedWeight(*given)), F.linear(X.float(), dense(*given))
    assert calls == [LINEAR]
    assert found.dtype == wanted.dtype == torch.bfloat16
    assert (found - wanted).norm() <= 0.02 * wanted.norm()


STACKS = {
    "all": (TURNED, lambda w, x: torch.bmm(x, w), BATCH),
    "gathered": (TURNED, lambda w, x: torch.bmm(x[:, None], w[INDICES]), X),
    "gathered, from the left": (STACK, lambda w, x: torch.bmm(w[INDICES], x[..., None]), X),
}


@pytest.mark.parametrize("name", STACKS)
@pytest.mark.parametrize(
    ("stored", "given"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)],
    ids=str,
)
def test_stacks_under_autocast(name, stored, given):
    """x, W and factors come in autocast's dtype to the product, and gradients in their own to what is trained."""
    (weight, adapters), use, x = STACKS[name]
    narrow = weight.to(stored), [StackAdapter(a.to(stored), b.to(stored), s) for a, b, s in adapters]
    results = []
    for make in (dense, AdaptedWeight):
        weight, adapters = trained(*narrow)
        rows = x.to(given).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16), fused_calls() as calls:
            y = use(make(weight, adapters), rows)
        factors = [factor for one in adapters for factor in one[:2]]
        results.append([y, *torch.autograd.grad(y.float().square().sum(), [rows, *factors])])
        assert calls == ([STACKED] if make is AdaptedWeight else [])
    for wanted, found in zip(*results, strict=True):
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        assert (found - wanted).float().norm() <= 0.05 * wanted.float().norm()


def test_mixed_dtypes_are_torchs_to_refuse():
    with pytest.raises(RuntimeError, match="dtype"):
        F.linear(X.float(), AdaptedWeight(*MATRIX))


def test_the_gradients_of_many_matrices_are_one_stack():
    """Not a stack of zeros for each that is used."""
    weight, adapters = trained(*STACK)
    stands = AdaptedWeight(weight, adapters)
    y = sum(F.linear(X, stands[index]) for index in range(3))
    nodes, waiting = Counter(), [y.grad_fn]
    while waiting:
        node = waiting.pop()
        nodes[type(node).__name__] += 1
        waiting += [following for following, _ in node.next_functions if following is not None]
    assert not [name for name in nodes if "Select" in name or "Index" in name]
    assert "UnbindBackward0" in nodes
