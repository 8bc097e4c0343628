"""The cross-entropy of a projection's outputs in chunks, against the same formula with all logits at once."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from projection_cases import FP64, Extra, all_tensors, make, plain, precise, seeded, seeds, tensors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from patchkit.testing.measure import count_flops, saved_bytes
from patchkit_kernels.lora import cross_entropy as module
from patchkit_kernels.lora.cross_entropy import Form, chunk_of, lora_cross_entropy
from patchkit_kernels.lora.projection import Precision

HIDDEN, VOCABULARY, RANK = 8, 37, 3
LORA, DORA = Extra(), Extra(dora=True)
STRUCTURES = {
    "no adapter": (),
    "lora": (LORA,),
    "a bias of B": (Extra(bias=True),),
    "dropout": (Extra(dropout=0.4),),
    "dora": (DORA,),
    "several": (LORA, Extra(bias=True, dropout=0.3), DORA, Extra(dora=True, bias=True)),
}
FORMS = {
    "plain": Form(exact=True),
    "scaled": Form(scale=-0.3, exact=True),
    "capped": Form(softcap=2.0, exact=True),
    "both": Form(scale=3.0, softcap=1.5, exact=True, ignore_index=5),
}
each_structure = pytest.mark.parametrize("extras", STRUCTURES.values(), ids=STRUCTURES)
each_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Four tokens at a time, which divides neither the tokens nor anything else here."""
    monkeypatch.setattr(module, "LEAST_TOKENS", 4)
    monkeypatch.setattr(module, "chunk_of", lambda *sizes: 4)


def drawn(dtype=torch.float64, extras=(LORA,), *, seed=0, base_grad=True, lora_dtype=None, tokens=(3, 7)):
    """A projection, its input, and labels of which some do not count."""
    made = make(
        HIDDEN, VOCABULARY, RANK, bias=True, base_grad=base_grad, dtype=dtype, lora_dtype=lora_dtype, seed=seed,
        extras=extras,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(*tokens, HIDDEN, generator=generator, dtype=torch.float64)
    target = torch.randint(0, VOCABULARY, tokens, generator=generator)
    target[0, 2:5], target[-1, :] = -100, -100
    target[0, 0] = 5
    return made, x.to(dtype).requires_grad_(), target


def ordinary(x, target, projection, form, divisor=None):
    """In words of torch, as upstream computes it."""
    logits = plain(x, projection).flatten(0, -2) * form.scale
    if form.softcap:
        logits = torch.tanh(logits / form.softcap) * form.softcap
    exact = logits if form.exact else logits.float()
    target = target.flatten().where(target.flatten() != -100, form.ignore_index)
    reduction = "mean" if divisor is None else "sum"
    loss = F.cross_entropy(exact, target, ignore_index=form.ignore_index, reduction=reduction)
    return loss if divisor is None else loss / divisor


def labels(target, form):
    return target.where(target != -100, form.ignore_index)


def both(extras=(LORA,), form=FORMS["plain"], *, divisor=None, **options):
    """The leaves, and functions that give the fused and the ordinary loss with the same draws."""
    projection, x, target = drawn(extras=extras, **options)
    fused = seeded(lambda: lora_cross_entropy(x, labels(target, form), projection, FP64, divisor=divisor, form=form))
    return [x, *tensors([projection])], fused, seeded(lambda: ordinary(x, target, projection, form, divisor))


def assert_close(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


@each_form
@each_structure
def test_gradients(extras, form):
    leaves, fused, upstream = both(extras, form)
    ours, theirs = fused(), upstream()
    assert_close([ours], [theirs])
    assert_close(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves))


@each_structure
def test_each_tensor_trained_alone(extras):
    leaves, fused, upstream = both(extras)
    for trained in range(len(leaves)):
        for index, leaf in enumerate(leaves):
            leaf.requires_grad_(index == trained)
        assert_close(torch.autograd.grad(fused(), leaves[trained]), torch.autograd.grad(upstream(), leaves[trained]))


@each_structure
def test_second_derivatives(extras):
    leaves, fused, upstream = both(extras, FORMS["both"])
    found = []
    for function in (fused, upstream):
        first = torch.autograd.grad(function() * 1.7, leaves, create_graph=True)
        second = torch.autograd.grad(sum(one.square().sum() for one in first), leaves)
        found.append([*first, *second])
    assert_close(*found)


def test_gradcheck():
    leaves, fused, _ = both((LORA, Extra(bias=True)), tokens=(2, 3))
    assert torch.autograd.gradcheck(lambda *_: fused(), leaves, fast_mode=True)


def test_batched_gradients():
    leaves, fused, upstream = both()
    given = torch.tensor([1.0, -2.0], dtype=torch.float64)
    found = [torch.autograd.grad(loss(), leaves, given, is_grads_batched=True) for loss in (fused, upstream)]
    assert_close(*found)


@pytest.mark.parametrize("divisor", [13, 2.5, torch.tensor(7), torch.tensor(3.0), None])
def test_divisors(divisor):
    leaves, fused, upstream = both(divisor=divisor)
    assert_close([fused()], [upstream()])
    assert_close(torch.autograd.grad(fused(), leaves), torch.autograd.grad(upstream(), leaves))


def test_backward_may_be_scaled_repeated_and_accumulated():
    leaves, fused, upstream = both((LORA, DORA))
    found = []
    for loss in (fused(), upstream()):
        for leaf in leaves:
            leaf.grad = None
        loss.backward(retain_graph=True)
        (loss * 3.0).backward(retain_graph=True)
        (loss * loss).backward()
        found.append([leaf.grad for leaf in leaves])
    assert_close(*found)


@pytest.mark.parametrize("divisor", [None, 3.0])
def test_labels_that_all_do_not_count(divisor):
    projection, x, target = drawn()
    target[:] = -100
    ours = lora_cross_entropy(x, target, projection, FP64, divisor=divisor, form=FORMS["plain"])
    theirs = ordinary(x, target, projection, FORMS["plain"], divisor)
    assert ours.isnan() == theirs.isnan() == (divisor is None)
    leaves = [x, *tensors([projection])]
    assert_close(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves))


