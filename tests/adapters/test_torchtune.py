"""torchtune's ``LoRALinear`` and ``DoRALinear``, the real package, as projections of tiny models: fused, and equal."""

from __future__ import annotations

import copy

import pytest
import torch
from replacing import assert_same, reasons, replaced
from torch import nn
from torchtune.modules.peft import DoRALinear, LoRALinear, QATLoRALinear, disable_adapter, get_adapter_params

import patchkit
from patchkit.adapters.registry import carries_adapter, read_projection
from patchkit.testing import CHECKS, compare_runs, run, tiny_inputs

pytestmark = pytest.mark.filterwarnings("ignore")


def make(kind, **options):
    """A function from a linear layer to a torchtune layer in its place."""
    settings = {"rank": 3, "alpha": 5.0} | options
    return lambda linear: kind(linear.in_features, linear.out_features, use_bias=linear.bias is not None, **settings)


LORA, DORA = make(LoRALinear), make(DoRALinear)

FUSED = {
    "lora": ("llama", LoRALinear, {}),
    "lora, dropout": ("llama", LoRALinear, {"dropout": 0.3}),
    "lora, all dropped": ("llama", LoRALinear, {"dropout": 1.0}),
    "lora, biases": ("qwen2", LoRALinear, {"dropout": 0.3}),
    "lora, tanh-GELU": ("gemma3", LoRALinear, {"dropout": 0.3}),
    "lora, rank 1": ("llama", LoRALinear, {"rank": 1}),
    "dora": ("llama", DoRALinear, {}),
    "dora, tanh-GELU": ("gemma3", DoRALinear, {}),
    "dora, rank 1": ("llama", DoRALinear, {"rank": 1}),
}


@pytest.mark.parametrize("trained", [False, True], ids=["frozen base", "trained base"])
@pytest.mark.parametrize("case", FUSED)
def test_fused_equals_torchtune(case, trained):
    architecture, kind, options = FUSED[case]
    model = replaced(architecture, make(kind, **options))
    if trained:
        model.requires_grad_(True)
    reference = copy.deepcopy(model)
    report = patchkit.apply(model)
    assert report.counts == {"fused": len(report.rows)}, str(report)
    assert_same(reference, model, architecture)


@pytest.mark.parametrize("layer", [LORA, DORA], ids=["LoRALinear", "DoRALinear"])
@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["gate_proj", "down_proj"]], ids=str)
def test_some_projections(targets, layer):
    model = replaced("llama", layer, targets)
    reference = copy.deepcopy(model)
    report = patchkit.apply(model)
    assert not [row for row in report.rows if row.level != "fused" and not row.expected], str(report)
    assert_same(reference, model)


def test_dora_with_biases():
    """torchtune scales the bias, PEFT does not; q, k and v of qwen2 have one."""
    model = replaced("qwen2", DORA)
    reference = copy.deepcopy(model)
    report = patchkit.apply(model)
    assert {row.part: row.level for row in report.rows} == {"qkv": "upstream", "o": "fused", "mlp": "fused"}
    assert reasons(report) == {"q_proj, k_proj, v_proj: torchtune's DoRA scales the bias too"}
    assert_same(reference, model, "qwen2")


def test_dora_with_dropout():
    """torchtune scales the product of the whole input, PEFT that of what is left of it. In eval mode they are equal."""
    model = replaced("llama", make(DoRALinear, dropout=0.3))
    reference = copy.deepcopy(model)
    report = patchkit.apply(model)
    assert report.counts == {"upstream": 6}
    assert all("torchtune's DoRA with dropout" in reason for reason in reasons(report))
    assert_same(reference, model)
    for either in (reference, model):
        either.eval()
    assert patchkit.report(model).counts == {"fused": 6}
    assert_same(reference, model)


@pytest.mark.parametrize("kind", [LoRALinear, DoRALinear])
def test_disabled(kind):
    model = replaced("llama", make(kind))
    reference = copy.deepcopy(model)
    patchkit.apply(model)
    with disable_adapter(reference), disable_adapter(model):
        # Without adapters an MLP is fused for its activation.
        assert patchkit.report(model).counts == {"upstream": 4, "fused": 2}
        assert_same(reference, model, seeds=(0,))
    assert patchkit.report(model).counts == {"fused": 6}
    assert_same(reference, model, seeds=(0,))


