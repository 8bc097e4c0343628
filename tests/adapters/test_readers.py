"""The table of readers: libraries join it when a layer of theirs is met, and none is imported for that."""

from __future__ import annotations

import copy
import subprocess
import sys
import textwrap
import types

import loralib
import pytest
import torch
from peft.tuners import lora
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from replacing import fill, replaced
from torch import nn
from torchtune.modules.peft import DoRALinear, LoRALinear

import patchkit
from patchkit.adapters import registry
from patchkit.adapters.formula import Formula
from patchkit.adapters.linear import read_linear
from patchkit.adapters.peft import peft_library
from patchkit.adapters.protocol import Library
from patchkit.adapters.registry import carries_adapter, casts_input
from patchkit.runtime.levels import Input, examine
from patchkit.testing import add_lora, compare_runs, run, tiny_inputs, tiny_model

ASKED_FIRST = ["carries_adapter(layer)", "len(read_projection(layer).adapters) == 1"]


@pytest.mark.parametrize("question", ASKED_FIRST)
def test_libraries_are_met_with_their_first_layer(question):
    code = f"""
        import sys
        from torch import nn
        import patchkit
        from patchkit.adapters.registry import READERS, carries_adapter, read_projection
        from patchkit.testing import tiny_model

        known = set(READERS)
        patchkit.apply(tiny_model("llama"))
        assert isinstance(read_projection(nn.Bilinear(2, 2, 2)), str)
        assert not carries_adapter(nn.Linear(2, 2))
        assert not {{"loralib", "torchtune"}} & set(sys.modules)
        assert set(READERS) == known

        import loralib
        layer = loralib.Linear(4, 4, r=2)
        assert {question}
        assert set(READERS) - known == {{loralib.Linear, loralib.MergedLinear}}
        assert "torchtune" not in sys.modules
        """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_release_without_the_known_layers_runs_upstream(monkeypatch, caplog):
    class Layer(nn.Linear):
        pass

    monkeypatch.setitem(registry._NOT_MET, "a_library.layers", "patchkit.adapters.of_another_release")
    assert isinstance(registry.read_projection(Layer(2, 2)), str)
    assert not caplog.messages
    monkeypatch.setitem(sys.modules, "a_library.layers", types.ModuleType("a_library.layers"))
    for _ in range(2):
        assert registry.read_projection(Layer(2, 2)).endswith("Layer")
    assert len(caplog.messages) == 1
    assert "a_library.layers" in caplog.messages[0]
    assert "of_another_release" in caplog.messages[0]


def test_a_release_that_is_not_known_keeps_no_other_library_out(monkeypatch):
    class Layer(nn.Linear):
        pass

    known = types.ModuleType("patchkit.adapters.of_this_release")
    known.LIBRARY = Library({Layer: read_linear}, (Layer,), casts_input=True)
    monkeypatch.setitem(sys.modules, known.__name__, known)
    monkeypatch.setattr(registry, "READERS", dict(registry.READERS))
    monkeypatch.setattr(registry, "_LIBRARIES", list(registry._LIBRARIES))
    waiting = {"a.layers": "patchkit.adapters.of_another_release", "b.layers": known.__name__}
    monkeypatch.setattr(registry, "_NOT_MET", waiting)
    for name in list(waiting):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    assert carries_adapter(Layer(2, 2))  # at the first question
    assert not isinstance(registry.read_projection(Layer(2, 2)), str)


def adapted_by(library):
    if library == "peft":
        return add_lora(tiny_model("llama"), lora_dropout=0.3).train().base_model.model
    if library == "loralib":
        return replaced("llama", lambda m: loralib.Linear(m.in_features, m.out_features, 3, 5, 0.3, bias=False))
    return replaced("llama", lambda m: LoRALinear(m.in_features, m.out_features, 3, 5.0, 0.3))


LIBRARIES = ["peft", "loralib", "torchtune"]


@pytest.mark.parametrize("library", LIBRARIES)
def test_carries_adapter(library):
    assert carries_adapter(adapted_by(library))
    assert not carries_adapter(tiny_model("llama"))


@pytest.mark.parametrize("library", LIBRARIES)
def test_for_which_dtype_dropout_is_drawn(library):
    """PEFT casts the input to A's dtype first. On some devices the random stream depends on that."""
    layer = adapted_by(library).model.layers[0].self_attn.o_proj
    given = Input(64, torch.bfloat16, torch.device("cpu"), torch.bfloat16, "peft", 2, {})
    assert casts_input(type(layer)) == (library == "peft")
    assert examine(layer, given).precision.drawn == (torch.float32 if library == "peft" else torch.bfloat16)


def side_by_side():
    """A model with layers of all libraries, and the same again to keep as it is."""
    model = replaced(
        "llama",
        lambda m: loralib.MergedLinear(
            m.in_features, m.out_features, 3, 5, lora_dropout=0.3, enable_lora=[True, False], bias=False
        ),
        ["gate_proj", "up_proj", "down_proj", "v_proj"],
    )
    for block in model.model.layers:
        attention = block.self_attn
        for name, kind in (("k_proj", LoRALinear), ("o_proj", DoRALinear)):
            linear = getattr(attention, name)
            layer = kind(linear.in_features, linear.out_features, 3, 5.0)
            fill(layer, linear, name)
            setattr(attention, name, layer)
    model = add_lora(model, target_modules=["q_proj"], lora_dropout=0.3).train()
    return copy.deepcopy(model), model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled in one graph"])
def test_libraries_side_by_side(compiled):
    """Each layer is read by its own library's reader, and all of a block are computed together."""
    reference, model = side_by_side()
    assert patchkit.apply(model).counts == {"fused": 6}
    forward = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
    inputs = tiny_inputs("llama", model)
    findings = compare_runs(run(reference, inputs), run(model, inputs, forward=forward))
    assert findings.passed, (findings.problems, str(findings.worst))


def test_while_a_graph_is_made_no_library_is_met(monkeypatch):
    """An import cannot be traced. A layer that nobody reads is told of at once, as it is without a graph."""
    layer = nn.Bilinear(2, 2, 2)
    reason = registry.read_projection(layer)
    assert isinstance(reason, str)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(registry, "_NOT_MET", {"torch": "no.such.library"})
    assert registry.read_projection(layer) == reason
    assert registry._NOT_MET


def test_a_subclass_of_a_known_layer_carries_an_adapter():
    class Mine(loralib.Linear):
        pass

    assert carries_adapter(nn.Sequential(Mine(4, 4, r=2)))


@pytest.mark.parametrize("formula", [None, Formula({})], ids=["without bitsandbytes", "with it"])
def test_which_layers_of_peft_are_read(formula):
    """Those over quantised layers where bitsandbytes is there."""
    library = peft_library({nn.Linear: lambda module: "it is quantised"}, formula)
    quantised = {getattr(lora, name) for name in ("Linear4bit", "Linear8bitLt") if hasattr(lora, name)}
    assert set(library.readers) == {lora.Linear, ModulesToSaveWrapper} | (quantised if formula else set())
    assert (library.layers, library.casts_input, dict(library.embeddings)) == ((BaseTunerLayer,), True, {})
