"""The registry: built-in files, plugins through entry points, near misses."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import patchkit.arch
from patchkit.arch import plugins as plugins_module
from patchkit.arch import registry
from patchkit.arch.spec import Architecture, Attention, GatedMLP
from patchkit.errors import ArchitectureError, PatchkitWarning, UnknownArchitectureError

CARD = {
    "llama",
    "mistral",
    "qwen2",
    "gemma",
    "gemma2",
    "gemma3",
    "llava",
    "mistral3",
    "paligemma",
    "qwen2_vl",
    "qwen2_5_vl",
}


@pytest.fixture
def plugins(monkeypatch):
    """Installs entry points for one test."""

    def install(**targets):
        points = [EntryPoint(name, target, plugins_module.ENTRY_POINT_GROUP) for name, target in targets.items()]
        monkeypatch.setattr(plugins_module, "entry_points", lambda group: points)
        registry.architectures.cache_clear()
        registry.blocks_by_class.cache_clear()

    yield install
    registry.architectures.cache_clear()
    registry.blocks_by_class.cache_clear()


OLMO = Architecture(
    "olmo", ("olmo",), "transformers.models.olmo.modeling_olmo", (Attention("OlmoAttention"), GatedMLP("OlmoMLP"))
)
TWO = (OLMO, Architecture("llama", ("llama",), "elsewhere"))
WRONG = "no architecture"


def test_the_architectures_of_the_card():
    assert set(registry.architectures()) >= CARD
    assert list(registry.architectures()) == sorted(registry.architectures())


def test_architecture_files_are_small_data():
    """Charter: under 40 lines, no code text, no function."""
    for path in Path(patchkit.arch.__file__).parent.glob("*.py"):
        if path.name in {"__init__.py", "spec.py", "registry.py", "discovery.py", "plugins.py"}:
            continue
        text = path.read_text()
        assert len(text.splitlines()) <= 40, path.name
        assert "def " not in text, path.name
        assert "import re" not in text, path.name


def test_an_unknown_name_has_near_misses():
    with pytest.raises(UnknownArchitectureError, match=r"unknown architecture 'gema3'; did you mean gemma3"):
        registry.find("gema3")


def test_a_plugin_is_found(plugins):
    plugins(olmo=f"{__name__}:OLMO")
    assert registry.find("olmo") is OLMO
    assert registry.blocks_by_class()["transformers.models.olmo.modeling_olmo", "OlmoMLP"][1] == GatedMLP("OlmoMLP")


def test_a_plugin_may_not_replace_a_built_in(plugins):
    plugins(two=f"{__name__}:TWO")
    with pytest.warns(PatchkitWarning, match="'llama' of plugin 'two' .* was left out: patchkit itself has one"):
        assert registry.find("llama").module.startswith("transformers")
    assert registry.find("olmo") is OLMO


@pytest.mark.parametrize("target", ["no_such_package:X", f"{__name__}:MISSING", f"{__name__}:WRONG"])
def test_a_broken_plugin_is_named_and_isolated(plugins, target):
    plugins(broken=target, olmo=f"{__name__}:OLMO")
    with pytest.warns(PatchkitWarning, match="architecture plugin 'broken'"):
        assert registry.find("olmo") is OLMO


def test_an_architecture_of_a_package_that_is_not_installed(plugins):
    plugins(two=f"{__name__}:OLMO")
    one = Architecture("olmo_mine", (), "elsewhere", (GatedMLP("OlmoMLP"),))
    before = set(registry.architectures())
    with registry.registered_also(one):
        assert registry.find("olmo_mine") is one
        assert registry.blocks_by_class()["elsewhere", "OlmoMLP"][0] is one
        with registry.registered_also(one), registry.registered_also(OLMO):
            assert registry.find("olmo") is OLMO
        assert registry.find("olmo_mine") is one
    assert set(registry.architectures()) == before
    assert ("elsewhere", "OlmoMLP") not in registry.blocks_by_class()


LLAMA = "transformers.models.llama.modeling_llama"
COLLISIONS = {
    "a name of patchkit": (Architecture("llama", (), "elsewhere"), "'llama' that is registered .*; take another name"),
    "a name of a plugin": (Architecture("olmo", (), "elsewhere"), "'olmo' that is registered .*; install its package"),
    "a class": (
        Architecture("mine", (), LLAMA, (GatedMLP("LlamaMLP"),)),
        f"'llama' describes {LLAMA}.LlamaMLP already",
    ),
    "no architecture": (WRONG, "expected patchkit.arch.spec.Architecture, found str"),
    "a word that is none": (Architecture("mine", (), "../x"), "is no module"),
}


@pytest.mark.parametrize(("architecture", "said"), COLLISIONS.values(), ids=COLLISIONS)
def test_what_cannot_be_registered_for_a_time(plugins, architecture, said):
    plugins(olmo=f"{__name__}:OLMO")
    with pytest.raises(ArchitectureError, match=said), registry.registered_also(architecture):
        pass
    assert registry.find("olmo") is OLMO


@pytest.mark.slow
def test_a_plugin_architecture_is_patched(plugins):
    """From entry point to fused training, with nothing but names."""
    import copy

    from transformers import OlmoConfig, OlmoForCausalLM

    from patchkit.testing import add_lora, compare_runs, run, tiny_inputs

    plugins(olmo=f"{__name__}:OLMO")
    config = OlmoConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=128, clip_qkv=0.5
    )
    model = add_lora(OlmoForCausalLM(config)).train()
    reference = copy.deepcopy(model)
    assert patchkit.apply(model).counts == {"fused": 6}
    inputs = tiny_inputs("llama", model)
    findings = compare_runs(run(reference, inputs), run(model, inputs))
    assert findings.passed, (findings.problems, str(findings.worst))