def test_a_projection_without_anything_to_train_has_no_graph():
    projection, x, target = drawn(extras=(), base_grad=False)
    assert not lora_cross_entropy(x.detach(), target, projection, FP64).requires_grad


LOW = {
    "bf16": (torch.bfloat16, torch.bfloat16),
    "float32 adapters": (torch.bfloat16, torch.float32),
    "fp16": (torch.float16, torch.float16),
}


@pytest.mark.parametrize("extras", [(), (LORA,), (DORA,)], ids=["no adapter", "lora", "dora"])
@pytest.mark.parametrize(("base", "lora"), LOW.values(), ids=LOW)
def test_rounding_is_upstreams(base, lora, extras):
    """Errors against float64, added up over draws, at most 1.1 times those of all logits at once; dW in chunks too."""
    ours, theirs = [0.0] * 20, [0.0] * 20
    scale = 1024.0 if base == torch.float16 else 1.0
    for seed in seeds(12):
        projection, x, target = drawn(base, extras, seed=seed, lora_dtype=lora, tokens=(2, 24))
        leaves = [x, *tensors([projection])]
        exact = precise(projection)
        wide = x.detach().double().requires_grad_()
        truth = torch.autograd.grad(ordinary(wide, target, exact, FORMS["plain"]) * scale, [wide, *tensors([exact])])
        precision = Precision(base, lora, base, lora)
        fused = lora_cross_entropy(x, target, projection, precision)
        for errors, loss in ((ours, fused), (theirs, ordinary(x, target, projection, Form()))):
            for index, (one, right) in enumerate(zip(torch.autograd.grad(loss * scale, leaves), truth, strict=True)):
                errors[index] += float((one.double() - right).norm() / right.norm())
    assert sum(ours) <= 1.1 * sum(theirs), (ours, theirs)


