"""The report says ``fused`` of exactly the blocks whose fused function the next training call runs, state by state.

One layer of a tiny llama; each state alone is compared with a deepcopy that was never patched and is in that state too.
"""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig
from peft.tuners import lora
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import patchkit
from patchkit.testing import add_lora, compare_runs, run, tiny_inputs, tiny_model
from patchkit.testing.fused_calls import fused_calls

pytestmark = pytest.mark.filterwarnings("ignore::patchkit.errors.PatchkitWarning", "ignore::UserWarning")

FUSED = {"qkv": "fused", "o": "fused", "mlp": "fused"}
QKV_ALONE = FUSED | {"qkv": "alone"}
UPSTREAM = dict.fromkeys(FUSED, "upstream")
FUNCTIONS = {"qkv": "lora_projections", "o": "lora_linear", "mlp": "lora_gated_mlp"}


def layer(model):
    return model.base_model.model.model.layers[0]


def k_proj(model):
    return layer(model).self_attn.k_proj


class Doubled(TorchFunctionMode):
    """What a user may do to a function of torch."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        return 2 * result if function is F.linear else result


class Recording(TorchDispatchMode):
    """A mode of the user's: it sees upstream's operations, as without patchkit."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.seen.append(str(operation))
        return operation(*args, **kwargs or {})


# States of one projection: what is done to it, and what becomes of the blocks.


def bias_as_buffer(model):
    """A bias that is no parameter takes part in upstream's product all the same."""
    base = k_proj(model).base_layer
    del base.bias
    base.register_buffer("bias", torch.linspace(-1, 1, base.out_features))


def bias_as_attribute(model):
    base = k_proj(model).base_layer
    del base.bias
    base.bias = torch.linspace(-1, 1, base.out_features)


def weight_in_the_dictionary(which):
    def change(model):
        module = {
            "base": lambda layer: layer.base_layer,
            "A": lambda layer: layer.lora_A["default"],
            "B": lambda layer: layer.lora_B["default"],
        }[which](k_proj(model))
        module.__dict__["weight"] = 2 * module.weight.detach()

    return change


def part(name):
    return {
        "layer": k_proj,
        "base": lambda model: k_proj(model).base_layer,
        "A": lambda model: k_proj(model).lora_A["default"],
        "B": lambda model: k_proj(model).lora_B["default"],
        "dropout": lambda model: k_proj(model).lora_dropout["default"],
    }[name]


def instance_call(name):
    """``_call_impl`` on the instance: what ``torch.nn.Module.__call__`` looks up first."""

    def change(model):
        module = part(name)(model)
        module._call_impl = lambda x, *args, **kwargs: 1.25 * type(module).forward(module, x)

    return change


HOOKS = {
    "forward pre": lambda module: module.register_forward_pre_hook(lambda module, args: (1.25 * args[0],)),
    "forward pre with kwargs": lambda module: module.register_forward_pre_hook(
        lambda module, args, kwargs: ((1.25 * args[0],), kwargs), with_kwargs=True
    ),
    "forward": lambda module: module.register_forward_hook(lambda module, args, output: 1.25 * output),
    "backward": lambda module: module.register_full_backward_hook(
        lambda module, inner, outer: None if inner[0] is None else (1.25 * inner[0],)
    ),
    "backward pre": lambda module: module.register_full_backward_pre_hook(lambda module, outer: (1.25 * outer[0],)),
}
PARTS = ("layer", "base", "A", "B", "dropout")


def hooked(kind, name):
    return lambda model: HOOKS[kind](part(name)(model))


def scaled(value):
    def change(model):
        k_proj(model).scaling["default"] = value

    return change


def drop(value):
    """An odd probability: what F.dropout refuses, and what it takes."""

    def change(model):
        k_proj(model).lora_dropout["default"] = nn.Dropout(0.5)
        k_proj(model).lora_dropout["default"].p = value
        k_proj(model).train()

    return change


def replaced_attribute(name):
    def change(model):
        module = k_proj(model)
        if name == "_cast_input_dtype":
            module._cast_input_dtype = lambda x, dtype: 1.25 * x
        elif name == "_check_forward_args":
            module._check_forward_args = lambda x, *args, **kwargs: None
        else:
            module.__dict__[name] = copy.deepcopy(getattr(module, name))

    return change


