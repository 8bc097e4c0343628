"""microsoft/LoRA's ``loralib`` layers, the real package, as projections of tiny models: fused, and equal to loralib."""

from __future__ import annotations

import copy
import functools

import loralib
import pytest
import torch
from replacing import assert_same, reasons, replaced
from torch import nn

import patchkit
from patchkit.adapters.registry import carries_adapter, read_projection
from patchkit.testing import CHECKS, compare_runs, run, tiny_inputs

pytestmark = pytest.mark.filterwarnings("ignore")


def make(kind, **options):
    """A function from a linear layer to a ``loralib`` layer in its place."""
    settings = {"r": 3, "lora_alpha": 5} | options
    return lambda linear: kind(linear.in_features, linear.out_features, bias=linear.bias is not None, **settings)


LINEAR = make(loralib.Linear)
MERGED = make(loralib.MergedLinear, enable_lora=[True, False])

FUSED = {
    "linear": ("llama", loralib.Linear, {}),
    "linear, dropout": ("llama", loralib.Linear, {"lora_dropout": 0.3}),
    "linear, all dropped": ("llama", loralib.Linear, {"lora_dropout": 1.0}),
    "linear, transposed": ("llama", loralib.Linear, {"fan_in_fan_out": True, "lora_dropout": 0.3}),
    "linear, biases": ("qwen2", loralib.Linear, {"lora_dropout": 0.3}),
    "linear, tanh-GELU": ("gemma3", loralib.Linear, {"lora_dropout": 0.3}),
    "linear, rank 1": ("llama", loralib.Linear, {"r": 1}),
    "merged, one group": ("llama", loralib.MergedLinear, {"enable_lora": [True]}),
    "merged, two groups": ("llama", loralib.MergedLinear, {"enable_lora": [True, True], "lora_dropout": 0.3}),
    "merged, first of two": ("llama", loralib.MergedLinear, {"enable_lora": [True, False]}),
    "merged, second of two": ("qwen2", loralib.MergedLinear, {"enable_lora": [False, True], "lora_dropout": 0.3}),
    "merged, two of four": ("gemma3", loralib.MergedLinear, {"enable_lora": [True, False, False, True]}),
    "merged, transposed": (
        "llama",
        loralib.MergedLinear,
        {"enable_lora": [False, True, True, False], "fan_in_fan_out": True, "lora_dropout": 0.3},
    ),
}


@pytest.mark.parametrize("case", FUSED)
def test_fused_equals_loralib(case):
    architecture, kind, options = FUSED[case]
    model = replaced(architecture, make(kind, **options))
    reference = copy.deepcopy(model)
    report = patchkit.apply(model)
    assert report.counts == {"fused": len(report.rows)}, str(report)
    assert_same(reference, model, architecture)


@pytest.mark.parametrize("kind", [loralib.Linear, loralib.MergedLinear])
@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_what_loralib_marks_as_trainable(kind, bias):
    options = {"enable_lora": [True, False]} if kind is loralib.MergedLinear else {}
    model = replaced("qwen2", make(kind, **options))
    loralib.mark_only_lora_as_trainable(model, bias)
    reference = copy.deepcopy(model)
    assert set(patchkit.apply(model).counts) == {"fused"}
    assert_same(reference, model, "qwen2")


@pytest.mark.parametrize("transposed", [False, True])
def test_trained_base_weights(transposed):
    model = replaced("llama", make(loralib.Linear, fan_in_fan_out=transposed, lora_dropout=0.2)).requires_grad_(True)
    reference = copy.deepcopy(model)
    assert set(patchkit.apply(model).counts) == {"fused"}
    assert_same(reference, model)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["gate_proj", "down_proj"]], ids=str)
@pytest.mark.parametrize("layer", [LINEAR, MERGED])
def test_some_projections(targets, layer):
    model = replaced("llama", layer, targets)
    reference = copy.deepcopy(model)
    report = patchkit.apply(model)
    assert not [row for row in report.rows if row.level != "fused" and not row.expected], str(report)
    assert_same(reference, model)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kind", [loralib.Linear, loralib.MergedLinear])
