"""What is computed without lists: the bits that lists give, the same kept, and what is left to lists."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from straight_ways import in_lists
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.profiler import profile
from torch.utils.checkpoint import checkpoint
from without_lists import (
    BF16,
    PRECISIONS,
    SHAPES,
    SIZES,
    WAYS_OF_LISTS,
    Case,
    Seen,
    assert_same_bits,
    checkpointed_in_a_mode,
    compared_with_lists,
    cotangents_of,
    kept_by,
    taken_over_by_lists,
)

from patchkit_kernels.lora import straight, straight_gated, straight_one, straight_saving, straight_three, straight_two
from patchkit_kernels.ops.dropout_once import SMALL

FUNCTIONS = {
    "one": straight_one,
    "three": straight_three,
    "ungated": straight_two,
    "joint": straight_two,
    "gated": straight_gated,
}
each_part = pytest.mark.parametrize("part", SIZES)


@pytest.fixture
def applied(part, monkeypatch):
    """How often the part was computed without lists, with a graph."""
    calls, function = [], FUNCTIONS[part]._apply
    monkeypatch.setattr(FUNCTIONS[part], "_apply", lambda *args: calls.append(1) or function(*args))
    return calls


@pytest.mark.parametrize("x_grad", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", SHAPES)
@each_part
def test_the_bits_that_lists_give(part, shape, precision, dropout, bias, x_grad, applied, monkeypatch):
    case = Case(part, precision, dropout, bias=bias, shape=SHAPES[shape])
    case.x.requires_grad_(x_grad)
    compared_with_lists(case, monkeypatch)
    assert len(applied) == 1


@pytest.mark.parametrize("bias", [True, False])
@each_part
def test_the_low_rank_product_may_come_first(part, bias, monkeypatch):
    for module in (straight, straight_one):
        monkeypatch.setattr(module, "reads_in_epilogue", lambda x: True)
    compared_with_lists(Case(part, bias=bias), monkeypatch)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("x_grad", [True, False])
@pytest.mark.parametrize("rows", [0, 1024])
@each_part
def test_the_same_is_kept_in_the_same_order(part, rows, x_grad, precision, monkeypatch):
    """Copies of W for few rows included."""
    monkeypatch.setattr(straight_saving, "FEW_ROWS", rows)
    case = Case(part, precision, 0.4, shape=(1, 8))  # so that nothing else has the shape of W
    case.x.requires_grad_(x_grad)
    found = kept_by(case.outputs())
    in_lists(monkeypatch)
    assert found == kept_by(case.outputs())
    rows_of_w, columns, _ = SIZES[part][0]
    narrow = PRECISIONS[precision][0] is BF16 or ("float32 under" in precision and rows)
    assert (str(((columns, rows_of_w), BF16)) in found) == bool(x_grad and narrow)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("way", WAYS_OF_LISTS)
@each_part
def test_lists_take_over_in_backward(part, way, dropout, monkeypatch):
    taken_over_by_lists(Case(part, dropout=dropout), way, monkeypatch)


@each_part
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_a_checkpoint_may_be_made_again_in_lists(part, dropout):
    checkpointed_in_a_mode(Case(part, dropout=dropout), 1e-12 if dropout else 0.0)


@each_part
def test_without_gradients_nothing_is_applied(part, applied):
    case = Case(part, dropout=0.4)
    expected = case.outputs()
    with torch.no_grad():
        found = case.outputs()
    assert len(applied) == 1
    assert_same_bits(found, expected)
    assert all(y.grad_fn is None for y in found)


@pytest.mark.parametrize("changed", ["x", "A", "B", "W"])
@pytest.mark.parametrize("index", [0, -1])
@each_part
def test_what_changes_in_place_before_backward_is_an_error(part, index, changed):
    case = Case(part)
    outputs, one = case.outputs(), case.projections[index]
    tensors = {"x": case.x, "A": one.adapters[0].lora_a, "B": one.adapters[0].lora_b, "W": one.weight}
    with torch.no_grad():
        tensors[changed].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad([y.sum() for y in outputs], case.variables)


def casts_of(events, shape):
    """How often a tensor of this shape was copied into another dtype."""
    return sum(event.name == "aten::_to_copy" and event.input_shapes[0] == list(shape) for event in events)


@pytest.mark.parametrize("rows", [20, straight_saving.FEW_ROWS + 1])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("with_lists", [True, False])
@each_part
def test_each_tensor_is_cast_once(part, with_lists, dropout, rows, monkeypatch):
    """A profiler looks on from below, so that nothing is left to lists because of it."""
    if with_lists:
        in_lists(monkeypatch)
    case = Case(part, "float32 under autocast", dropout, shape=(rows, 8))
    with profile(record_shapes=True) as forward:
        outputs = case.outputs()
    groups = 1 if not dropout else 1 + len(case.projections) if rows * 8 > SMALL else 2
    assert casts_of(forward.events(), (rows, 8)) <= groups  # for W and all adapters; what is dropped is another tensor
    with profile(record_shapes=True) as backward:
        torch.autograd.grad(outputs, case.variables, [torch.ones_like(y) for y in outputs])
    shapes = [tuple(one.adapters[0].lora_b.shape) for one in case.projections]
    again = with_lists or rows > straight_saving.FEW_ROWS  # of few rows a copy of B is kept
    for shape in shapes:
        assert casts_of(backward.events(), shape) == shapes.count(shape) * (1 + again)  # its gradient, and B


@pytest.mark.parametrize("x_grad", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@each_part
def test_a_checkpoint_keeps_no_copies(part, dropout, x_grad):
    """Of W, A and B in the dtype of autocast: what is no saved tensor stays until backward."""

    def narrow():
        gc.collect()
        return sum(1 for one in gc.get_objects() if type(one) is torch.Tensor and one.dtype is BF16)

    case = Case(part, "float32 under autocast", dropout)
    case.x.requires_grad_(x_grad)
    before = narrow()
    outputs = checkpoint(case.outputs, use_reentrant=False)
    assert outputs[0].requires_grad
    assert narrow() == before + len(outputs)
    for found, expected in zip(
        torch.autograd.grad(outputs, case.variables, [torch.ones_like(y) for y in outputs]),
        torch.autograd.grad(case.outputs(), case.variables, [torch.ones_like(y) for y in outputs]),
        strict=True,
    ):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("x_grad", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@each_part
def test_where_x_needs_no_gradient_none_is_made(part, dropout, x_grad):
    """An MLP goes back through W of down alone."""
    case = Case(part, dropout=dropout, shape=(7, 8))
    case.x.requires_grad_(x_grad)
    outputs = case.outputs()
    with profile(record_shapes=True) as backward:
        torch.autograd.grad(outputs, case.variables, [torch.ones_like(y) for y in outputs])
    weights = [list(one.weight.shape) for one in case.projections]
    products = sum(
        event.name in ("aten::mm", "aten::addmm_") and event.input_shapes[: 2 + ("add" in event.name)][-1] in weights
        for event in backward.events()
    )
    inputs = 1 if part in ("ungated", "joint") else 2 if part == "gated" else len(weights)
    assert products == len(weights) - (0 if x_grad else inputs)


@pytest.mark.parametrize("graph", [False, True])
@each_part
def test_without_a_gradient_one_copy_of_w_lives_at_a_time(part, graph, monkeypatch):
    """In inference of few rows under autocast a layer's weights would be there twice. And where x needs no gradient."""
    case = Case(part, "float32 under autocast", shape=(1, 8))  # so that nothing else has the shape of W
    alive, most = [], []
    cast = straight_one.cast_one
    shapes = {tuple(one.weight.shape) for one in case.projections}

    def noted(tensor, dtype):
        made = cast(tensor, dtype)
        if made is not tensor and tuple(made.shape) in shapes and tuple(tensor.shape) in shapes:
            alive.append(weakref.ref(made))
            most.append(sum(one() is not None for one in alive))
        return made

    monkeypatch.setattr(straight_one, "cast_one", noted)
    case.x.requires_grad_(False)
    with torch.set_grad_enabled(graph):
        outputs = case.outputs()
    assert outputs[0].requires_grad is graph
    assert most == [1] * len(case.projections)


