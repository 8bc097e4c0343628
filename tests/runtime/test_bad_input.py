"""Models and inputs that are wrong, or become wrong after ``apply``: upstream's error, or upstream's behaviour.

Each row of the table breaks something, on a patched model and on an unpatched copy. Where upstream raises, in the change
or in the step after it, the type and the message of the error are the same; where it does not, so are the numbers, NaN
and infinities included.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import peft
import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP

import patchkit
from patchkit.testing import TEXT_PROJECTIONS, add_lora, randomise_adapter, tiny_model

try:
    from peft.utils.error import NoMatchingPeftModuleError
except ImportError:  # before PEFT 0.21
    NoMatchingPeftModuleError = ValueError

pytestmark = pytest.mark.filterwarnings("ignore::patchkit.errors.PatchkitWarning", "ignore::UserWarning")


class Bad(NamedTuple):
    """Something wrong.

    Attributes:
        name: of the row.
        change: what is done to the model after ``apply``.
        error: the error that upstream raises, and some words of it; None if it raises none.
        config: of the adapters.
        values: of the inputs, at ``[0, 1, 2]`` and ``[1, 0, 3]``.
    """

    name: str
    change: Callable[[nn.Module], object]
    error: tuple[type[Exception], str] | None = None
    config: dict[str, object] = {}  # noqa: RUF012
    values: tuple[float, ...] = ()


def named(model, *names):
    found = [module for name, module in model.named_modules() if name.endswith(names)]
    assert found, names
    return found


def replace_weight(names, shape_of):
    """Gives layers another weight, of a shape computed from the old one's."""

    def change(model):
        for index, module in enumerate(named(model, *names)):
            generator = torch.Generator().manual_seed(index)
            module.weight = nn.Parameter(torch.randn(shape_of(*module.weight.shape), generator=generator))

    return change


def to_meta(*names):
    return lambda model: [module.to("meta") for module in named(model, *names)]


def active(*adapters):
    def change(model):
        for module in named(model, "q_proj", "up_proj", "o_proj"):
            module._active_adapter = list(adapters)

    return change


def remove(attribute):
    """Takes away one of the things that PEFT keeps for each adapter."""

    def change(model):
        for module in named(model, "q_proj", "gate_proj"):
            del getattr(module, attribute)["default"]

    return change


def scaling(value):
    def change(model):
        for module in named(model, "k_proj", "down_proj"):
            module.scaling["default"] = value

    return change


def rank_zero_weights(model):
    replace_weight(["q_proj.lora_A.default", "down_proj.lora_A.default"], lambda rank, width: (0, width))(model)
    replace_weight(["q_proj.lora_B.default", "down_proj.lora_B.default"], lambda width, rank: (width, 0))(model)


def add_adapter(**config):
    def change(model):
        model.add_adapter("second", peft.LoraConfig(**{"r": 2, "target_modules": ["q_proj"]} | config))
        randomise_adapter(model, "second", seed=3)
        model.set_adapter("second")

    return change


def fill(names, value):
    @torch.no_grad()
    def change(model):
        for name, parameter in model.named_parameters():
            if all(part in name for part in names):
                parameter[0 if value != value else slice(None)] = value

    return change


def plain_linears(model):
    """Adapters and all replaced by layers without any."""
    for parent in model.modules():
        for name in {"q_proj", "up_proj"} & set(parent._modules):
            generator = torch.Generator().manual_seed(len(name))
            old = getattr(parent, name)
            new = nn.Linear(old.in_features, old.out_features)
            with torch.no_grad():
                new.weight.copy_(torch.randn(new.weight.shape, generator=generator) / 8)
                new.bias.copy_(torch.randn(new.bias.shape, generator=generator))
            setattr(parent, name, new)


def set_child(kind, name, value):
    def change(model):
        for module in [module for module in model.modules() if isinstance(module, kind)]:
            setattr(module, name, value() if callable(value) else value)

    return change


def delete_child(model):
    for module in [module for module in model.modules() if isinstance(module, LlamaAttention)]:
        del module.q_proj


def new_blocks(model):
    """Whole blocks replaced: these were never patched."""
    for layer in model.base_model.model.model.layers:
        new = LlamaMLP(model.config)
        new.load_state_dict(tiny_model("llama").model.layers[1].mlp.state_dict())
        layer.mlp = new


def other_base(bias_shape=None, dtype=torch.float32, device="cpu"):
    def change(model):
        for module in named(model, "v_proj.base_layer", "down_proj.base_layer"):
            shape = bias_shape or (module.out_features,)
            module.bias = nn.Parameter(torch.ones(shape, dtype=dtype, device=device))

    return change


def nothing(model):
    pass