LEFT = {
    "a forward hook is registered on it": lambda layer: layer.register_forward_hook(lambda *_: None),
    "A, B or dropout: a forward hook": lambda layer: layer.lora_b.register_forward_hook(lambda *_: None),
    "A, B or dropout: a backward hook": lambda layer: layer.lora_a.register_full_backward_hook(lambda *_: None),
    "its dropout works in place": lambda layer: setattr(layer.dropout, "inplace", True),
    "its dropout is a AlphaDropout": lambda layer: setattr(layer, "dropout", nn.AlphaDropout(0.3)),
    "not made of two linear layers": lambda layer: setattr(layer, "lora_b", nn.Sequential(layer.lora_b)),
    "its scaling is a Tensor": lambda layer: setattr(
        layer, "alpha" if isinstance(layer, LoRALinear) else "scaling", torch.tensor(2.0)
    ),
}


@pytest.mark.parametrize("kind", [LoRALinear, DoRALinear])
@pytest.mark.parametrize("part", ["lora_a", "lora_b"])
@pytest.mark.parametrize("change", ["a bias", "no weight"])
def test_a_factor_that_is_not_one_matrix(kind, part, change):
    layer = kind(4, 6, rank=2, alpha=1.0)
    factor = getattr(layer, part)
    assert not isinstance(read_projection(layer), str)
    if change == "a bias":
        factor.bias = nn.Parameter(torch.zeros(factor.out_features))
    else:
        factor.weight = None
    assert read_projection(layer) == "its A or B is not one matrix"


@pytest.mark.parametrize("reason", LEFT)
@pytest.mark.parametrize("kind", [LoRALinear, DoRALinear])
def test_left_to_torchtune(kind, reason):
    model = replaced("llama", make(kind, dropout=0.3))
    LEFT[reason](model.model.layers[0].mlp.down_proj)
    reference = copy.deepcopy(model)
    report = patchkit.apply(model)
    assert "fused" not in {row.level for row in report.rows if row.name.endswith("layers.0.mlp")}
    assert any(reason in found for found in reasons(report)), reasons(report)
    assert_same(reference, model)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((LoRALinear, name) for name in ("lora_a", "lora_b", "dropout")),
        *((DoRALinear, name) for name in ("lora_a", "lora_b", "dropout", "magnitude", "_get_weight_norm")),
    ],
)
def test_a_part_that_stands_on_the_instance(kind, name):
    """Python finds it before the submodule, parameter or method of that name."""
    model = replaced("llama", make(kind))
    layer = model.model.layers[0].mlp.down_proj
    layer.__dict__[name] = getattr(layer, name)
    report = patchkit.apply(model)
    assert any("A, B or dropout was replaced on the instance" in found for found in reasons(report)), reasons(report)


def test_quantised_base():
    """NF4 through torchao, a form of weight that only torchtune reads."""
    sizes = {"hidden_size": 256, "intermediate_size": 512}
    blocks = {"block_size": 64, "scaler_block_size": 256}

    def layer(linear):
        made = LoRALinear(linear.in_features, linear.out_features, 3, 5.0, quantize_base=True, **blocks)
        made.initialize_parameters()
        nn.init.normal_(made.lora_b.weight, std=0.3)
        made.weight.requires_grad_(False)
        return made

    model = replaced("llama", LORA, ["q_proj"], **sizes)
    torch.manual_seed(0)
    for block in model.model.layers:
        block.self_attn.o_proj = layer(block.self_attn.o_proj)
        block.mlp.down_proj = layer(block.mlp.down_proj)
    reference = copy.deepcopy(model)
    report = patchkit.apply(model)
    assert {row.part: row.level for row in report.rows} == {"qkv": "fused", "o": "upstream", "mlp": "upstream"}
    assert {f"{name}: its base weight is quantised (quantize_base)" for name in ("o_proj", "down_proj")} == reasons(
        report
    )
    assert_same(reference, model)