def beside(outputs):
    """All that a context keeps beside saved tensors, but for the projections."""
    _, *rest = outputs[0].grad_fn.beside
    return list(_flat(rest))


def _flat(items):
    for item in items:
        yield from _flat(item) if isinstance(item, (tuple, list)) else (item,)


def stack_beside(case):
    return beside(case.outputs())[-1]


@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("part", ["three", "gated"])
def test_stacked_factors_are_kept_if_they_are_few(part, few, monkeypatch):
    """And where hooks see what is saved, or x needs no gradient, not at all. The gradients are the same."""
    case = Case(part, "one dtype")
    sizes = [one.adapters[0].lora_a.numel() for one in case.projections[: 3 if part == "three" else 2]]
    expected = case.results()
    monkeypatch.setattr(straight_saving, "FEW_STACKED", sum(sizes) if few else sum(sizes) - 1)
    stack = stack_beside(case)
    assert (stack is not None) == few
    assert not few or stack.numel() == sum(sizes)
    assert_same_bits(expected, case.results())
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
        assert stack_beside(case) is None
    case.x.requires_grad_(False)
    assert stack_beside(case) is None


@pytest.mark.parametrize("few", [True, False])
@each_part
def test_a_cast_of_few_elements_is_kept(part, few, monkeypatch):
    """Of x and of the hidden state, where adapters read another dtype; the gradients are the same."""
    case = Case(part, "float32 adapters")
    expected = case.results()
    if not few:
        monkeypatch.setattr(straight_saving, "UNPACKED", 1)
    read = beside(case.outputs())
    read = read[:-1] if part in ("three", "gated") else read
    assert {one is not None and one.dtype for one in read} == {torch.float32 if few else False}
    assert_same_bits(expected, case.results())
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
        assert all(one is None for one in beside(case.outputs()))


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@each_part
def test_nothing_outlives_backward_but_the_outputs(part, dropout):
    """Nor what is kept beside saved tensors; a second backward makes it again, to the same bits."""
    case = Case(part, "float32 under autocast", dropout)
    outputs = case.outputs()
    given = outputs[0].grad_fn.beside[0]
    kept = [weakref.ref(one) for one in (*beside(outputs), *copies_with(given)) if one is not None]
    assert kept
    del given
    grads = cotangents_of(outputs)
    first = torch.autograd.grad(outputs, case.variables, grads, retain_graph=True)
    assert all(one() is None for one in kept)
    assert_same_bits(torch.autograd.grad(outputs, case.variables, grads), first)