TABLE = [
    Bad("no such adapter", lambda m: m.set_adapter("nope"), (ValueError, "nope")),
    Bad("no such adapter, in the layers", active("nope")),
    Bad("no adapter active", active()),
    Bad("one adapter twice", active("default", "default")),
    Bad("one that exists and one that does not", active("nope", "default")),
    Bad("an adapter on other layers", add_adapter(target_modules=["v_proj", "down_proj"])),
    Bad("an adapter on no layer", add_adapter(target_modules=["nowhere"]), (NoMatchingPeftModuleError, "nowhere")),
    Bad("rank zero", add_adapter(r=0), (ValueError, "`r` should be a positive integer")),
    Bad("negative rank", add_adapter(r=-1), (ValueError, "`r` should be a positive integer")),
    Bad("weights of rank zero", rank_zero_weights),
    Bad("the last adapter deleted", lambda m: m.delete_adapter("default"), (KeyError, "default")),
    Bad("an adapter without B", remove("lora_B"), (KeyError, "default")),
    Bad("an adapter without scaling", remove("scaling"), (KeyError, "default")),
    Bad("an adapter without dropout", remove("lora_dropout"), (KeyError, "default")),
    Bad(
        "A of another width", replace_weight(["v_proj.lora_A.default"], lambda r, n: (r, n - 1)), (RuntimeError, "mat1")
    ),
    Bad(
        "B of another rank", replace_weight(["up_proj.lora_B.default"], lambda n, r: (n, r - 1)), (RuntimeError, "mat1")
    ),
    Bad(
        "base of another width", replace_weight(["o_proj.base_layer"], lambda m, n: (m, n + 1)), (RuntimeError, "mat1")
    ),
    Bad("bias of another width", other_base(bias_shape=(7,)), (RuntimeError, "expanded size of the tensor")),
    Bad("bias on meta", other_base(device="meta"), (RuntimeError, "meta")),
    Bad("adapter on meta", to_meta("v_proj.lora_A", "up_proj.lora_A"), (RuntimeError, "meta")),
    Bad("layer on meta", to_meta("layers.1"), (RuntimeError, "meta")),
    Bad("scaling infinite", scaling(float("inf"))),
    Bad("scaling zero", scaling(0.0)),
    Bad("scaling an integer", scaling(3)),
    Bad("scaling a tensor", scaling(torch.tensor(0.5))),
    Bad("scaling nothing", scaling(None), (TypeError, "NoneType")),
    Bad("weight NaN", fill(["down_proj", "base_layer.weight"], float("nan"))),
    Bad("adapter NaN", fill(["q_proj", "lora_A"], float("nan"))),
    Bad("magnitude zero", fill(["lora_magnitude_vector"], 0.0), config={"use_dora": True}),  # F24
    Bad("magnitude NaN", fill(["lora_magnitude_vector"], float("nan")), config={"use_dora": True}),
    Bad("inputs NaN", nothing, values=(float("nan"),)),
    Bad("inputs infinite", nothing, values=(float("inf"), float("-inf"))),
    Bad("inputs NaN, DoRA and dropout", nothing, None, {"use_dora": True, "lora_dropout": 0.2}, (float("nan"),)),
    Bad("layers replaced", plain_linears),
    Bad("a projection that is none", set_child(LlamaAttention, "o_proj", nn.Identity)),
    Bad("a projection that is a function", set_child(LlamaMLP, "up_proj", nn.Tanh), (RuntimeError, "size of tensor")),
    Bad("a projection that is None", set_child(LlamaMLP, "up_proj", None), (TypeError, "'NoneType' object")),
    Bad("a projection that is gone", delete_child, (AttributeError, "no attribute 'q_proj'")),
    Bad("an activation that is None", set_child(LlamaMLP, "act_fn", None), (TypeError, "'NoneType' object")),
    Bad("blocks replaced", new_blocks),
]


def outcome(action):
    """What an action returns or raises."""
    try:
        return action()
    except Exception as error:
        return type(error), str(error)


def step(model, values):
    """Logits, and every gradient by its parameter's name."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    x = torch.randn(2, 5, 64)
    for place, value in zip(((0, 1, 2), (1, 0, 3)), values, strict=False):
        x[place] = value
    logits = model(inputs_embeds=x, use_cache=False).logits
    logits.sum().backward()
    return {"logits": logits.detach()} | {
        name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
    }


def assert_same(expected, found):
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        assert (found[name].device, found[name].dtype) == (wanted.device, wanted.dtype)
        if wanted.is_meta:
            continue
        finite = wanted.isfinite()
        assert torch.equal(found[name].isnan(), wanted.isnan()), name
        assert torch.equal(found[name][wanted.isinf()], wanted[wanted.isinf()]), name
        error = (found[name][finite] - wanted[finite]).norm()
        assert error <= 1e-5 * wanted[finite].norm(), (name, error)


@pytest.mark.parametrize("bad", TABLE, ids=lambda bad: bad.name)
def test_same_as_upstream(bad):
    model = add_lora(tiny_model("llama"), target_modules=list(TEXT_PROJECTIONS), **bad.config).train()
    reference = copy.deepcopy(model)
    patchkit.apply(model)
    changed = [outcome(lambda copied=copied: bad.change(copied)) for copied in (reference, model)]
    expected, found = (outcome(lambda copied=copied: step(copied, bad.values)) for copied in (reference, model))
    raised = changed[0] if isinstance(changed[0], tuple) else expected
    if bad.error is None:
        assert isinstance(expected, dict), expected
        assert_same(expected, found)
    else:
        assert raised[0] is bad.error[0]
        assert bad.error[1] in raised[1]
        assert (changed[1] if isinstance(changed[0], tuple) else found) == raised
