"""Which function an activation is: read from whatever a block may hold, and the numbers that it has there."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN, FastGELUActivation, QuickGELUActivation, ReLUSquaredActivation

from patchkit.adapters.peft import FORMULA
from patchkit.runtime.activations import read_activation, unfit_activation
from patchkit.testing import Result, RoundingErrors
from patchkit_kernels.ops.activations import GATED, PLAIN

# By the name in a configuration, of a torch module, or of a function: what makes it, and how it is read.
HELD = {
    **{
        name: (lambda name=name: ACT2FN[name], read)
        for name, read in {
            "silu": "silu",
            "swish": "silu",
            "gelu": "gelu_erf",
            "gelu_python": "gelu_erf",
            "gelu_new": "gelu_tanh",
            "gelu_fast": "gelu_tanh",
            "gelu_pytorch_tanh": "gelu_tanh",
            "gelu_python_tanh": "gelu_tanh",
            "relu": "relu",
            "relu2": "relu2",
            "quick_gelu": "quick_gelu",
            "sigmoid": "sigmoid",
        }.items()
        if name in ACT2FN  # some are new in transformers 5
    },
    "nn.SiLU": (nn.SiLU, "silu"),
    "nn.GELU": (nn.GELU, "gelu_erf"),
    "nn.GELU tanh": (lambda: nn.GELU(approximate="tanh"), "gelu_tanh"),
    "F.silu": (lambda: F.silu, "silu"),
    "F.gelu": (lambda: F.gelu, "gelu_erf"),
    "F.relu": (lambda: F.relu, "relu"),
    "torch.relu": (lambda: torch.relu, "relu"),
    "torch.sigmoid": (lambda: torch.sigmoid, "sigmoid"),
}
NOT_FUSED = {
    **{
        name: (lambda name=name: ACT2FN[name])
        for name in ("gelu_10", "hardswish", "leaky_relu", "mish", "relu6", "tanh")
    },
    "nn.PReLU": nn.PReLU,
    "F.mish": lambda: F.mish,
    "F.relu6": lambda: F.relu6,
    "a partial": lambda: functools.partial(F.gelu, approximate="tanh"),
    "a function of one's own": lambda: lambda x: F.silu(x),
    "None": lambda: None,
}
MODULES = [name for name, (make, _) in HELD.items() if isinstance(make(), nn.Module)]


@pytest.mark.parametrize("held", HELD)
def test_what_is_read(held):
    make, name = HELD[held]
    assert read_activation(make()) == name
    assert unfit_activation(make()) is None


@pytest.mark.parametrize("held", NOT_FUSED)
def test_what_is_called(held):
    module = NOT_FUSED[held]()
    assert read_activation(module) is None
    assert unfit_activation(module) == "it is not fused"


def results(function, *tensors):
    """The value and the gradients for a gradient of ones in the tensors' dtype."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    value = function(*leaves)
    return [value.detach(), *torch.autograd.grad(value.sum(), leaves)]


@pytest.mark.parametrize("held", HELD)
def test_same_numbers_in_float64(held):
    """Where the numbers are small relative to the whole, too: the kinks and far tails are among the inputs."""
    make, name = HELD[held]
    x = torch.linspace(-12, 12, 2401, dtype=torch.float64)
    for expected, found in zip(results(make(), x), results(PLAIN[name].forward, x), strict=True):
        assert (expected - found).norm() <= 1e-11 * expected.norm()


