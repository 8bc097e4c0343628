"""A tensor changed in place between forward and backward: an error where upstream has one, else upstream's gradients."""

from __future__ import annotations

import pytest
import torch
from structures import STRUCTURES, assert_equal, backward, cotangents, train, training_sets

VERSION_ERROR = "modified by an inplace operation"


def outcome(structure, function, changed, run):
    """The gradients after ``changed`` was changed, or None if autograd says that it may not."""
    tensor = structure.tensors[changed]
    before = tensor.detach().clone()
    try:
        outputs = function()
        with torch.no_grad():
            tensor.mul_(1.5)
        return run(structure, outputs)
    except RuntimeError as error:
        if VERSION_ERROR not in str(error):
            raise
        return None
    finally:
        with torch.no_grad():
            tensor.copy_(before)


def first(structure, outputs):
    backward(outputs)
    return {name: tensor.grad for name, tensor in structure.tensors.items()}


def batched(structure, outputs):
    """By the way of ordinary operations, which computes forward again from what was kept."""
    names = [name for name, tensor in structure.tensors.items() if tensor.requires_grad]
    live = [(y, torch.stack([g, -g])) for y, g in zip(outputs, cotangents(outputs), strict=True) if y.requires_grad]
    ys, given = zip(*live, strict=True)
    tensors = [structure.tensors[name] for name in names]
    found = torch.autograd.grad(ys, tensors, given, allow_unused=True, is_grads_batched=True)
    return dict(zip(names, found, strict=True))


@pytest.mark.parametrize("run", [first, batched])
@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.filterwarnings("ignore:.*performance drop")
def test_changed_between_forward_and_backward(name, run):
    structure = STRUCTURES[name]()
    allowed = raised = 0
    for trained in list(training_sets(structure))[:: 1 if run is first else 3]:
        for changed in structure.tensors:
            train(structure, trained)
            expected = outcome(structure, structure.upstream, changed, run)
            train(structure, trained)
            found = outcome(structure, structure.fused, changed, run)
            if expected is not None and found is None:
                # Upstream keeps the copy of x that dropout made, where we keep x.
                assert (changed, structure.drops) == ("x", True), (sorted(trained), changed)
                continue
            assert (expected is None) == (found is None), (sorted(trained), changed)
            allowed, raised = allowed + (expected is not None), raised + (expected is None)
            if expected is not None:
                assert_equal(expected, found, (sorted(trained), changed))
    assert allowed
    assert raised
