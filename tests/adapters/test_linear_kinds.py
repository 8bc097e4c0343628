"""Readers of linear layers that are not exactly ``nn.Linear``: what they compute, and when they must be called."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from peft.tuners import lora
from torch import nn
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.pytorch_utils import Conv1D

from patchkit.adapters.linear_kinds import KNOWN, base_reader
from patchkit.adapters.registry import read_projection
from patchkit.testing import add_lora


class Made(nn.Linear):
    """It differs in how it is made: what it computes is what ``nn.Linear`` does."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        with torch.no_grad():
            self.weight.mul_(2)

    def extra_repr(self):
        return "made"


class MadeAgain(Made):
    pass


def conv1d(inputs, outputs):
    return Conv1D(outputs, inputs)


KINDS = {
    "Conv1D": conv1d,
    "FalconLinear": FalconLinear,
    "subclass": Made,
    "subclass of it": MadeAgain,
    "nn.Linear": nn.Linear,
}


class Model(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.layer = make(6, 4)

    def forward(self, x):
        return self.layer(x)


def adapted(make, **config):
    torch.manual_seed(0)
    model = add_lora(Model(make), target_modules=["layer"], task_type=None, r=2, **config)
    layer = next(module for module in model.modules() if isinstance(module, lora.Linear))
    with torch.no_grad():
        layer.base_layer.bias.normal_()
    return layer


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_weight_and_bias_are_those_of_a_linear_layer(make):
    layer = adapted(make)
    weight, bias, adapters = read_projection(layer)
    x = torch.randn(3, 6)
    torch.testing.assert_close(F.linear(x, weight, bias), layer.base_layer(x))
    assert len(adapters) == 1
    assert weight.data_ptr() == layer.base_layer.weight.data_ptr(), "no copy is made"


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("attribute", ["weight", "bias"])
def test_a_base_that_is_trained_gets_its_gradient(make, attribute):
    layer = adapted(make)
    parameter = getattr(layer.base_layer, attribute).requires_grad_(True)
    weight, bias, _ = read_projection(layer)
    F.linear(torch.randn(3, 6), weight, bias).sum().backward()
    assert parameter.grad is not None
    assert parameter.grad.shape == parameter.shape


def own_forward(cls):
    return type("Own", (cls,), {"forward": lambda self, x: cls.forward(self, x) + 1})


def own_attribute(name):
    return lambda cls: type("Own", (cls,), {name: property(lambda self: self._parameters["weight"])})


OTHERS = {
    "forward": own_forward,
    "weight": own_attribute("weight"),
    "bias": own_attribute("bias"),
    "__call__": lambda cls: type("Own", (cls,), {"__call__": lambda self, x: x}),
    "_call_impl": lambda cls: type("Own", (cls,), {"_call_impl": lambda self, x: x}),
    "__getattr__": lambda cls: type("Own", (cls,), {"__getattr__": lambda self, name: None}),
    "__getattribute__": lambda cls: type("Own", (cls,), {"__getattribute__": object.__getattribute__}),
}


@pytest.mark.parametrize("cls", [nn.Linear, Made, FalconLinear, Conv1D])
@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_a_subclass_with_something_of_its_own_is_not_read(cls, other):
    assert base_reader(other(cls)) is None


@pytest.mark.parametrize("cls", [nn.Bilinear, nn.Conv1d, nn.Identity])
def test_what_is_no_linear_layer_is_not_read(cls):
    assert base_reader(cls) is None


def test_another_class_of_falcons_name_is_not_falcons():
    class FalconLinear(nn.Linear):  # in another module
        def forward(self, x):
            return x

    assert base_reader(FalconLinear) is None


@pytest.mark.parametrize("make", [conv1d, FalconLinear, Made], ids=["Conv1D", "FalconLinear", "subclass"])
def test_a_forward_that_is_replaced_later_is_seen(make, monkeypatch):
    layer = adapted(make)
    assert not isinstance(read_projection(layer), str)
    monkeypatch.setattr(type(layer.base_layer), "forward", lambda self, x: x)
    assert "forward was replaced by" in read_projection(layer)
    monkeypatch.undo()
    assert not isinstance(read_projection(layer), str)


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("name", ["weight", "bias", "forward"])
def test_what_is_set_on_the_instance_is_seen(make, name):
    layer = adapted(make)
    layer.base_layer.__dict__[name] = lambda x: x
    assert f"{name} was replaced on the instance" in read_projection(layer)


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_a_hook_on_the_base_is_seen(make):
    layer = adapted(make)
    handle = layer.base_layer.register_forward_hook(lambda *_: None)
    assert read_projection(layer) == "base layer: a forward hook is registered on it"
    handle.remove()
    assert not isinstance(read_projection(layer), str)


def wrong_size(base):
    base.nf += 1


def no_bias(base):
    base.bias = None


def vector(base):
    base.weight = nn.Parameter(torch.zeros(6))


@pytest.mark.parametrize("change", [wrong_size, no_bias, vector])
def test_a_conv1d_whose_forward_would_fail_is_called(change):
    layer = adapted(conv1d)
    change(layer.base_layer)
    assert "its weight is not a matrix [in, out], or it has no bias" in read_projection(layer)


@pytest.mark.parametrize(
    ("bias", "autocast", "read"),
    [
        (torch.float32, False, True),
        (torch.float64, False, False),
        (torch.float32, True, False),
        (None, True, True),
    ],
)
def test_falcons_bias_is_added_outside_the_product(bias, autocast, read):
    """Under autocast, or in another dtype, the sum is of the wider dtype: a fused product would round it."""
    layer = adapted(FalconLinear)
    layer.base_layer.bias = None if bias is None else nn.Parameter(layer.base_layer.bias.detach().to(bias))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        assert isinstance(read_projection(layer), str) != read


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_dora_of_a_square_matrix_knows_which_way_round_it_is(make):
    """Nothing but the flag tells ``[in, out]`` from ``[out, in]`` then."""
    layer = adapted(lambda *_: make(5, 5), use_dora=True)
    assert not isinstance(read_projection(layer), str)
    other = copy.deepcopy(layer)
    magnitude = other.lora_magnitude_vector["default"]
    magnitude.fan_in_fan_out = not magnitude.fan_in_fan_out
    assert read_projection(other) == "its magnitude is of its weight transposed"


def test_the_readers_of_subclasses_are_kept():
    kept = len(KNOWN)
    first = base_reader(type("Once", (nn.Linear,), {}))
    assert len(KNOWN) == kept + 1
    assert first is not base_reader(type("Once", (nn.Linear,), {})), "one for each class"
    assert base_reader(nn.Linear) is base_reader(nn.Linear)
