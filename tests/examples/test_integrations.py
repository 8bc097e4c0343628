"""The files for training frameworks, against stand-ins of the interfaces that they use."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import transformers
import yaml

import patchkit
from patchkit.errors import UnknownOptionError

FOLDER = Path(__file__).parents[2] / "examples" / "integrations"


def stand_in(monkeypatch, name, **contents):
    """A module of this name, and the packages around it."""
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:count]), ModuleType(".".join(parts[:count])))
    vars(sys.modules[name]).update(contents)


def loaded(monkeypatch, name):
    spec = importlib.util.spec_from_file_location(Path(name).stem, FOLDER / name)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def axolotl(monkeypatch):
    pytest.importorskip("pydantic")
    stand_in(monkeypatch, "axolotl.integrations.base", BasePlugin=type("BasePlugin", (), {}))
    return loaded(monkeypatch, "axolotl/patchkit_axolotl.py")


def patches(callback, model):
    callback.on_train_begin(None, transformers.TrainerState(), transformers.TrainerControl(), model=model)
    return callback.report.counts


def test_axolotl_gets_the_callback_with_its_options(axolotl, lora_model):
    _, model = lora_model()
    plugin = axolotl.PatchkitPlugin()
    (callback,) = plugin.add_callbacks_post_trainer(SimpleNamespace(patchkit={"mlp": False}), None)
    assert isinstance(callback, patchkit.TrainerCallback)
    assert patches(callback, model) == {"fused": 4, "upstream": 2}
    with pytest.raises(UnknownOptionError):
        plugin.add_callbacks_post_trainer(SimpleNamespace(patchkit={"mpl": False}), None)


def test_axolotls_own_kernels_have_to_be_off(axolotl):
    plugin = axolotl.PatchkitPlugin()
    for name in axolotl.OWN_KERNELS:
        with pytest.raises(ValueError, match=f"Say {name}: false"):
            plugin.add_callbacks_post_trainer(SimpleNamespace(**{name: True}), None)


def test_the_configuration_of_axolotl_is_what_the_plugin_wants(axolotl):
    configuration = yaml.safe_load((FOLDER / "axolotl" / "lora.yml").read_text())
    assert configuration["plugins"] == [f"{axolotl.__name__}.PatchkitPlugin"]
    assert axolotl.PatchkitPlugin().get_input_args() == f"{axolotl.__name__}.PatchkitArgs"
    assert axolotl.PatchkitArgs(**{name: configuration[name] for name in ("patchkit",)}).patchkit == {}
    assert len(axolotl.PatchkitPlugin().add_callbacks_post_trainer(SimpleNamespace(**configuration), None)) == 1


def test_llama_factory_gets_the_callback(monkeypatch, lora_model):
    given = []
    stand_in(monkeypatch, "llamafactory.train.tuner", run_exp=lambda args=None, callbacks=None: given.extend(callbacks))
    loaded(monkeypatch, "llama_factory/train.py").main()
    _, model = lora_model()
    assert patches(given[0], model) == {"fused": 6}