STATES = {
    "untouched": (lambda model: None, FUSED),
    **{f"{kind} hook on {name}": (hooked(kind, name), QKV_ALONE) for kind in HOOKS for name in PARTS},
    **{f"call of {name}": (instance_call(name), QKV_ALONE) for name in PARTS},
    **{f"weight of {name} hidden": (weight_in_the_dictionary(name), QKV_ALONE) for name in ("base", "A", "B")},
    **{
        f"{name} replaced": (replaced_attribute(name), QKV_ALONE)
        for name in ("base_layer", "lora_A", "lora_B", "lora_dropout", "_cast_input_dtype", "_check_forward_args")
    },
    "bias is a buffer": (bias_as_buffer, QKV_ALONE),
    "bias is an attribute": (bias_as_attribute, QKV_ALONE),
    "scaling 0": (scaled(0.0), FUSED),
    "scaling -3": (scaled(-3), FUSED),
    "scaling True": (scaled(True), QKV_ALONE),
    "scaling is a tensor": (scaled(torch.tensor(0.5)), QKV_ALONE),
    "dropout 0": (drop(0.0), FUSED),
    "dropout 1": (drop(1.0), FUSED),
    "dropout is a tensor": (drop(torch.tensor(0.5)), QKV_ALONE),
    "disabled": (lambda model: k_proj(model).enable_adapters(False), QKV_ALONE),
    "act_fn.inplace": (
        lambda model: setattr(layer(model).mlp, "act_fn", nn.SiLU(inplace=True)),
        FUSED | {"mlp": "alone"},
    ),
    "frozen": (lambda model: model.requires_grad_(False), FUSED),
    "eval": (lambda model: model.eval(), FUSED),
    "weight shared by q and v": (
        lambda model: setattr(layer(model).self_attn.v_proj.base_layer, "weight", k_proj(model).base_layer.weight),
        FUSED,
    ),
    "one module is k and v": (lambda model: setattr(layer(model).self_attn, "v_proj", k_proj(model)), FUSED),
    "q, k and v share A": (
        lambda model: [
            setattr(
                getattr(layer(model).self_attn, name).lora_A["default"],
                "weight",
                k_proj(model).lora_A["default"].weight,
            )
            for name in ("q_proj", "v_proj")
        ],
        FUSED,
    ),
}


def model_and_reference(**config):
    model = add_lora(tiny_model("llama", num_hidden_layers=1), **config).train()
    return model, copy.deepcopy(model)


def levels(model):
    return {row.part: row.level for row in patchkit.report(model).rows}


def assert_true(model, reference, expected, **options):
    """Equal, and the levels are the expected ones in the report and in what ran."""
    inputs = tiny_inputs("llama", model)
    assert levels(model) == expected, str(patchkit.report(model))
    reference_run = run(reference, inputs, seed=3, **options)
    with fused_calls() as calls:
        found = run(model, inputs, seed=3, **options)
    findings = compare_runs(reference_run, found)
    assert findings.passed, (findings.problems, str(findings.worst))
    for block, function in FUNCTIONS.items():
        if function != "lora_linear" or "alone" not in expected.values():
            assert calls.count(function) == (expected[block] == "fused"), calls


@pytest.mark.parametrize("state", STATES)
def test_each_state(state):
    change, expected = STATES[state]
    model, reference = model_and_reference()
    patchkit.apply(model)
    assert levels(model) == FUSED
    change(model)
    change(reference)
    assert_true(model, reference, expected, backward=state != "frozen")


@pytest.mark.parametrize("value", [1.5, -0.5, float("nan")])
def test_a_probability_that_upstream_refuses(value):
    model, reference = model_and_reference()
    patchkit.apply(model)
    errors = []
    for each in (reference, model):
        drop(value)(each)
        with pytest.raises((ValueError, RuntimeError), match="dropout probability") as caught:
            run(each, tiny_inputs("llama", model))
        errors.append(str(caught.value))
    assert errors[0] == errors[1]
    assert levels(model) == QKV_ALONE


def test_a_bias_of_another_dtype_that_upstream_refuses():
    """A float32 bias over bfloat16."""
    model, reference = model_and_reference()
    patchkit.apply(model)
    for each in (reference, model):
        each.to(torch.bfloat16)
        base = k_proj(each).base_layer
        base.bias = nn.Parameter(torch.zeros(base.out_features))
        with pytest.raises(RuntimeError):
            run(each, tiny_inputs("llama", model))
    assert levels(model)["qkv"] == "alone"


AROUND = {
    "function mode": (Doubled, UPSTREAM),
    "dispatch mode": (Recording, UPSTREAM),
    "default device": (lambda: torch.device("cpu"), FUSED),
    "flop counter": (lambda: FlopCounterMode(display=False), FUSED),
    "global hook": (
        lambda: contextlib.closing(
            _Closing(nn.modules.module.register_module_forward_hook(lambda module, args, output: None))
        ),
        UPSTREAM,
    ),
}


class _Closing:
    def __init__(self, handle):
        self.close = handle.remove


@pytest.mark.parametrize("around", AROUND)
def test_around_the_call(around):
    context, expected = AROUND[around]
    model, reference = model_and_reference(lora_dropout=0.2)
    patchkit.apply(model)
    with context():
        assert_true(model, reference, expected)
    assert_true(model, reference, FUSED)


