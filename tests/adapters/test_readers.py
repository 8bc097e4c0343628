"""The table of readers: libraries join it when a layer of theirs is met, and none is imported for that."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import types

import loralib
import pytest
import torch
from replacing import reasons, replaced
from torch import nn
from torchtune.modules.peft import LoRALinear

import patchkit
from patchkit.adapters import readers
from patchkit.adapters.readers import carries_adapter, casts_input
from patchkit.runtime.levels import Input, examine
from patchkit.testing import add_lora, tiny_model


def test_libraries_are_met_with_their_first_layer():
    code = """
        import sys
        from torch import nn
        import patchkit
        from patchkit.adapters.readers import READERS, carries_adapter, read_projection
        from patchkit.testing import tiny_model

        known = set(READERS)
        patchkit.apply(tiny_model("llama"))
        assert isinstance(read_projection(nn.Bilinear(2, 2, 2)), str)
        assert not carries_adapter(nn.Linear(2, 2))
        assert not {"loralib", "torchtune"} & set(sys.modules)
        assert set(READERS) == known

        import loralib
        assert len(read_projection(loralib.Linear(4, 4, r=2)).adapters) == 1
        assert set(READERS) - known == {loralib.Linear, loralib.MergedLinear}
        assert "torchtune" not in sys.modules
        """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_release_without_the_known_layers_runs_upstream(monkeypatch, caplog):
    class Layer(nn.Linear):
        pass

    monkeypatch.setitem(readers._NOT_MET, "a_library.layers", "patchkit.adapters.of_another_release")
    assert isinstance(readers.read_projection(Layer(2, 2)), str)
    assert not caplog.messages
    monkeypatch.setitem(sys.modules, "a_library.layers", types.ModuleType("a_library.layers"))
    for _ in range(2):
        assert readers.read_projection(Layer(2, 2)).endswith("Layer")
    assert len(caplog.messages) == 1
    assert "a_library.layers" in caplog.messages[0]
    assert "of_another_release" in caplog.messages[0]


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
    given = Input(64, torch.bfloat16, torch.device("cpu"), torch.bfloat16)
    assert casts_input(layer) == (library == "peft")
    assert examine(layer, given).precision.drawn == (torch.float32 if library == "peft" else torch.bfloat16)


@pytest.mark.filterwarnings("ignore")
def test_libraries_side_by_side():
    """One model with layers of all of them: each is read by its own reader."""
    model = add_lora(tiny_model("llama"), target_modules=["q_proj", "o_proj"]).train().base_model.model
    for block in model.model.layers:
        attention = block.self_attn
        attention.k_proj = loralib.Linear(64, attention.k_proj.out_features, 3, bias=False)
        attention.v_proj = LoRALinear(64, attention.v_proj.out_features, 3, 5.0)
    report = patchkit.apply(model)
    assert {row.block: row.level for row in report.rows if row.block != "mlp"} == {"qkv": "fused", "o": "fused"}
    assert not [reason for reason in reasons(report) if "adapter" not in reason]


def test_a_subclass_of_a_known_layer_carries_an_adapter():
    class Mine(loralib.Linear):
        pass

    assert carries_adapter(nn.Sequential(Mine(4, 4, r=2)))
