"""Each tensor trained alone, each frozen alone, for every structure: gradients of any order, batched ones, and memory."""

from __future__ import annotations

import pytest
import torch
from structures import STRUCTURES, assert_equal, assert_own_memory, cotangents, first_order, train, training_sets

each_structure = pytest.mark.parametrize("name", STRUCTURES)


@each_structure
def test_gradients(name):
    """The same numbers, and no gradient where upstream leaves None; outputs that depend on nothing trained."""
    structure = STRUCTURES[name]()
    for trained in training_sets(structure):
        train(structure, trained)
        expected, found = structure.upstream(), structure.fused()
        assert [(y.requires_grad, y.is_leaf) for y in found] == [(y.requires_grad, y.is_leaf) for y in expected]
        wanted = first_order(structure, structure.upstream)
        assert_equal(wanted, first_order(structure, structure.fused), sorted(trained))


def gradients(structure, outputs, **options):
    """Of every trained tensor, by ``torch.autograd.grad``."""
    names = [name for name, tensor in structure.tensors.items() if tensor.requires_grad]
    live = [(y, g) for y, g in zip(outputs, cotangents(outputs), strict=True) if y.requires_grad]
    ys, given = zip(*live, strict=True)
    tensors = [structure.tensors[name] for name in names]
    if options.get("is_grads_batched"):
        given = [torch.stack([g, 2 * g.flip(0)]) for g in given]
    return dict(zip(names, torch.autograd.grad(ys, tensors, given, allow_unused=True, **options), strict=True))


def second_order(structure, function):
    """Derivatives of the first derivatives' squares."""
    first = gradients(structure, function(), create_graph=True)
    total = sum(g.square().sum() for g in first.values() if g is not None and g.requires_grad)
    names = list(first)
    tensors = [structure.tensors[name] for name in names]
    depends = torch.is_tensor(total) and total.requires_grad
    second = torch.autograd.grad(total, tensors, allow_unused=True) if depends else [None] * len(names)
    # A derivative that is zero for every input may be zero or None.
    return first | {
        f"of {name}": None if g is None or not g.any() else g for name, g in zip(names, second, strict=True)
    }


@each_structure
def test_second_derivatives(name):
    """Also of what depends on tensors that were not kept."""
    structure = STRUCTURES[name]()
    for trained in training_sets(structure):
        train(structure, trained)
        expected, found = second_order(structure, structure.upstream), second_order(structure, structure.fused)
        assert_equal(expected, found, sorted(trained), tolerance=1e-9)


@each_structure
@pytest.mark.filterwarnings("ignore:.*performance drop")
def test_batched_gradients(name):
    """``is_grads_batched=True`` finds a way for every operation, with and without a graph of it."""
    structure = STRUCTURES[name]()
    for index, trained in enumerate(training_sets(structure)):
        train(structure, trained)
        options = {"is_grads_batched": True, "create_graph": index % 2 == 1}
        wanted = gradients(structure, structure.upstream(), **options)
        assert_equal(wanted, gradients(structure, structure.fused(), **options), sorted(trained))


@each_structure
def test_gradients_own_their_memory(name):
    """All of it: one that is kept keeps nothing else, but for the A's of one input."""
    structure = STRUCTURES[name]()
    for index, trained in enumerate(training_sets(structure)):
        train(structure, trained)
        if index % 3 == 0:  # by the way of ordinary operations too
            found = gradients(structure, structure.fused(), create_graph=True)
        else:
            found = gradients(structure, structure.fused())
        assert_own_memory({n: g for n, g in found.items() if g is not None})
        train(structure, trained)
        first_order(structure, structure.fused)
        assert_own_memory({n: t.grad for n, t in structure.tensors.items() if t.grad is not None})


@each_structure
@pytest.mark.filterwarnings("ignore:.*performance drop")
def test_vectorised_jacobian_and_hessian(name):
    """Of the first output with respect to x, or to the embedding's first A, while the parameters are trained."""
    structure = STRUCTURES[name]()
    value = structure.tensors["x" if "x" in structure.tensors else "A0"].detach()
    found = {}
    for kind, function in (("upstream", structure.upstream), ("fused", structure.fused)):
        found[kind] = {
            "jacobian": torch.autograd.functional.jacobian(lambda v, f=function: f(v)[0], value, vectorize=True),
            "hessian": torch.autograd.functional.hessian(
                lambda v, f=function: f(v)[0].sin().sum(), value, vectorize=True
            ),
        }
    assert_equal(found["upstream"], found["fused"], name, tolerance=1e-9)


@each_structure
@pytest.mark.filterwarnings("ignore:.*performance drop")
def test_backward_under_vmap(name):
    """``torch.func.vmap`` over a backward batches by another implementation than ``torch.autograd``."""
    structure = STRUCTURES[name]()
    train(structure, set(structure.tensors))
    results = []
    for outputs in (structure.upstream(), structure.fused()):
        leaves = list(structure.tensors.values())

        def pull(grad, outputs=outputs, leaves=leaves):
            return torch.autograd.grad(outputs[0], leaves, grad, retain_graph=True, allow_unused=True)

        live = [g is not None for g in pull(torch.ones_like(outputs[0]))]

        def pull_live(grad, pull=pull, live=live):
            return tuple(g for g, some in zip(pull(grad), live, strict=True) if some)

        results.append(torch.func.vmap(pull_live)(torch.randn(3, *outputs[0].shape, dtype=torch.float64).fill_(0.7)))
    for wanted, got in zip(*results, strict=True):
        assert (wanted - got).norm() <= 1e-9 * wanted.norm()


def test_an_adapter_that_is_applied_twice():
    """The input of the second call depends on the tensors of both: each call counts its own part, once."""
    structure = STRUCTURES["mlp"]()
    train(structure, set(structure.tensors))

    def twice(function):
        return lambda: function(function(structure.tensors["x"])[0])

    expected = second_order(structure, twice(structure.upstream))
    assert_equal(expected, second_order(structure, twice(structure.fused)), "twice", tolerance=1e-9)
