"""Every part of a PEFT layer whose call is left out is asked, one at a time, whether calling it would change anything."""

from __future__ import annotations

import copy
import itertools
from types import MethodType

import peft
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from patchkit.adapters.registry import read_embedding, read_projection
from patchkit.runtime.methods import make_apply_linear
from patchkit.testing import randomise_adapter


class Small(nn.Module):
    """A linear layer and an embedding."""

    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(4, 6)
        self.table = nn.Embedding(5, 4)


def adapted(targets=("proj", "table"), **config):
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=list(targets), init_lora_weights=False, **config)
    module = peft.inject_adapter_in_model(config, Small()).train()
    randomise_adapter(module)
    return module


HOOKS = {
    "forward_pre": lambda part: part.register_forward_pre_hook(lambda module, args: (args[0] * 2,)),
    "forward": lambda part: part.register_forward_hook(lambda module, args, output: output * 2),
    "backward": lambda part: part.register_full_backward_hook(lambda module, gin, gout: (gin[0] * 2,)),
    "backward_pre": lambda part: part.register_full_backward_pre_hook(lambda module, gout: (gout[0] * 2,)),
    "replaced forward": lambda part: setattr(part, "forward", MethodType(lambda self, *args: args[0].sum(), part)),
    "replaced call": lambda part: setattr(part, "_call_impl", lambda *args: args[0].sum()),
    "compiled": lambda part: part.compile(backend="eager"),
}
SAID = {
    "replaced forward": "forward was replaced",
    "replaced call": "its call was replaced",
    "compiled": "module.compile()",
}

LINEAR = {
    "layer": lambda layer: layer,
    "base": lambda layer: layer.base_layer,
    "A": lambda layer: layer.lora_A["default"],
    "B": lambda layer: layer.lora_B["default"],
    "dropout": lambda layer: layer.lora_dropout["default"],
    "magnitude": lambda layer: layer.lora_magnitude_vector["default"],
}

EMBEDDING = {name: LINEAR[name] for name in ("base", "magnitude")}
"""PEFT looks A and B of an embedding up and calls neither, nor its dropout. The layer itself is called, hooks and all."""


@pytest.mark.parametrize(("part", "hook"), list(itertools.product(LINEAR, HOOKS)))
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_each_hook_on_each_part_of_a_projection(part, hook, dropout):
    layer = adapted(use_dora=part == "magnitude", lora_dropout=dropout).proj
    assert not isinstance(read_projection(layer), str)
    HOOKS[hook](LINEAR[part](layer))
    said = read_projection(layer)
    assert isinstance(said, str)
    assert SAID.get(hook, f"a {hook.partition('_')[0]} hook") in said


@pytest.mark.parametrize(("part", "hook"), list(itertools.product(EMBEDDING, HOOKS)))
def test_each_hook_on_each_part_of_an_embedding(part, hook):
    layer = adapted(use_dora=part == "magnitude").table
    assert not isinstance(read_embedding(layer), str)
    HOOKS[hook](EMBEDDING[part](layer))
    assert isinstance(read_embedding(layer), str)


@pytest.mark.parametrize("active", [["one"], ["two"], ["one", "two"], ["two", "one"], ["one", "three"], []], ids=str)
@pytest.mark.parametrize("copies", [["one"], ["one", "two"]], ids=str)
@pytest.mark.parametrize("disabled", [False, True])
def test_the_copy_of_modules_to_save_that_runs(active, copies, disabled):
    """PEFT runs a copy only if every active adapter has one, then that of the first."""
    module = Small()
    config = peft.LoraConfig(r=2, target_modules=["table"], modules_to_save=["proj"])
    wrapper = peft.inject_adapter_in_model(config, module, copies[0]).proj
    for name in copies[1:]:
        wrapper.update(name)
    for number, name in enumerate(copies):
        with torch.no_grad():
            wrapper.modules_to_save[name].weight.add_(1.0 + number)
    wrapper._active_adapter = active
    wrapper._disable_adapters = disabled
    x = torch.randn(3, 4)
    found = read_projection(wrapper)
    assert not isinstance(found, str)
    assert not found.adapters
    torch.testing.assert_close(F.linear(x, found.weight, found.bias), wrapper(x))


DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["plain", "autocast"])
@pytest.mark.parametrize("kind", ["no vectors", "bias of B", "magnitude"])
@pytest.mark.parametrize("given", DTYPES, ids=str)
def test_each_dtype_of_each_tensor(given, kind, autocast):
    """A projection gives the dtype that PEFT's layer gives, and what raises there raises here."""
    layers = adapted(("proj",), use_dora=kind == "magnitude", lora_bias=kind == "bias of B").proj
    x = torch.randn(3, 4).to(given)
    apply_linear = make_apply_linear("peft")
    raised = compared = 0
    for weight, bias, lora, vector in itertools.product(DTYPES, [None, *DTYPES], DTYPES, DTYPES):
        layer = copy.deepcopy(layers)
        layer.base_layer.weight.data = layer.base_layer.weight.data.to(weight)
        if bias is None:
            layer.base_layer.bias = None
        else:
            layer.base_layer.bias.data = layer.base_layer.bias.data.to(bias)
        for part in (layer.lora_A["default"], layer.lora_B["default"]):
            part.weight.data = part.weight.data.to(lora)
        if kind == "bias of B":
            layer.lora_B["default"].bias.data = layer.lora_B["default"].bias.data.to(vector)
        elif kind == "magnitude":
            magnitude = layer.lora_magnitude_vector["default"]
            magnitude.weight.data = magnitude.weight.data.to(vector)
        elif vector != torch.float32:
            continue
        case = f"weight {weight}, bias {bias}, adapter {lora}, vector {vector}"
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast is not None):
            try:
                expected = layer(x)
            except RuntimeError:
                with pytest.raises(RuntimeError):
                    apply_linear(None, layer, x)
                raised += 1
                continue
            found = apply_linear(None, layer, x)
        assert found.dtype == expected.dtype, case
        # A few roundings of the coarsest dtype in the game, of values of order 1.
        torch.testing.assert_close(found, expected, rtol=4e-2, atol=8e-2, msg=lambda text, case=case: f"{case}: {text}")
        compared += 1
    assert compared
    assert raised or autocast is not None


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("shape", [(4,), (1, 4), (3, 4), (2, 3, 4), (0, 4)], ids=str)
def test_any_number_of_dimensions(shape, dora, dropout):
    """DoRA makes a matrix of a single vector, which is PEFT's to do."""
    layer = adapted(("proj",), use_dora=dora, lora_dropout=dropout).proj
    x = torch.randn(shape)
    torch.manual_seed(1)
    expected = layer(x)
    torch.manual_seed(1)
    found = make_apply_linear("peft")(None, layer, x)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("scaling", [0.0, -2.5, 3, 1e300])
def test_scaling_is_any_finite_number(scaling):
    layer = adapted(["proj"]).proj
    layer.scaling["default"] = scaling
    assert read_projection(layer).adapters[0].scaling == scaling


@pytest.mark.parametrize("scaling", [float("inf"), -float("inf"), float("nan"), True, None, torch.tensor(2.0)], ids=str)
def test_scaling_that_is_no_finite_number(scaling):
    layer = adapted(["proj"]).proj
    layer.scaling["default"] = scaling
    assert read_projection(layer).startswith("its scaling is ")


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_base_whose_tensor_is_a_buffer(name):
    """It is the base that is named, and not the adapter."""
    layer = adapted(["proj"]).proj
    tensor = getattr(layer.base_layer, name).detach()
    delattr(layer.base_layer, name)
    layer.base_layer.register_buffer(name, tensor)
    assert read_projection(layer) == f"base layer: its {name} is not a parameter"


@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("part", ["base", "A", "B"])
def test_what_hides_a_parameter(part, name):
    layer = adapted(["proj"]).proj
    LINEAR[part](layer).__dict__[name] = torch.ones(1)
    assert f"{name} was replaced on the instance" in read_projection(layer)


DROPOUTS = {
    "in place": (nn.Dropout(0.3, inplace=True), "its dropout works in place"),
    "of another kind": (nn.AlphaDropout(0.3), "its dropout is a AlphaDropout"),
}


@pytest.mark.parametrize("kind", DROPOUTS)
def test_dropout_that_is_left_to_peft(kind):
    layer = adapted(["proj"], lora_dropout=0.3).proj
    layer.lora_dropout["default"], reason = DROPOUTS[kind]
    assert read_projection(layer) == reason


@pytest.mark.parametrize(("part", "gone"), [("A", "in_features"), ("B", "in_features"), ("dropout", "p")])
def test_a_replaced_forward_where_another_attribute_is_gone(part, gone):
    """As many attributes as ever, and not the same ones."""
    layer = adapted(["proj"], lora_dropout=0.3).proj
    module = LINEAR[part](layer)
    delattr(module, gone)
    module.forward = MethodType(lambda self, *args: args[0].sum(), module)
    assert read_projection(layer) == "A, B or dropout of adapter 'default': forward was replaced on the instance"