@pytest.mark.parametrize("twice", [True, False])
def test_half_precision_keeps_what_the_scale_of_the_loss_saves(twice):
    """Gradients of 1e-8 are nothing in float16; those of a loss that is scaled by 2**16 are numbers."""
    projection, x, target = drawn(torch.float16)
    leaves = [x, *tensors([projection])]
    precision = Precision(*[torch.float16] * 4)
    fused = lora_cross_entropy(x, target, projection, precision, divisor=2.0**22, twice=twice) * 2.0**20
    expected = ordinary(x, target, projection, Form(), 2.0**22) * 2.0**20
    for ours, theirs in zip(torch.autograd.grad(fused, leaves), torch.autograd.grad(expected, leaves), strict=True):
        assert ours.any()
        assert (ours.double() - theirs.double()).norm() <= 3e-3 * theirs.double().norm()


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation gives."""

    def __init__(self, *known):
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in known}
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage()._cdata not in self.known:
                self.elements = max(self.elements, leaf.untyped_storage().nbytes() // leaf.element_size())
        return out


@pytest.mark.parametrize("base_grad", [False, True])
@each_structure
def test_logits_are_never_there(extras, base_grad):
    projection, x, target = drawn(extras=extras, base_grad=base_grad, tokens=(8, 64))
    with Largest(x, *all_tensors([projection])) as seen:
        lora_cross_entropy(x, target, projection, FP64).backward()
    # Tensors like x, like W, like every t together, and of a chunk of four tokens: the logits have 512 * 37 elements.
    ranks = RANK * len(extras)
    assert seen.elements <= max(x.numel(), projection.weight.numel(), 512 * ranks, 4 * VOCABULARY) < 512 * VOCABULARY


@each_structure
def test_what_is_kept_does_not_grow_with_the_vocabulary(extras):
    """dx, masks, the gradients of what is trained, and for a magnitude what it was divided by and what came of it."""
    projection, x, target = drawn(torch.float32, extras, base_grad=False, tokens=(8, 64))
    precision = Precision(*[torch.float32] * 4)
    exclude = [x, target, *all_tensors([projection])]
    kept = saved_bytes(lambda: lora_cross_entropy(x, target, projection, precision), exclude=exclude)
    made = sum(tensor.numel() for tensor in tensors([projection])) * 4
    masks = len([one for one in projection.adapters if one.dropout]) * x.numel() // 8
    factors = len([one for one in projection.adapters if one.magnitude is not None]) * VOCABULARY * 4 * 2
    assert kept <= x.numel() * 4 + made + masks + factors + 64


class Narrowed(TorchDispatchMode):
    """The shapes of what is cast to bfloat16."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and out.dtype == torch.bfloat16:
            self.shapes.append(tuple(out.shape))
        return out


@each_structure
def test_weights_are_cast_once_and_not_for_every_chunk(extras):
    """As under autocast, in seven chunks."""
    projection, x, target = drawn(torch.float32, extras, base_grad=False, tokens=(4, 7))
    with Narrowed() as seen:
        lora_cross_entropy(x, target, projection, Precision(*[torch.bfloat16] * 3, torch.float32)).backward()
    assert seen.shapes.count((VOCABULARY, HIDDEN)) == 1
    assert seen.shapes.count((VOCABULARY, RANK)) == len(extras)


@pytest.mark.parametrize("base_grad", [False, True])
def test_products_are_those_of_upstream(base_grad):
    """Two with W where it is frozen, three where it is trained: the gradient is made in forward, and only there."""
    projection, x, target = drawn(extras=(), base_grad=base_grad)
    flops = count_flops(lambda: lora_cross_entropy(x, target, projection, FP64).backward())
    assert flops == count_flops(lambda: ordinary(x, target, projection, FORMS["plain"]).backward())


SIZES = {
    (2048, 640, 262144): 128,
    (32768, 4096, 128256): 2048,
    (8192, 4096, 32000): 2048,
    (100, 64, 99): 128,
    (1000, 512, 500): 1024,
}


@pytest.mark.parametrize(("sizes", "expected"), SIZES.items())
def test_chunks_are_no_more_than_the_hidden_states(sizes, expected, monkeypatch):
    monkeypatch.undo()
    assert chunk_of(*sizes) == expected
    tokens, features, vocabulary = sizes
    assert expected == 128 or expected * vocabulary < 2 * tokens * features


def test_forms_are_all_different():
    losses = {both(form=form)[1]().item() for form in FORMS.values()}
    assert len(losses) == len(FORMS)
    assert all(abs(a - b) > 1e-3 for a, b in itertools.combinations(losses, 2))
