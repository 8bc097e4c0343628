"""Projections and MLPs of the structure that people train, computed without lists and with them."""

from contextlib import nullcontext

import torch
from projection_cases import make, tensors
from straight_ways import in_lists
from structures import LORA
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from patchkit_kernels.lora.gated_mlp import lora_gated_mlp
from patchkit_kernels.lora.linear import lora_linear, lora_projections
from patchkit_kernels.lora.mlp import lora_mlp
from patchkit_kernels.lora.projection import Precision

FP64, FP32, BF16 = torch.float64, torch.float32, torch.bfloat16
PRECISIONS = {
    "one dtype": (FP64, FP64, Precision(*[FP64] * 4)),
    "float32 adapters": (BF16, FP32, Precision(BF16, FP32, BF16, FP32)),
    "autocast": (BF16, FP32, Precision(*[BF16] * 3, FP32)),
    "float32 under autocast": (FP32, FP32, Precision(*[BF16] * 3, FP32)),
}
SHAPES = {"a matrix": (3, 8), "a batch": (2, 3, 8), "none": (0, 8)}


SIZES = {
    "one": [(8, 6, 2)],
    "three": [(8, 6, 2), (8, 4, 3), (8, 5, 2)],
    "ungated": [(8, 16, 2), (16, 8, 3)],
    "joint": [(8, 32, 2), (16, 8, 3)],
    "gated": [(8, 16, 2), (8, 16, 3), (16, 8, 2)],
}
"""Of each projection: in, out and rank."""


class Case:
    """One of :data:`SIZES`; gate comes second unless ``gate_first``."""

    def __init__(self, part, precision="one dtype", dropout=0.0, *, bias=False, shape=(2, 3, 8), gate_first=True):
        base, lora, self.precision = PRECISIONS[precision]
        self.part = part
        extras = (LORA._replace(dropout=dropout),)
        self.projections = [
            make(*size, dtype=base, lora_dtype=lora, seed=i, bias=bias, extras=extras)
            for i, size in enumerate(SIZES[part])
        ]
        self.x = torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=FP64).to(base).requires_grad_()
        self.gate_first = gate_first

    @property
    def variables(self):
        return [tensor for tensor in (self.x, *tensors(self.projections)) if tensor.requires_grad]

    def outputs(self):
        torch.manual_seed(7)
        if self.part == "one":
            return (lora_linear(self.x, self.projections[0], self.precision),)
        if self.part == "three":
            return lora_projections(self.x, self.projections, self.precision)
        *inputs, down = self.projections
        if self.part == "ungated":
            return (lora_mlp(self.x, *inputs, down, "gelu_tanh", self.precision),)
        return (lora_gated_mlp(self.x, inputs, down, "silu", self.precision, gate_first=self.gate_first),)

    def results(self, backward=nullcontext, **options):
        """The outputs, the gradient of everything that wants one, and what the generator draws next."""
        outputs = self.outputs()
        with backward():
            grads = torch.autograd.grad(outputs, self.variables, cotangents_of(outputs), **options)
        return [*outputs, *grads, torch.rand(2)]


def cotangents_of(outputs):
    return [torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y) for y in outputs]


def assert_same_bits(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert torch.equal(one, other)


def compared_with_lists(case, monkeypatch, **options):
    """Asserts that both ways give the same bits."""
    found = case.results(**options)
    with monkeypatch.context() as patch:
        in_lists(patch)
        expected = case.results(**options)
    assert_same_bits(found, expected)


def kept_by(outputs):
    """Shape and dtype of all that the function has kept for backward, in order: a checkpoint counts and compares them."""
    return [str((tuple(t.shape), t.dtype)) for t in outputs[0].grad_fn.saved_tensors if t is not None]


class NoGradient(torch.autograd.Function):
    """Gives no gradient to what it is made of."""

    @staticmethod
    def forward(ctx, y):
        return y.clone()

    @staticmethod
    def backward(ctx, grad):
        return None


class Seen(TorchDispatchMode):
    """Sees the operations and changes none."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def checkpointed_in_a_mode(case, tolerance=0.0):
    """Asserts the same gradients where forward runs again within a mode that was not there before."""
    expected = torch.autograd.grad(total(case.outputs()), case.variables)
    outputs = checkpoint(lambda x: case.outputs(), case.x, use_reentrant=False)
    with Seen():
        found = torch.autograd.grad(total(outputs), case.variables)
    for one, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(one, wanted, rtol=tolerance, atol=tolerance)


def total(outputs):
    return sum((y**2).sum() for y in outputs)


WAYS_OF_LISTS = ("some", "again", "batched", "in a mode")


def taken_over_by_lists(case, way, monkeypatch):
    """Asserts the same bits of a backward that lists compute after a forward without them."""
    if way == "in a mode":
        compared_with_lists(case, monkeypatch, backward=Seen)
        return
    found = []
    for lists in (False, True):
        if lists:
            in_lists(monkeypatch)
        outputs = case.outputs()
        if way == "some":
            grads = [torch.autograd.grad(total(outputs), [one], retain_graph=True)[0] for one in case.variables]
        elif way == "batched":
            weights = [torch.stack([torch.ones_like(y), y]).detach() for y in outputs]
            grads = torch.autograd.grad(outputs, case.variables, weights, is_grads_batched=True)
        else:
            first = torch.autograd.grad(total(outputs), case.variables, create_graph=True)
            grads = torch.autograd.grad(total(first), case.variables)
        found.append(grads)
    assert_same_bits(*found)
