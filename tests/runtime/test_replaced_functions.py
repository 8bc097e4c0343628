"""A function that a formula stands for is replaced, for the whole process: what was put in its place must run.

Each place alone, before and after ``apply``, and gone again; compared with a deepcopy that never was patched, which
meets the same function.
"""

from __future__ import annotations

import copy
import inspect
import subprocess
import sys
import textwrap

import pytest
import torch
import torch.nn.functional as F
from peft.tuners import lora
from peft.tuners.lora import dora
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.lora.variants import DoraEmbeddingVariant, DoraLinearVariant
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import nn
from transformers.activations import ACT2CLS
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP

import patchkit
from patchkit.adapters.formula import Formula
from patchkit.testing import add_lora, compare_runs, run, tiny_inputs, tiny_model
from patchkit.testing.fused_calls import fused_calls

pytestmark = pytest.mark.filterwarnings("ignore::patchkit.errors.PatchkitWarning", "ignore::UserWarning")

EMBEDDING = {"target_modules": ["embed_tokens", "q_proj"]}
# SiLUActivation, or torch.nn.SiLU before transformers 5.
SILU = ACT2CLS["silu"]
DORA = {"use_dora": True, "lora_dropout": 0.2}
# Where it stands, its name, and adapters that reach it.
PLACES = [
    *((lora.Linear, name, {}) for name in ("forward", "_check_forward_args", "_cast_input_dtype")),
    *((lora.Linear, name, {}) for name in ("__call__", "_call_impl", "__getattr__", "base_layer")),
    (LoraLayer, "_check_forward_args", {}),
    *((BaseTunerLayer, name, {}) for name in ("_cast_input_dtype", "active_adapters", "disable_adapters", "merged")),
    *((nn.Linear, name, {}) for name in ("forward", "__call__", "_call_impl", "weight")),
    *((nn.Module, name, {}) for name in ("__call__", "_call_impl", "__getattr__")),
    *((nn.ModuleDict, name, {}) for name in ("__getitem__", "keys")),
    (nn.Dropout, "forward", {"lora_dropout": 0.2}),
    (nn.Dropout, "__call__", {"lora_dropout": 0.2}),
    (nn.Identity, "forward", {}),
    (F, "linear", {}),
    (F, "dropout", {"lora_dropout": 0.2}),
    (F, "silu", {}),
    (SILU, "forward", {}),
    (SILU, "__call__", {}),
    *((dora.DoraLinearLayer, name, DORA) for name in ("forward", "get_weight_norm", "get_lora_weight", "__call__")),
    (DoraLinearVariant, "forward", DORA),
    (dora, "dequantize_module_weight", DORA),
    (dora, "transpose", DORA),
    (lora.Linear, "get_base_layer", DORA),
    *((lora.Embedding, name, EMBEDDING) for name in ("_embed", "_get_embed_scale", "_check_forward_args", "forward")),
    (nn.Embedding, "forward", EMBEDDING),
    (F, "embedding", EMBEDDING),
    (nn.ParameterDict, "__getitem__", EMBEDDING),
    (DoraEmbeddingVariant, "forward", EMBEDDING | {"use_dora": True}),
    (dora.DoraEmbeddingLayer, "forward", EMBEDDING | {"use_dora": True}),
    (ModulesToSaveWrapper, "forward", {"target_modules": ["q_proj"], "modules_to_save": ["v_proj"]}),
    (ModulesToSaveWrapper, "_forward_wrapped", {"target_modules": ["q_proj"], "modules_to_save": ["v_proj"]}),
]


def replaced(monkeypatch, owner, name):
    """Another function there, which does something that shows in the numbers where a number comes out of it."""
    raw = inspect.getattr_static(owner, name, None)
    if raw is None:  # e.g. ``nn.Linear.weight``: a property that hides the parameter
        stored = "_parameters" if name == "weight" else "_modules"
        monkeypatch.setattr(owner, name, property(lambda self: self.__dict__[stored][name]), raising=False)
        return
    static, function = isinstance(raw, staticmethod), getattr(raw, "__func__", raw)
    if isinstance(raw, property):
        monkeypatch.setattr(owner, name, property(lambda self: raw.fget(self)), raising=False)
        return

    def other(*args, **kwargs):
        result = function(*args, **kwargs)
        floating = isinstance(result, torch.Tensor) and result.is_floating_point()
        return result * 1.25 if floating and name not in ("__getattr__", "__getitem__") else result

    monkeypatch.setattr(owner, name, staticmethod(other) if static else other, raising=False)


def model_and_reference(config):
    model = add_lora(tiny_model("llama", num_hidden_layers=1), **config).train()
    return model, copy.deepcopy(model)


