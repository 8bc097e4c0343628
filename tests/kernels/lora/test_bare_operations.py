"""What is left out around operations within the straight-line functions, and what may not be."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from patchkit_kernels.lora.bare_operations import applier, at_once, bare


def kernels(function):
    """The names of the autograd nodes of what a function returns, and the dtype."""
    y = function(torch.ones(2, 2), torch.ones(2, 2, requires_grad=True))
    return y.grad_fn, y.dtype


def test_no_graph_is_made_and_nothing_is_cast():
    with torch.autocast("cpu", torch.bfloat16):
        assert kernels(lambda a, b: at_once(torch.mm, a, b))[0] is not None
        assert kernels(lambda a, b: at_once(torch.mm, a, b))[1] == torch.bfloat16
        assert kernels(lambda a, b: bare(torch.mm, a, b)) == (None, torch.float32)
    assert kernels(lambda a, b: bare(torch.mm, a, b)) == (None, torch.float32)
    assert kernels(torch.mm)[0] is not None  # afterwards all is as before


def test_all_is_as_before_after_an_error():
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(RuntimeError, match="shape"):
            bare(torch.mm, torch.ones(2, 3), torch.ones(2, 3))
        node, dtype = kernels(torch.mm)
    assert node is not None
    assert dtype == torch.bfloat16


def test_a_mode_sees_what_it_always_sees():
    class Grads(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.seen += 1
            return function(*args, **(kwargs or {}))

    with Grads() as mode:
        node, _ = kernels(lambda a, b: bare(torch.mm, a, b))
    assert mode.seen > 0
    assert node is not None


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, factor, x, weight):
        ctx.factor = factor
        ctx.save_for_backward(x, weight)
        return factor * x * weight

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return None, grad * ctx.factor * weight, grad * ctx.factor * x


class Asked(Doubled):
    """Whose ``apply`` is counted."""

    calls = 0

    @classmethod
    def apply(cls, *args):
        cls.calls += 1
        return super().apply(*args)


def test_applied_as_by_its_own_method():
    apply = applier(Asked)
    x, weight = torch.tensor([1.0, 2.0], requires_grad=True), nn.Parameter(torch.tensor([3.0, 4.0]))
    expected = torch.autograd.grad(Doubled.apply(2.0, x, weight).sum(), (x, weight))
    before = Asked.calls
    found = torch.autograd.grad(apply(2.0, x, weight).sum(), (x, weight))
    assert Asked.calls == before
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("place", [0, 1])
def test_what_is_left_of_a_transform_is_taken_out_first(place):
    left = []

    def leak(x):
        left.append(x)
        return x.sum()

    torch.func.grad(leak)(torch.ones(2))
    assert torch._C._functorch.is_functorch_wrapped_tensor(left[0])
    arguments = [torch.full((2,), 3.0, requires_grad=True)] * 2
    arguments[place] = left[0]
    before = Asked.calls
    y = applier(Asked)(2.0, *arguments)
    assert Asked.calls == before + 1
    assert torch.equal(y, torch.full((2,), 6.0))


def test_a_transform_gets_its_own_error_or_result():
    before = Asked.calls
    with pytest.raises(RuntimeError, match="setup_context"):
        torch.func.grad(lambda x: applier(Asked)(2.0, x, torch.ones(2)).sum())(torch.ones(2))
    assert Asked.calls == before + 1