def test_eval_merges_and_train_takes_it_out(kind, transposed):
    options = {"enable_lora": [True, False]} if kind is loralib.MergedLinear else {}
    model = replaced("llama", make(kind, lora_dropout=0.3, fan_in_fan_out=transposed, **options))
    reference = copy.deepcopy(model)
    patchkit.apply(model)
    for either in (reference, model):
        either.eval()
        assert all(part.merged for part in either.modules() if isinstance(part, kind))
    # Merged, they are linear layers: an MLP without adapters is fused for its activation, the rest is upstream's.
    assert patchkit.report(model).counts == {"upstream": 4, "fused": 2}
    assert_same(reference, model, seeds=(0,))
    inputs = tiny_inputs("llama", model)
    with torch.no_grad():
        expected, found = (run(either, inputs, backward=False) for either in (reference, model))
    assert compare_runs(expected, found).passed
    for either in (reference, model):
        either.train()
    assert patchkit.report(model).counts == {"fused": 6}
    for name, weight in reference.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name
    assert_same(reference, model)


def test_eval_without_merging_draws_nothing():
    model = replaced("llama", make(loralib.Linear, merge_weights=False, lora_dropout=0.3)).eval()
    reference = copy.deepcopy(model)
    assert patchkit.apply(model).counts == {"fused": 6}
    assert_same(reference, model)


@pytest.mark.parametrize("kind", [loralib.Linear, loralib.MergedLinear])
def test_rank_zero(kind):
    """A layer without an adapter, beside layers that have one."""

    def layer(linear):
        return make(kind, r=3 if linear.in_features == 112 else 0)(linear)  # 112: down_proj reads it

    if kind is loralib.MergedLinear:
        with pytest.raises(AttributeError):  # loralib's own: it looks for A whenever it is not merged
            make(kind, r=3)(nn.Linear(4, 4))(torch.ones(1, 4))
        model = replaced("llama", make(kind, r=0))
    else:
        model = replaced("llama", layer)
    reference = copy.deepcopy(model)
    report = patchkit.apply(model)
    # Of MergedLinear nothing is trained: there is no gradient for which an MLP would keep anything.
    mlp = "upstream" if kind is loralib.MergedLinear else "fused"
    assert {row.part: row.level for row in report.rows} == {"qkv": "upstream", "o": "upstream", "mlp": mlp}
    assert all(row.expected for row in report.rows if row.level == "upstream")
    assert_same(reference, model)


def test_state_dict_of_the_adapters():
    model = replaced("llama", LINEAR)
    before = loralib.lora_state_dict(model)
    patchkit.apply(model)
    after = loralib.lora_state_dict(model)
    assert list(before) == list(after)
    assert len(after) == 28
    assert all(torch.equal(before[name], after[name]) for name in before)


# What an upstream state is called in the report, and how a projection gets into it.
LEFT = {
    "a forward hook is registered on it": lambda layer: layer.register_forward_hook(lambda *_: None),
    "a forward hook is registered": lambda layer: layer.lora_dropout.register_forward_pre_hook(lambda *_: None),
    "its dropout works in place": lambda layer: setattr(layer.lora_dropout, "inplace", True),
    "its dropout is a AlphaDropout": lambda layer: setattr(layer, "lora_dropout", nn.AlphaDropout(0.3)),
    "forward was replaced": lambda layer: setattr(layer, "forward", functools.partial(type(layer).forward, layer)),
    "its scaling is a Tensor": lambda layer: setattr(layer, "scaling", torch.tensor(2.0)),
}


@pytest.mark.parametrize("reason", LEFT)
@pytest.mark.parametrize("kind", [loralib.Linear, loralib.MergedLinear])
def test_left_to_loralib(kind, reason):
    options = {"enable_lora": [True, True]} if kind is loralib.MergedLinear else {}
    model = replaced("llama", make(kind, lora_dropout=0.3, **options))
    reference = copy.deepcopy(model)
    for either in (reference, model):  # not copied afterwards: a copied forward would still be the original's
        LEFT[reason](either.model.layers[0].mlp.down_proj)
    report = patchkit.apply(model)
    assert report.counts == {"alone": 1, "fused": 5}
    assert any(reason in found for found in reasons(report)), reasons(report)
    assert_same(reference, model)


def held_in_a_buffer(layer, name):
    tensor = getattr(layer, name).detach()
    delattr(layer, name)
    layer.register_buffer(name, tensor)


@pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
@pytest.mark.parametrize("kind", [loralib.Linear, loralib.MergedLinear])
def test_a_factor_that_is_no_parameter(kind, factor):
    options = {"enable_lora": [True, True]} if kind is loralib.MergedLinear else {}
    model = replaced("llama", make(kind, **options))
    held_in_a_buffer(model.model.layers[0].mlp.down_proj, factor)
    reference = copy.deepcopy(model)
    report = patchkit.apply(model)
    assert report.counts == {"alone": 1, "fused": 5}
    assert_same(reference, model)


def test_one_projection_left_to_loralib():
    """The others of its block are fused alone."""
    model = replaced("llama", make(loralib.Linear, lora_dropout=0.3))
    model.model.layers[0].self_attn.k_proj.lora_dropout = nn.AlphaDropout(0.3)
    reference = copy.deepcopy(model)
    report = patchkit.apply(model)
    assert report.counts == {"alone": 1, "fused": 5}
    assert reasons(report) == {"k_proj: its dropout is a AlphaDropout"}
    assert_same(reference, model)


def test_dropout_by_another_function():
    model = replaced("llama", LINEAR)
    model.model.layers[0].self_attn.o_proj.lora_dropout = lambda x: 2 * x
    reference = copy.deepcopy(model)
    report = patchkit.apply(model)
    assert reasons(report) == {"o_proj: its dropout is a function of its own"}
    assert_same(reference, model)


def test_a_subclass_is_called():
    class Twice(loralib.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = replaced("llama", make(Twice), ["o_proj"])
    reference = copy.deepcopy(model)
    report = patchkit.apply(model)
    assert {row.level for row in report.rows if row.part == "o"} == {"upstream"}
    assert any("Twice" in reason for reason in reasons(report))
    assert_same(reference, model)


def test_convolution_layers_have_a_reason():
    layer = loralib.Conv1d(4, 4, 1, r=2)
    assert read_projection(layer) == "it is a loralib.layers.Conv1d"
    assert carries_adapter(nn.Sequential(layer))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_mixed_dtypes_fail_as_in_loralib(dtype):
    """loralib casts nothing, so a mixture is an error; it must stay the same one."""
    model = replaced("llama", LINEAR)
    for layer in (part for part in model.modules() if isinstance(part, loralib.Linear)):
        layer.lora_A.data, layer.lora_B.data = layer.lora_A.data.to(dtype), layer.lora_B.data.to(dtype)
    reference = copy.deepcopy(model)
    report = patchkit.apply(model)
    assert report.counts == {"upstream": 6}
    assert all("loralib casts nothing" in reason for reason in reasons(report))
    messages = []
    for either in (reference, model):
        with pytest.raises(RuntimeError) as caught:
            run(either, tiny_inputs("llama", either))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_a_merged_layer_without_any_adapter_fails_as_in_loralib():
    model = replaced("llama", make(loralib.MergedLinear, enable_lora=[False, False]), ["o_proj"])
    reference = copy.deepcopy(model)
    assert any("B is not a plain parameter" in reason for reason in reasons(patchkit.apply(model)))
    for either in (reference, model):
        with pytest.raises(AttributeError, match="lora_A"):
            run(either, tiny_inputs("llama", either))


CONTRACT = [
    "training_curve",
    "checkpointing_reentrant",
    "generate",
    "deepcopy",
    "state_dict",
    "revert",
    "bfloat16",
    "autocast",
    "autocast_bfloat16_base",
]


@pytest.mark.parametrize("check", CONTRACT)
@pytest.mark.parametrize("layer", [LINEAR, MERGED], ids=["Linear", "MergedLinear"])
def test_contract(layer, check):
    model = replaced("llama", layer)
    result = CHECKS[check](model, tiny_inputs("llama", model))
    assert result.passed, str(result)
    if check != "autocast_bfloat16_base":  # only inside of autocast do its dtypes come together
        assert result.patch_result.counts == {"fused": 6}


def test_dropout_under_autocast():
    """The same masks: a wrong one would be an error of order 1."""
    model = replaced("llama", make(loralib.Linear, lora_dropout=0.3))
    reference = copy.deepcopy(model)
    patchkit.apply(model)
    inputs = tiny_inputs("llama", model)
    expected, found = (run(either, inputs, autocast=torch.bfloat16) for either in (reference, model))
    assert compare_runs(expected, found, 0.1).passed
    other = run(model, inputs, seed=1, autocast=torch.bfloat16)
    assert not compare_runs(expected, other, 0.1).passed