def assert_equal(reference, model):
    inputs = tiny_inputs("llama", model)
    findings = compare_runs(run(reference, inputs, seed=3), run(model, inputs, seed=3))
    assert findings.passed, (findings.problems, str(findings.worst))


def calls_of(model):
    with fused_calls() as calls:
        run(model, tiny_inputs("llama", model), seed=3)
    return sorted(calls)


def assert_report_is_true(model):
    """The blocks that the report calls fused are as many as fused functions ran, and likewise the embedding."""
    calls = calls_of(model)
    fused = [row.part for row in patchkit.report(model).at("fused")]
    expected = {"qkv": "lora_projections", "o": "lora_linear", "mlp": "lora_gated_mlp", "embedding": "lora_embedding"}
    alone = [row for row in patchkit.report(model).rows if row.level == "alone"]
    for block, function in expected.items():
        if function != "lora_linear" or not alone:
            assert calls.count(function) == fused.count(block), (calls, str(patchkit.report(model)))
    return calls


@pytest.mark.parametrize(("owner", "name", "config"), PLACES, ids=lambda value: getattr(value, "__name__", str(value)))
def test_each_place(owner, name, config, monkeypatch):
    model, reference = model_and_reference(config)
    patchkit.apply(model)
    before = calls_of(model)
    assert before
    with monkeypatch.context() as patch:
        replaced(patch, owner, name)
        assert_equal(reference, model)
        during = assert_report_is_true(model)
        assert during != before
    assert calls_of(model) == before
    assert_equal(reference, model)


def test_a_deleted_function(monkeypatch):
    """Upstream has nothing to call then, and says so."""
    model, reference = model_and_reference({})
    patchkit.apply(model)
    monkeypatch.delattr(BaseTunerLayer, "_cast_input_dtype")
    errors = []
    for each in (reference, model):
        with pytest.raises(AttributeError) as caught:
            run(each, tiny_inputs("llama", model))
        errors.append(str(caught.value))
    assert errors[0] == errors[1]
    assert not patchkit.report(model).at("fused")


def test_an_added_attribute_is_no_replacement(monkeypatch):
    model, reference = model_and_reference({})
    patchkit.apply(model)
    before = calls_of(model)
    monkeypatch.setattr(nn.Linear, "of_no_concern", 1, raising=False)
    assert calls_of(model) == before
    assert_equal(reference, model)


def test_replaced_before_patchkit_is_imported():
    """What stands there at import need not be the library's own."""
    script = """
        import functools, warnings
        warnings.simplefilter("ignore")
        import torch.nn.functional as F
        original = F.linear

        @functools.wraps(original)
        def linear(*args):
            return original(*args) * 1.25

        F.linear = linear
        import patchkit
        from patchkit.testing import add_lora, tiny_inputs, tiny_model
        from patchkit.testing.fused_calls import fused_calls
        model = add_lora(tiny_model("llama", num_hidden_layers=1))
        report = patchkit.apply(model)
        assert not report.at("fused"), report
        assert all("torch.nn.functional.linear was replaced by" in row.reason for row in report.rows), report
        with fused_calls() as calls:
            model(**tiny_inputs("llama", model))
        assert calls == []
        F.linear = original
        with fused_calls() as calls:
            model(**tiny_inputs("llama", model))
        assert len(calls) == 3, calls
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_function_of_another_name_of_the_same_file():
    """A library's own function in the wrong place is not that function."""
    formula = Formula({nn.Dropout: "forward"})
    own = nn.Dropout.forward
    nn.Dropout.forward = nn.Dropout1d.forward
    try:
        assert "Dropout.forward was replaced by torch.nn.modules.dropout.Dropout1d.forward" in formula.replaced()
    finally:
        nn.Dropout.forward = own
    assert formula.replaced() is None


@pytest.mark.parametrize("place", [(F, "linear"), (lora.Linear, "forward"), (LlamaMLP, "forward")], ids=str)
def test_replaced_before_compiling(place, monkeypatch):
    """In one graph, and with what stood there when it was traced."""
    # The compiler learns once in a process which functions are torch's: before one of them is replaced.
    torch.compile(lambda t: torch.nn.functional.linear(t, t), backend="eager")(torch.ones(2, 2))
    model, reference = model_and_reference({})
    patchkit.apply(model)
    replaced(monkeypatch, *place)
    inputs = tiny_inputs("llama", model)
    torch.compiler.reset()
    with fused_calls() as calls:
        compiled = run(model, inputs, forward=torch.compile(model, backend="aot_eager", fullgraph=True))
    torch.compiler.reset()
    assert compare_runs(run(reference, inputs), compiled).passed
    assert "lora_gated_mlp" not in calls
    assert bool(calls) == (place[0] is LlamaMLP)


