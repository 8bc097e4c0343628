"""Whatever upstream's source looks like: ``apply`` never raises, and the network computes what it computed.

Each example is a real file that is imported, with real PEFT layers and dropout, so that a call that moved past another
draw shows. What is checked besides: decorators are applied once, and heirs are registered once.
"""

from __future__ import annotations

import copy
import importlib.util
import itertools
import sys
import warnings
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from attack_settings import EXAMPLES, SEED, SHARDS, search
from attack_sources import Source, network
from hypothesis import given, note, seed
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn

import patchkit
from patchkit.arch import discovery
from patchkit.arch.spec import Architecture, Attention, GatedMLP
from patchkit.testing import randomise_adapter, relative_error

NUMBERS = itertools.count()
ACTIVATIONS = (nn.SiLU, nn.GELU, nn.Tanh, nn.RReLU, lambda: nn.Sequential(nn.SiLU(), nn.Dropout(0.3)))
ADAPTERS: tuple[dict[str, Any], ...] = (
    {},
    {"lora_dropout": 0.3},
    {"use_dora": True},
    {"lora_dropout": 0.3, "use_dora": True},
)
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def imported(text: str, folder: Path) -> ModuleType:
    name = f"attacked_{next(NUMBERS)}"
    path = folder / f"{name}.py"
    path.write_bytes(text.encode())
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def registered(module: ModuleType) -> dict[tuple[str, str], Any]:
    blocks = (Attention("Attention"), GatedMLP("MLP"))
    architecture = Architecture("attacked", ("attacked",), module.__name__, blocks)
    return {(module.__name__, block.class_name): (architecture, block) for block in blocks}


def outcome(model: nn.Module) -> dict[str, Any]:
    """Everything that can be observed of one step, the error included."""
    model.zero_grad()
    ids = torch.arange(12).view(3, 4)
    torch.manual_seed(7)
    try:
        output = model(ids)
        output.square().sum().backward()
    except Exception as error:
        return {"error": type(error).__name__}
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"output": output.detach(), **found, "draws": torch.get_rng_state()}


def assert_same(expected: dict[str, Any], found: dict[str, Any]) -> None:
    assert expected.keys() == found.keys(), (expected.get("error"), found.get("error"))
    for name, value in expected.items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            error = relative_error(found[name], value)
            assert error < 1e-9, f"{name}: {error:.2g}"
        elif isinstance(value, torch.Tensor):
            assert torch.equal(value, found[name]), "other random numbers were drawn"
        else:
            assert value == found[name]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shard", range(SHARDS))
def test_sources_compute_the_same(shard: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    levels: Counter[str] = Counter()

    @seed(SEED * 1000 + shard)
    @search(4 * EXAMPLES)
    @given(network(), st.sampled_from(ACTIVATIONS), st.sampled_from(ADAPTERS))
    def check(source: Source, activation: Any, adapter: dict[str, Any]) -> None:
        note(f"{source.features}\n{source.text.split('drop_helper', 1)[1]}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = imported(source.text, tmp_path)
        monkeypatch.setattr(discovery, "blocks_by_class", lambda: registered(module))
        torch.manual_seed(shard)
        net = module.Net(activation()).double()
        model = get_peft_model(net, LoraConfig(r=2, lora_alpha=3, target_modules=PROJECTIONS, **adapter)).train()
        randomise_adapter(model, seed=shard)
        for block in model.modules():
            block.__class__ = module.OWN.get(type(block), type(block))
        reference = copy.deepcopy(model)
        module.CALLS.clear()
        heirs = list(module.Registering.HEIRS)
        expected = outcome(reference)
        calls = list(module.CALLS)
        module.CALLS.clear()
        report = patchkit.apply(model, trust="always")
        assert not module.CALLS, "a decorator was applied again"
        assert heirs == module.Registering.HEIRS, "a class was registered that nobody wrote"
        assert_same(expected, outcome(model))
        assert calls == module.CALLS
        levels.update(row.level for row in report.rows)
        patchkit.revert(model)
        assert_same(expected, outcome(model))
        del sys.modules[module.__name__]

    check()
    assert levels["fused"] > EXAMPLES, levels
    assert levels["alone"] + levels["upstream"] > 0, levels