def test_layers_for_quantisation_aware_training():
    """A subclass with another forward: called, and known to carry an adapter."""

    def layer(linear):
        return QATLoRALinear(linear.in_features, linear.out_features, 3, 5.0)

    model = replaced("llama", layer, ["o_proj"])
    reference = copy.deepcopy(model)
    report = patchkit.apply(model)
    assert {row.level for row in report.rows if row.part == "o"} == {"upstream"}
    assert any("QATLoRALinear" in reason for reason in reasons(report))
    assert carries_adapter(model.model.layers[0].self_attn)
    assert_same(reference, model)


@pytest.mark.parametrize("kind", [LoRALinear, DoRALinear])
def test_mixed_dtypes_fail_as_in_torchtune(kind):
    model = replaced("llama", make(kind))
    for layer in (part for part in model.modules() if isinstance(part, kind)):
        layer.lora_a.bfloat16()
    reference = copy.deepcopy(model)
    report = patchkit.apply(model)
    assert report.counts == {"upstream": 6}
    assert all("torchtune casts nothing" in reason for reason in reasons(report))
    messages = []
    for either in (reference, model):
        with pytest.raises(RuntimeError) as caught:
            run(either, tiny_inputs("llama", either))
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_a_magnitude_that_is_none_is_upstreams_error():
    model = replaced("llama", DORA, ["o_proj"])
    for layer in model.model.layers:
        layer.self_attn.o_proj.magnitude = None
    reference = copy.deepcopy(model)
    report = patchkit.apply(model)
    assert "o_proj: its magnitude is not a parameter" in reasons(report)
    for either in (reference, model):
        with pytest.raises((TypeError, AttributeError), match="None"):
            run(either, tiny_inputs("llama", either))


def test_a_magnitude_of_another_dtype_widens_the_output():
    model = replaced("llama", DORA, ["o_proj"])
    magnitude = model.model.layers[0].self_attn.o_proj.magnitude
    magnitude.data = magnitude.data.double()
    reference = copy.deepcopy(model)
    report = patchkit.apply(model)
    assert reasons(report) - {"no active LoRA adapter"} == {"o_proj: its magnitude has another dtype than its weight"}
    x = torch.randn(2, 3, 64)
    outputs = [either.model.layers[0].self_attn.o_proj(x) for either in (reference, model)]
    assert outputs[0].dtype == outputs[1].dtype == torch.float64


def test_dora_under_autocast_is_torchtunes():
    """Its output is wider than autocast's dtype."""
    model = replaced("llama", DORA)
    reference = copy.deepcopy(model)
    patchkit.apply(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert patchkit.report(model).counts == {"upstream": 6}
    inputs = tiny_inputs("llama", model)
    expected, found = (run(either, inputs, autocast=torch.bfloat16) for either in (reference, model))
    findings = compare_runs(expected, found)
    assert findings.passed, (findings.problems, str(findings.worst))


def test_adapter_parameters_are_found():
    """torchtune asks modules by their methods, and its recipes save what it finds."""
    model = replaced("llama", DORA)
    before = get_adapter_params(model)
    patchkit.apply(model)
    after = get_adapter_params(model)
    assert len(after) == 2 * 7 * 3
    assert {name: id(value) for name, value in before.items()} == {name: id(value) for name, value in after.items()}


CONTRACT = [
    "training_curve",
    "weight_updates",
    "checkpointing_reentrant",
    "generate",
    "deepcopy",
    "pickle",
    "state_dict",
    "bfloat16",
    "autocast",
    "autocast_bfloat16_base",
]


@pytest.mark.parametrize("check", CONTRACT)
@pytest.mark.parametrize("layer", [LORA, DORA], ids=["LoRALinear", "DoRALinear"])
def test_contract(layer, check):
    model = replaced("llama", layer)
    result = CHECKS[check](model, tiny_inputs("llama", model))
    assert result.passed, str(result)
    if check != "autocast_bfloat16_base":  # only inside of autocast do its dtypes come together
        assert result.patch_result.counts == {"fused": 6}