@pytest.mark.parametrize("config", [{}, DORA], ids=["LoRA", "DoRA"])
def test_a_graph_has_no_guard_on_what_was_compared(config, monkeypatch):
    """What is known of the functions changes between calls; a guard on it would compile everything once more."""
    model, _ = model_and_reference(config)
    patchkit.apply(model)
    inputs = tiny_inputs("llama", model)
    model(**inputs)
    monkeypatch.setattr(lora.Linear, "unrelated", 1, raising=False)  # all is to be looked up again
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled(**inputs)
        model(**inputs)
        compiled(**inputs)
    torch.compiler.reset()


# The forward of a patched class, and how it finds its projections.


@pytest.mark.parametrize("cls", [LlamaAttention, LlamaMLP])
def test_forward_of_the_upstream_class(cls, monkeypatch):
    model, reference = model_and_reference({})
    patchkit.apply(model)
    before = calls_of(model)
    with monkeypatch.context() as patch:
        original = cls.forward

        def wrapped(self, *args, **kwargs):
            result = original(self, *args, **kwargs)
            return result * 1.25 if isinstance(result, torch.Tensor) else (result[0] * 1.25, *result[1:])

        patch.setattr(cls, "forward", wrapped)
        assert_equal(reference, model)
        assert_report_is_true(model)
        row = next(row for row in patchkit.report(model).rows if row.module_class == cls.__name__)
        assert "wrapped" in row.reason
        assert "since patchkit.apply" in row.reason
    assert calls_of(model) == before
    assert_equal(reference, model)


LOOK_UPS = {"attention": (LlamaAttention, "q_proj", "self_attn"), "mlp": (LlamaMLP, "up_proj", "mlp")}


@pytest.mark.parametrize("how", ["property", "class attribute", "getattr", "getattribute"])
@pytest.mark.parametrize("block", LOOK_UPS)
def test_look_up_by_the_class(block, how, monkeypatch):
    """As often and in the order in which upstream's code asks: each look-up is recorded, and gives another module."""
    cls, name, path = LOOK_UPS[block]
    model, reference = model_and_reference({})
    patchkit.apply(model)
    asked = []
    other = nn.Linear(*reversed(getattr(getattr(reference.base_model.model.model.layers[0], path), name).weight.shape))

    def find(self):
        asked.append(type(self).__name__)
        return other

    def getattribute(self, attribute):
        return find(self) if attribute == name else object.__getattribute__(self, attribute)

    def with_getattr(self, attribute):
        return find(self) if attribute == name else nn.Module.__getattr__(self, attribute)

    what = {
        "property": (name, property(find)),
        "class attribute": (name, other),
        "getattr": ("__getattr__", with_getattr),
        "getattribute": ("__getattribute__", getattribute),
    }
    monkeypatch.setattr(cls, *what[how], raising=False)
    inputs = tiny_inputs("llama", model)
    expected = run(reference, inputs)
    times = len(asked)
    found = run(model, inputs)
    assert compare_runs(expected, found).passed
    assert len(asked) == 2 * times
    assert times or how == "class attribute"
    assert_report_is_true(model)


@pytest.mark.parametrize("how", ["dictionary", "parameter first", "buffer"])
@pytest.mark.parametrize("block", LOOK_UPS)
def test_look_up_by_the_instance(block, how):
    """An instance's own attribute comes before its submodule."""
    _, name, path = LOOK_UPS[block]
    model, reference = model_and_reference({})
    patchkit.apply(model)
    for each in (model, reference):
        module = getattr(each.base_model.model.model.layers[0], path)
        inner = getattr(module, name)
        torch.manual_seed(0)
        other = nn.Linear(inner.in_features, inner.out_features)
        if how == "dictionary":
            module.__dict__[name] = other
        elif how == "parameter first":
            module._parameters[name] = other
        else:
            module._buffers[name] = other
    inputs = tiny_inputs("llama", model)
    found, expected = (each(**inputs).logits for each in (model, reference))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_subclass_that_looks_up_its_own_way():
    """It inherits ``forward``, and its class stands in the model before apply."""

    class Scaled(LlamaMLP):
        @property
        def gate_proj(self):
            return lambda x: 2 * self._modules["gate_proj"](x)

    model, _ = model_and_reference({})
    for module in model.modules():
        if type(module) is LlamaMLP:
            module.__class__ = Scaled
    reference = copy.deepcopy(model)
    patchkit.apply(model, trust="always")
    assert_equal(reference, model)
    assert "lora_gated_mlp" not in assert_report_is_true(model)


def test_source_and_tracebacks_stay():
    model, _ = model_and_reference({})
    patchkit.apply(model)
    mlp = model.base_model.model.model.layers[0].mlp
    for forward in (mlp.forward, type(mlp).forward):
        assert "self.apply_mlp(x)" in inspect.getsource(forward)
    assert list(inspect.signature(mlp.forward).parameters) == ["x"]
    assert mlp.forward.__self__ is mlp
