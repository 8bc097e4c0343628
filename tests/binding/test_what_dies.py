"""Nothing of patchkit keeps a model alive, nor classes that their module no longer has."""

from __future__ import annotations

import copy
import gc
import importlib.util
import sys
import weakref

import pytest
import torch
from peft import LoraConfig, get_peft_model

import patchkit
from patchkit.module_tree import forget_replaced
from patchkit.testing import run, tiny_inputs

OWN = """
import torch
import torch.nn.functional as F
from torch import nn

class OwnAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x):
        q, k, v = self.q(x), self.k(x), self.v(x)
        return self.o(torch.softmax(q @ k.mT, -1) @ v)

class OwnMLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.w1, self.w2, self.w3 = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 32)

    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))

class OwnNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.mlp = OwnAttention(), OwnMLP()

    def forward(self, x):
        return self.mlp(self.attention(x))
"""


def left_patched(model):
    patchkit.apply(model)


def reverted(model):
    patchkit.apply(model)
    patchkit.revert(model)


def for_a_while(model):
    with patchkit.patched(model):
        patchkit.report(model)


def copied(model):
    patchkit.apply(model)
    copy.deepcopy(model)


def strict_in_vain(model):
    with pytest.raises(patchkit.errors.PatchkitError):
        patchkit.apply(model, strict=True, qkv=False, mlp=False, trust="nothing")


@pytest.mark.parametrize("life", [left_patched, reverted, for_a_while, copied, strict_in_vain])
def test_a_model_dies(lora_model, life):
    held = list(lora_model())
    model = held[1]
    life(model)
    run(model, tiny_inputs("llama", model))
    modules = [weakref.ref(module) for module in model.modules()]
    weights = [weakref.ref(parameter) for parameter in model.parameters()]
    held.clear()
    del model
    gc.collect()
    assert [one().__class__ for one in modules if one() is not None] == []
    assert not [one for one in weights if one() is not None]


def own_model(folder):
    """A model of classes of one's own, whose module is made anew, as a notebook does that runs a cell again."""
    path = folder / "own_classes.py"
    path.write_text(OWN)
    spec = importlib.util.spec_from_file_location("own_classes", path)
    module = sys.modules["own_classes"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return get_peft_model(module.OwnNet(), LoraConfig(target_modules="all-linear", init_lora_weights=False))


def used(model):
    report = patchkit.apply(model, trust="always")
    assert {row.part for row in report.at("fused")} == {"qkv", "o", "mlp"}
    model(torch.randn(2, 3, 16)).sum().backward()
    patched = [type(module) for module in model.modules() if type(module).__name__ in {"OwnAttention", "OwnMLP"}]
    return [weakref.ref(cls) for one in patched for cls in one.__mro__[:2]]


def test_classes_die_that_were_defined_anew(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "own_classes", None)
    classes = used(own_model(tmp_path))
    again = own_model(tmp_path)
    kept = used(again)
    gc.collect()
    assert len(classes) == 4
    assert [one() for one in classes if one() is not None] == []
    assert all(one() is not None for one in kept)


def test_a_model_of_classes_that_were_defined_anew_is_patched_and_reverted(tmp_path, monkeypatch):
    """Its own classes are no longer those of their module, and each is made once all the same."""
    monkeypatch.setitem(sys.modules, "own_classes", None)
    first, second = own_model(tmp_path), own_model(tmp_path)
    used(second)
    used(first)
    types = [type(module) for module in first.modules()]
    patchkit.report(first)
    patchkit.apply(first, trust="always")
    assert [type(module) for module in first.modules()] == types
    assert patchkit.revert(first) > 0
    assert not any("__patchkit__" in vars(type(module)) for module in first.modules())


def test_what_is_known_of_a_class_is_dropped_for_one_that_is_current():
    inner = type("Inner", (), {"__module__": __name__})
    known = {(torch.nn.Linear, 1): "a", (inner, 1): "b"}
    forget_replaced(known, inner)
    assert len(known) == 2, "nothing is dropped for one that is not current itself"
    forget_replaced(known, torch.nn.Embedding)
    assert list(known.values()) == ["a"]