def both_forms(held, dtype):
    """For the plain and the gated form, and each result of it: the name, and its truth, upstream's and ours."""
    make, name = HELD[held]
    act = make()
    x, up = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0)).mul(2).to(dtype)
    for form, upstream, ours, inputs in (
        ("plain", act, PLAIN[name].forward, [x]),
        ("gated", lambda gate, up: act(gate) * up, GATED[name].forward, [x, up]),
    ):
        exact = results(upstream, *[tensor.double() for tensor in inputs])
        for index, found in enumerate(zip(exact, results(upstream, *inputs), results(ours, *inputs), strict=True)):
            yield f"{form}, {index}", Result(*found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("held", HELD)
def test_error_is_no_worse_than_upstreams(held, dtype):
    """By the criterion of ``patchkit.testing.rounding``; nothing is summed."""
    errors = RoundingErrors()
    for where, result in both_forms(held, dtype):
        errors.add_draw(where, [result])
    assert not errors.failures()


@pytest.mark.parametrize("held", HELD)
def test_error_in_float32(held):
    """Where two ways to write a function differ in its last bit (torch's own GELU and one written with its erf)."""
    for where, (exact, upstream, ours) in both_forms(held, torch.float32):
        error, allowed = (ours - exact).norm(), 1.1 * (upstream - exact).norm()
        assert error <= allowed + torch.finfo(torch.float32).eps * exact.norm(), where


def test_fast_gelus_constant_is_within_a_hundred_billionth():
    """It rounds the square root of 2 / pi, which no dtype below float64 sees."""
    x = torch.linspace(-12, 12, 2401, dtype=torch.float64)
    for mine, theirs in zip(results(PLAIN["gelu_tanh"].forward, x), results(FastGELUActivation(), x), strict=True):
        assert 0 < (mine - theirs).norm() <= 1e-11 * theirs.norm()
        assert (
            torch.equal(mine.float(), theirs.float()) or (mine.float() - theirs.float()).norm() < 1e-7 * theirs.norm()
        )


GUARDS = {
    "a forward hook": lambda module: module.register_forward_hook(lambda *_: None),
    "a forward pre-hook": lambda module: module.register_forward_pre_hook(lambda *_: None),
    "a backward hook": lambda module: module.register_full_backward_hook(lambda *_: None),
    "a forward of its own": lambda module: setattr(module, "forward", lambda x: x),
    "compiled": lambda module: module.compile(backend="eager"),
}


@pytest.mark.parametrize("guard", GUARDS)
@pytest.mark.parametrize("held", MODULES)
def test_a_module_that_must_be_called(held, guard):
    module = HELD[held][0]()
    GUARDS[guard](module)
    assert read_activation(module) is None
    assert unfit_activation(module) is not None


@pytest.mark.parametrize("kind", [nn.SiLU, nn.ReLU])
def test_working_in_place(kind):
    assert read_activation(kind(inplace=True)) is None
    assert unfit_activation(kind(inplace=True)) == "it works in place"


@pytest.mark.parametrize(
    ("held", "owner", "attribute"),
    [
        ("relu", F, "relu"),
        ("relu", nn.ReLU, "forward"),
        ("relu2", F, "relu"),
        ("relu2", torch, "square"),
        ("relu2", ReLUSquaredActivation, "forward"),
        ("quick_gelu", torch, "sigmoid"),
        ("quick_gelu", QuickGELUActivation, "forward"),
        ("sigmoid", torch, "sigmoid"),
        ("sigmoid", nn.Sigmoid, "forward"),
        ("gelu", F, "gelu"),
        ("gelu_new", torch, "tanh"),
        ("gelu_fast", torch, "tanh"),
        ("silu", F, "silu"),
        ("F.gelu", F, "gelu"),
        ("F.relu", F, "relu"),
        ("torch.relu", torch, "relu"),
        ("torch.sigmoid", torch, "sigmoid"),
    ],
)
def test_a_function_that_was_replaced(held, owner, attribute, monkeypatch):
    """For all modules of the process, and back."""
    make, name = HELD[held]
    assert read_activation(make()) == name
    original = getattr(owner, attribute)
    monkeypatch.setattr(owner, attribute, lambda *args, **kwargs: original(*args, **kwargs))
    given = make()
    FORMULA.replaced()  # asked first at every call of a block; it compares for the formulas that others hold
    assert read_activation(given) is None
    assert "was replaced by" in unfit_activation(given)
    monkeypatch.undo()
    FORMULA.replaced()
    assert read_activation(make()) == name


@pytest.mark.parametrize("held", HELD)
def test_read_while_tracing(held):
    given = HELD[held][0]()

    def function(x):
        return x + 1 if read_activation(given) == HELD[held][1] else x

    torch.compiler.reset()
    assert torch.equal(torch.compile(function, fullgraph=True, backend="eager")(torch.zeros(2)), torch.ones(2))
