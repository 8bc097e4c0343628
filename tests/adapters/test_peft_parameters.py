"""The reader of ParamWrapper: its factors give PEFT's own delta, and each state is read or left with its reason."""

from __future__ import annotations

from types import MethodType

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import ParamWrapper
from torch import nn

from patchkit.adapters.peft_parameters import (
    AdaptedParameters,
    ParameterAdapter,
    adapts_stack,
    read_parameters,
    wrappers,
)
from patchkit.testing import add_lora, randomise_adapter

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

EXPERTS, OUT, IN = 3, 6, 4


class Holder(nn.Module):
    """Parameters of every form that PEFT adapts, in one module."""

    def __init__(self):
        super().__init__()
        self.stack = nn.Parameter(torch.randn(EXPERTS, OUT, IN))
        self.other = nn.Parameter(torch.randn(EXPERTS, IN, OUT))
        self.matrix = nn.Parameter(torch.randn(OUT, IN))
        self.single = nn.Parameter(torch.randn(1, OUT, IN))

    def forward(self, x):
        return x


class TurnedHolder(Holder):
    """As transformers marks stacks ``[experts, in, out]``."""

    is_transposed = True


class Model(nn.Module):
    def __init__(self, holder=Holder):
        super().__init__()
        self.holder = holder()

    def forward(self, x):
        return self.holder(x)


def adapted(holder=Holder, names=("stack",), **config):
    torch.manual_seed(0)
    options = {"target_modules": [], "target_parameters": [f"holder.{name}" for name in names], "task_type": None}
    return add_lora(Model(holder), **(options | {"r": 2} | config)).base_model.model.holder


def read(module) -> AdaptedParameters:
    found = read_parameters(module)
    assert isinstance(found, AdaptedParameters), found
    return found


@pytest.mark.parametrize("config", [{}, {"lora_alpha": 3}, {"use_rslora": True}, {"r": 1}], ids=str)
@pytest.mark.parametrize("name", ["stack", "other", "matrix", "single"])
@pytest.mark.parametrize("holder", [Holder, TurnedHolder])
def test_the_factors_give_pefts_delta(holder, name, config):
    module = adapted(holder, [name], **config)
    base, ((found, weight, (adapter,), swapped),), chain = read(module)
    assert (base, found, chain) == (module.base_layer, name, (module,))
    assert weight is module.get_param()
    left, right = adapter.factors(weight, swapped=swapped)
    delta = adapter.scaling * (left @ right)
    wanted = module.get_delta_weight("default")
    wanted = wanted.expand(delta.shape) if name == "single" else wanted
    assert delta.shape == wanted.shape
    assert (delta - wanted).norm() <= 1e-6 * wanted.norm()
    assert wanted.norm() > 0.1


@pytest.mark.parametrize("swapped", [True, False])
def test_the_factors_are_matrices_that_products_take(swapped):
    """B's matrices lie in turns and are copied once; A's lie one after the other and are not."""
    adapter = ParameterAdapter(torch.randn(6, 5), torch.randn(4, 6), 1.0)
    left, right = adapter.factors(torch.randn(3, 4, 5) if swapped else torch.randn(3, 5, 4), swapped=swapped)
    a, b = (right, left) if swapped else (left.mT, right.mT)
    assert (a.shape, b.shape) == ((3, 2, 5), (3, 4, 2))
    assert a.data_ptr() == adapter.lora_a.data_ptr()
    assert a.is_contiguous()
    assert b.is_contiguous()
    for e in range(3):
        assert torch.equal(a[e], adapter.lora_a[2 * e : 2 * e + 2])
        assert torch.equal(b[e], adapter.lora_b[:, e::3])


def test_the_factors_have_the_weights_dtype_and_hand_gradients_on():
    module = adapted()
    module.base_layer.to(torch.bfloat16)
    ((_, weight, (adapter,), swapped),) = read(module).parameters
    left, right = adapter.factors(weight, swapped=swapped)
    assert (weight.dtype, left.dtype, right.dtype) == (torch.bfloat16,) * 3
    (left.sum() + right.sum()).backward()
    for factor in adapter[:2]:
        assert torch.equal(factor.grad, torch.ones_like(factor))


def test_nested_wrappers_from_the_outside_in():
    module = adapted(names=["stack", "other", "matrix"])
    chain = list(wrappers(module))
    assert len(chain) == 3
    assert [parameter.name for parameter in read(module).parameters] == [one.parameter_name for one in chain]
    assert read(module).module is chain[-1].base_layer
    assert read(module).wrappers == tuple(chain)
    assert adapts_stack(module)
    assert not adapts_stack(adapted(names=["matrix"]))