def copies_with(given):
    """The copies of A and B that a context keeps with one projection, several, or an MLP."""
    if isinstance(given, straight_one.TrainedOne):
        return [given.cast_a, given.cast_b]
    return [cast for one in given if isinstance(one, straight_one.TrainedOne) for cast in copies_with(one)]


@pytest.mark.parametrize("part", ["three", "gated"])
def test_the_stack_of_lists_is_freed_by_backward(part, monkeypatch):
    case = Case(part)
    in_lists(monkeypatch)
    outputs = case.outputs()
    kept = weakref.ref(outputs[0].grad_fn.stack)
    assert kept() is not None
    torch.autograd.grad(outputs, case.variables, cotangents_of(outputs), retain_graph=True)
    assert kept() is None


@pytest.mark.parametrize("precision", PRECISIONS)
@each_part
def test_a_checkpoint_with_dropout_gives_the_bits_that_are_given_without(part, precision):
    """Its masks are kept in another form."""
    found = []
    for remade in (False, True):
        case = Case(part, precision, 0.4)
        outputs = checkpoint(case.outputs, use_reentrant=False) if remade else case.outputs()
        found.append(torch.autograd.grad(outputs, case.variables, cotangents_of(outputs)))
    assert_same_bits(*found)


@each_part
def test_fake_tensors_outside_of_their_mode(part):
    """Of a CPU, forward and backward."""
    case, mode = Case(part), FakeTensorMode()

    def fake(tensor):
        return None if tensor is None else mode.from_tensor(tensor.detach()).requires_grad_(tensor.requires_grad)

    case.projections = [
        one._replace(
            weight=fake(one.weight),
            adapters=tuple(a._replace(lora_a=fake(a.lora_a), lora_b=fake(a.lora_b)) for a in one.adapters),
        )
        for one in case.projections
    ]
    case.x = fake(case.x)
    outputs = case.outputs()
    grads = torch.autograd.grad(outputs, case.variables, [torch.ones_like(y) for y in outputs])
    assert [grad.shape for grad in grads] == [one.shape for one in case.variables]
    assert all(isinstance(grad, FakeTensor) for grad in grads)


@pytest.mark.parametrize("part", ["three", "gated"])
def test_gradients_that_a_mode_has_seen_are_no_views(part):
    case = Case(part)
    outputs = case.outputs()
    with Seen():
        grads = torch.autograd.grad(outputs, case.variables, cotangents_of(outputs))
    assert not any(grad._is_view() for grad in grads)
    for grad in grads:
        grad.detach_().mul_(2.0)
