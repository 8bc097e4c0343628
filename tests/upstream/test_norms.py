"""Which classes are norms that can be computed again, and what keeps others from it."""

from __future__ import annotations

import importlib

import pytest

from patchkit.upstream.norms import Norm, norm_of
from tests.upstream import norm_texts
from tests.upstream.norm_texts import NORMS, OTHERS

OF_TRANSFORMERS = {
    "llama.LlamaRMSNorm": (("variance_epsilon", "weight"), ()),
    "gemma3.Gemma3RMSNorm": (("eps", "weight"), ("_norm",)),
    "t5.T5LayerNorm": (("variance_epsilon", "weight"), ()),
    "cohere.CohereLayerNorm": (("variance_epsilon", "weight"), ()),
}


@pytest.mark.parametrize("cls", NORMS)
def test_arithmetic_on_one_tensor_is_a_norm(cls):
    found = norm_of(cls)
    assert isinstance(found, Norm), found
    assert found.function is cls.forward
    expected = {"Usual": ("eps", "weight"), "Deciding": ("eps", "weight", "with_scale")}
    assert found.attributes == expected.get(cls.__name__, ("eps", "weight"))
    methods = ("_norm",) if hasattr(cls, "_norm") else ()
    assert tuple(name for name, _ in found.methods) == methods
    assert all(function is getattr(cls, name) for name, function in found.methods)


@pytest.mark.parametrize("cls", OTHERS)
def test_anything_else_is_not(cls):
    found = norm_of(cls)
    assert isinstance(found, str)
    assert OTHERS[cls] in found


@pytest.mark.parametrize("name", OF_TRANSFORMERS)
def test_norms_of_transformers(name):
    kind, cls = name.split(".")
    module = importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")
    found = norm_of(getattr(module, cls))
    assert isinstance(found, Norm), found
    assert (found.attributes, tuple(name for name, _ in found.methods)) == OF_TRANSFORMERS[name]


def test_a_module_that_calls_something_else_torch(monkeypatch):
    monkeypatch.setattr(norm_texts, "torch", object())
    assert norm_of(norm_texts.Usual) == "torch is something else where its forward stands"


def test_a_class_without_source():
    space: dict = {"__name__": "nowhere"}
    exec("from torch import nn\nclass Bare(nn.Module):\n    def forward(self, x):\n        return x.float()", space)
    found = norm_of(space["Bare"])
    assert isinstance(found, str)
    assert "there is no source" in found