def test_several_adapters_in_their_order():
    torch.manual_seed(0)
    model = Model()
    config = {"target_modules": [], "target_parameters": ["holder.stack"], "init_lora_weights": False}
    peft_model: PeftModel = get_peft_model(model, LoraConfig(r=2, **config))
    try:
        peft_model.add_adapter("second", LoraConfig(r=3, lora_alpha=5, **config))
    except ValueError as error:
        pytest.skip(f"PEFT {peft.__version__} takes one adapter on parameters: {error}")
    peft_model.base_model.set_adapter(["second", "default"])
    for name in ("default", "second"):
        randomise_adapter(peft_model, name)
    module = peft_model.base_model.model.holder
    ((_, weight, adapters, swapped),) = read(module).parameters
    found = [adapter.scaling * torch.matmul(*adapter.factors(weight, swapped=swapped)) for adapter in adapters]
    for delta, name in zip(found, ("second", "default"), strict=True):
        wanted = module.get_delta_weight(name)
        assert (delta - wanted).norm() <= 1e-6 * wanted.norm()


def outer(module):
    return module


def inner(module):
    return module.base_layer


NOTHING = {
    "merged": lambda module: [one.merge() for one in wrappers(module)],
    "disabled": lambda module: [one.enable_adapters(False) for one in wrappers(module)],
    "none active": lambda module: [one.set_adapter([]) for one in wrappers(module)],
}


@pytest.mark.parametrize("name", NOTHING)
def test_states_without_an_adapter(name):
    module = adapted(names=["stack", "other"])
    NOTHING[name](module)
    assert read(module).parameters == ()


@pytest.mark.parametrize("which", [outer, inner])
@pytest.mark.parametrize("name", NOTHING)
def test_each_wrapper_has_a_state_of_its_own(name, which):
    module = adapted(names=["stack", "other"])
    chosen = which(module)
    {
        "merged": lambda: chosen.merge(),
        "disabled": lambda: chosen.enable_adapters(False),
        "none active": lambda: chosen.set_adapter([]),
    }[name]()
    (found,) = read(module).parameters
    assert found.name != chosen.parameter_name


def hook(module):
    module.register_forward_hook(lambda *args: None)


def replaced(name):
    return lambda module: vars(module).update({name: MethodType(lambda self, *args: None, module)})


def subclassed(module):
    module.__class__ = type("Sub", (ParamWrapper,), {})


LEFT = {
    "inner hook": (inner, hook, "a forward hook is registered on it"),
    "inner forward": (inner, replaced("forward"), "forward was replaced on the instance"),
    "inner subclass": (inner, subclassed, "Sub"),
    "get_param": (outer, replaced("get_param"), "get_param was replaced on the instance"),
    "inner get_param": (inner, replaced("get_param"), "get_param was replaced on the instance"),
    "get_delta_weight": (outer, replaced("get_delta_weight"), "get_delta_weight was replaced on the instance"),
    "disabled while merged": (
        outer,
        lambda module: (module.merge(), vars(module).update(_disable_adapters=True)),
        "its adapters are disabled",
    ),
    "scaling": (outer, lambda module: module.scaling.update(default=torch.ones(())), "its scaling is a Tensor"),
    "no scaling": (outer, lambda module: module.scaling.clear(), "its adapter lacks a part"),
    "A is no linear": (
        outer,
        lambda module: module.lora_A.update({"default": nn.Identity()}),
        "not made of two linear layers",
    ),
    "B has a bias": (
        outer,
        lambda module: module.lora_B.update({"default": nn.Linear(EXPERTS * 2, OUT)}),
        "not made of two linear layers without bias",
    ),
    "no parameter": (
        outer,
        lambda module: module.get_base_layer()._parameters.pop(module.parameter_name),
        "it is not a parameter of its module",
    ),
    "another shape": (
        outer,
        lambda module: module.get_base_layer()._parameters.update(
            {module.parameter_name: nn.Parameter(torch.ones(EXPERTS + 1, 2, 2))}
        ),
        "it has shape",
    ),
    "the same parameter": (
        inner,
        lambda module: vars(module).update(parameter_name="other"),
        "two of its wrappers adapt the same parameter",
    ),
    "a ModuleDict of another kind": (
        outer,
        lambda module: setattr(module.lora_A, "__class__", type("Own", (nn.ModuleDict,), {})),
        "not kept in a torch.nn.ModuleDict",
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left_to_peft(name):
    which, change, reason = LEFT[name]
    module = adapted(names=["stack", "other"])
    assert module.parameter_name == "other"
    change(which(module))
    found = read_parameters(module)
    assert isinstance(found, str)
    assert reason in found


@pytest.mark.parametrize("name", ["forward", "get_param", "get_delta_weight", "_activate_lora", "merged"])
def test_a_function_of_peft_that_is_replaced(name, monkeypatch):
    module = adapted()
    read(module)
    value = property(lambda self: False) if name == "merged" else lambda self, *args: None
    monkeypatch.setattr(ParamWrapper, name, value)
    found = read_parameters(module)
    assert isinstance(found, str)
    assert f"{name} was replaced" in found


def test_hooks_on_the_outermost_wrapper_are_its_callers_concern():
    module = adapted()
    hook(module)
    assert read(module).parameters


def test_another_tuner_inside():
    """A wrapper around a layer of PEFT that is none: never made by PEFT, and left to it."""
    module = adapted()
    module.base_layer = add_lora(nn.Sequential(nn.Linear(2, 2)), target_modules=["0"], task_type=None).base_model.model[
        0
    ]
    found = read_parameters(module)
    assert isinstance(found, str)
    assert found.startswith("in it is a peft.")
