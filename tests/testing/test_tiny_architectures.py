"""Which tiny models an architecture has, patchkit's own or a plugin's, and what cannot be made into one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from patchkit.arch.registry import find
from patchkit.arch.spec import MLP, Architecture
from patchkit.errors import TinyModelError
from patchkit.testing import tiny_models_of
from patchkit.testing.tiny.architectures import source_of_tiny, tiny_names, tiny_of

pytest_plugins = ["example_plugin"]

MINE = Architecture("mine", ("qwen3", "qwen3_moe"), "transformers.models.qwen3.modeling_qwen3", (MLP("X"),))

NAMES = {
    "its model types": (MINE, ("qwen3", "qwen3_moe")),
    "its model": (replace(MINE, model="Qwen3ForCausalLM"), ("Qwen3ForCausalLM",)),
    "a model elsewhere": (replace(MINE, model="a.b:Model"), ("Model",)),
    "nothing": (replace(MINE, model_types=()), ()),
    # Its own name is no recipe's: what patchkit has under it is another model.
    "the name of a recipe": (replace(MINE, name="llava_qwen2"), ("qwen3", "qwen3_moe")),
}


@pytest.mark.parametrize(("architecture", "names"), NAMES.values(), ids=NAMES)
def test_the_names_of_a_plugins_tiny_models(architecture, names):
    assert tiny_names(architecture) == names


@pytest.mark.parametrize("name", ["llama", "llava", "gemma3"])
def test_patchkits_own_have_recipes(name):
    assert tiny_names(find(name)) == tiny_models_of(name) != ()


def test_a_model_type_of_transformers():
    assert source_of_tiny(MINE, "qwen3") == "qwen3"
    model, inputs = tiny_of(MINE, "qwen3", batch=3, length=9, hidden_size=32)
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert model.config.hidden_size == 32
    assert inputs["input_ids"].shape == inputs["labels"].shape == (3, 9)


def test_the_model_class_of_a_plugin(acme):
    from acme_models.modeling_acme import AcmeForCausalLM, AcmeModel

    assert source_of_tiny(acme, "AcmeForCausalLM") is AcmeForCausalLM
    assert source_of_tiny(replace(acme, model="acme_models.modeling_acme:AcmeModel"), "AcmeModel") is AcmeModel
    model, inputs = tiny_of(acme, "AcmeForCausalLM")
    assert type(model) is AcmeForCausalLM
    assert {"input_ids", "labels"} <= set(inputs)


NONE = {
    "a type that there is not": (MINE, "qwen33", r"no model type 'qwen33'; name a class in the architecture: model=\"CLASS\""),
    "no type": (MINE, "", "architecture 'mine' has no model; name a class"),
    "no recipe": (find("llama"), "", "patchkit.testing has no recipe of it"),
    "no class": (replace(MINE, model="Nothing"), "Nothing", "names the model .*qwen3:Nothing, which cannot be imported: Attr"),
    "no module": (replace(MINE, model="nowhere:X"), "X", "names the model nowhere:X, which cannot be imported: ModuleNot"),
    "no model": (replace(MINE, model="Qwen3MLP"), "Qwen3MLP", "qwen3:Qwen3MLP, which is neither a PreTrainedModel nor"),
    "no class at all": (replace(MINE, model="ACT2FN"), "ACT2FN", "qwen3:ACT2FN, which is neither a PreTrainedModel nor a func"),
}  # fmt: skip


@pytest.mark.parametrize(("architecture", "name", "said"), NONE.values(), ids=NONE)
def test_what_no_tiny_model_is_made_of(architecture, name, said):
    with pytest.raises(TinyModelError, match=said):
        tiny_of(architecture, name)


# ---- a function that makes one


def right():
    return torch.nn.Linear(4, 4).eval(), {"input": torch.ones(2, 4)}


def failing():
    raise KeyError("sizes")


def unfinished():
    return torch.nn.Linear(..., 4), {"input": ...}


def alone():
    return torch.nn.Linear(4, 4)


def no_model():
    return "a model", {}


def no_tensors():
    return torch.nn.Linear(4, 4), {"input": ...}


def no_names():
    return torch.nn.Linear(4, 4), [torch.ones(2, 4)]


def test_a_function_makes_one():
    """Its weights are drawn anew, the same each time; nothing else is changed but the mode."""
    architecture = replace(MINE, model=f"{__name__}:right")
    assert tiny_names(architecture) == ("right",)
    state = torch.get_rng_state()
    first, second = tiny_of(architecture, "right"), tiny_of(architecture, "right", length=99)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.model.training
    assert torch.equal(first.model.weight, second.model.weight)
    assert first.model.bias.abs().min() > 0
    assert torch.equal(first.inputs["input"], torch.ones(2, 4))


WRONG = {
    "failing": "fails: KeyError: 'sizes'",
    "unfinished": "fails: TypeError: ",
    "alone": "returns no pair of a model and the keyword arguments of its forward",
    "no_model": "returns no pair of a model and",
    "no_tensors": "returns inputs that are no tensors by name",
    "no_names": "returns inputs that are no tensors by name",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_function_that_makes_none(name):
    with pytest.raises(TinyModelError, match=f"{__name__}:{name} {WRONG[name]}"):
        tiny_of(replace(MINE, model=f"{__name__}:{name}"), name)