def test_a_mode_of_the_user_sees_upstreams_operations():
    model, reference = model_and_reference()
    patchkit.apply(model)
    seen = []
    for each in (reference, model):
        with Recording() as recording:
            run(each, tiny_inputs("llama", model))
        seen.append(sorted(recording.seen))  # q, k and v are called before what upstream does with q
    assert seen[0] == seen[1]


def test_tensors_are_made_on_explicit_devices():
    model, reference = model_and_reference(lora_dropout=0.2)
    patchkit.apply(model)
    inputs = tiny_inputs("llama", model)
    with torch.device("meta"), fused_calls() as calls:
        for each in (reference, model):
            torch.manual_seed(0)
            each(**inputs).loss.backward()
    assert len(calls) == 3
    for expected, found in zip(reference.parameters(), model.parameters(), strict=True):
        if expected.grad is None:
            assert found.grad is None
        else:
            torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("around", [Doubled, lambda: torch.device("cpu")], ids=["function mode", "device"])
def test_compiled_around_the_call(around):
    model, reference = model_and_reference()
    patchkit.apply(model)
    inputs = tiny_inputs("llama", model)
    torch.compiler.reset()
    with around(), fused_calls() as calls:
        compiled = run(model, inputs, forward=torch.compile(model, backend="aot_eager", fullgraph=True))
        expected = run(reference, inputs)
    torch.compiler.reset()
    assert compare_runs(expected, compiled).passed
    assert bool(calls) == (around is not Doubled)


def test_a_plain_mlp_that_nothing_trains_before():
    """Nothing is saved there, so nothing is fused; with something trained before it, it is."""
    model = tiny_model("llama", num_hidden_layers=1).train().requires_grad_(False)
    model.lm_head.weight.requires_grad_(True)
    reference = copy.deepcopy(model)
    patchkit.apply(model)
    assert_true(model, reference, UPSTREAM)
    for each in (model, reference):
        each.model.embed_tokens.weight.requires_grad_(True)
    assert_true(model, reference, UPSTREAM | {"mlp": "fused"})


def test_the_report_is_of_training_wherever_it_is_asked_for():
    """Within ``no_grad`` nothing is saved, and an MLP without an adapter would not be fused."""
    model = add_lora(tiny_model("llama", num_hidden_layers=1), target_modules=["q_proj"]).train()
    with torch.no_grad():
        inside = patchkit.apply(model).rows
    assert inside == patchkit.report(model).rows
    assert {row.level for row in inside if row.part == "mlp"} == {"fused"}


def test_two_models_of_different_precision():
    """Each keeps its own, the adapted embedding too."""
    config = {"target_modules": ["embed_tokens", "q_proj"]}
    made = [add_lora(tiny_model("llama", num_hidden_layers=1).bfloat16(), **config) for _ in range(2)]
    alone = {}
    for precision, model in zip(("peft", "fast"), copy.deepcopy(made), strict=True):
        patchkit.apply(model, precision=precision)
        alone[precision] = model(**tiny_inputs("llama", model)).logits
    for precision, model in zip(("peft", "fast"), made, strict=True):
        patchkit.apply(model, precision=precision)
    for precision, model in zip(("peft", "fast"), made, strict=True):
        assert torch.equal(model(**tiny_inputs("llama", model)).logits, alone[precision])
    embeddings = {type(model.get_input_embeddings()) for model in made}
    assert len(embeddings) == 2


def test_two_active_adapters_and_one_copy():
    """PEFT takes the copy only if every active adapter has one; else the original runs."""
    model = add_lora(tiny_model("llama", num_hidden_layers=1), target_modules=["q_proj"], modules_to_save=["v_proj"])
    model.add_adapter("second", LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    with torch.no_grad():
        layer(model).self_attn.v_proj.modules_to_save["default"].weight.add_(1)
    model.base_model.set_adapter(["default", "second"])
    wrapper = layer(model).self_attn.v_proj
    wrapper._active_adapter = ["default", "second"]
    reference = copy.deepcopy(model)
    patchkit.apply(model)
    inputs = tiny_inputs("llama", model)
    assert levels(model)["qkv"] == "fused"
    torch.testing.assert_close(model(**inputs).logits, reference(**inputs).logits, rtol=1e-5, atol=1e-5)
    for each in (model, reference):
        layer(each).self_attn.v_proj._active_adapter = ["default"]
    torch.testing.assert_close(model(**inputs).logits, reference(**inputs).logits, rtol=1e-5, atol=1e-5)


def test_the_same_adapter_twice():
    """PEFT adds it twice."""
    model, reference = model_and_reference()
    patchkit.apply(model)
    for each in (model, reference):
        for module in each.modules():
            if isinstance(module, lora.LoraLayer):
                module._active_adapter = ["default", "default"]
    assert_true(model, reference, FUSED)
