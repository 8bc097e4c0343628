"""F1, F5 to F10, F13, F24, F25: what systems of this kind got wrong about adapters and weights.

Each test is named after its row in the list of failure modes; rows that are tested elsewhere are named there.
"""

from __future__ import annotations

import copy

import peft
import pytest
import torch
import torch.nn.functional as F
from same_as_upstream import assert_fused, assert_same, named, pair, unpatched_copy
from torch import nn

import patchkit
from patchkit.testing import add_lora, randomise_adapter, run, tiny_inputs, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore")

OPTIMIZERS = {
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=0.02, fused=True),
    "AdamW foreach": lambda p: torch.optim.AdamW(p, lr=0.02, foreach=True),
    "SGD loop": lambda p: torch.optim.SGD(p, lr=0.05, foreach=False),
    "bitsandbytes 8 bits": lambda p: pytest.importorskip("bitsandbytes").optim.AdamW8bit(p, lr=0.02, min_8bit_size=1),
    "bitsandbytes 32 bits": lambda p: pytest.importorskip("bitsandbytes").optim.AdamW(p, lr=0.02),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_f1_dora_norm_after_training(optimizer):
    """The norm follows every step, also of optimizers that do not raise a tensor's version."""
    _, model = pair(use_dora=True)
    inputs = tiny_inputs("llama", model)
    trained = [p for p in model.parameters() if p.requires_grad]
    steps = OPTIMIZERS[optimizer](trained)
    before = [p.detach().clone() for p in trained]
    for _ in range(5):
        steps.zero_grad()
        model(**inputs).loss.backward()
        steps.step()
    assert all((p - b).abs().max() > 1e-3 for p, b in zip(trained, before, strict=True))
    assert_fused(model)
    assert_same(unpatched_copy(model), model)


def edit_data(model):
    for layer in named(model, "_proj"):
        layer.lora_A["default"].weight.data = layer.lora_A["default"].weight.data * 3
        layer.lora_B["default"].weight.data.mul_(-2)


def load_other_adapter(model):
    state = {name: 1.5 * value if "lora_" in name else value for name, value in model.state_dict().items()}
    model.load_state_dict(state)


def change_base(model):
    with torch.no_grad():
        for layer in named(model, "base_layer"):
            layer.weight.add_(0.3 * torch.randn_like(layer.weight))


def replace_parameters(model):
    for layer in named(model, "base_layer"):
        layer.weight = nn.Parameter(2 * layer.weight.data, requires_grad=False)


@pytest.mark.parametrize("edit", [edit_data, load_other_adapter, change_base, replace_parameters])
def test_f1_dora_norm_after_an_edit(edit):
    _, model = pair(use_dora=True)
    run(model, tiny_inputs("llama", model))
    edit(model)
    assert_fused(model)
    assert_same(unpatched_copy(model), model)


@pytest.mark.parametrize("bias", ["all", "lora_only", "none"])
@pytest.mark.parametrize("train_base", [False, True])
def test_f5_biases_and_base_weights_train(bias, train_base):
    reference, model = pair("qwen2", bias=bias)
    if train_base:
        for copied in (reference, model):
            for layer in named(copied, "base_layer"):
                layer.weight.requires_grad_(True)
    assert_fused(model)
    assert_same(reference, model, "qwen2")
    trained = set(run(model, tiny_inputs("qwen2", model)).gradients)
    assert any(name.endswith("q_proj.base_layer.bias") for name in trained) == (bias != "none")
    assert any(name.endswith("q_proj.base_layer.weight") for name in trained) == train_base


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_f6_one_mask_for_each_projection(name, monkeypatch):
    """The same seed, the same masks as PEFT, q, k, v, o, gate, up, down; and no two of them alike."""
    reference, model = pair(name, lora_dropout=0.4)
    assert_fused(model)
    assert_same(reference, model, name, seeds=(0, 1, 2))
    inputs, states = tiny_inputs(name, model), []
    for copied in (reference, model):
        torch.manual_seed(3)
        copied(**inputs)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    from patchkit_kernels.lora import straight
    from patchkit_kernels.ops import dropout_once

    drawn = []
    drop, drop_together = dropout_once.drop, straight.drop_together

    def noted(x, p):
        dropped, mask = drop(x, p)
        drawn.append(mask)
        return dropped, mask

    def noted_together(x, probabilities, dtype):
        found = drop_together(x, probabilities, dtype)
        drawn.extend(found[1].chunk(len(probabilities)))
        return found

    monkeypatch.setattr(dropout_once, "drop", noted)
    monkeypatch.setattr(straight, "drop_together", noted_together)
    model(**inputs)
    assert len(drawn) == 7 * 2
    alike = [(a, b) for i, a in enumerate(drawn) for b in drawn[:i] if a.shape == b.shape and torch.equal(a, b)]
    assert not alike


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("bias", ["none", "all"])
@pytest.mark.parametrize("train", [True, False])
def test_f7_dora_with_dropout_and_biases(dropout, bias, train):
    reference, model = pair("qwen2", use_dora=True, lora_dropout=dropout, bias=bias)
    assert_fused(model)
    for copied in (reference, model):
        copied.train(train)
    assert_same(reference, model, "qwen2", seeds=(0, 1))


@pytest.mark.skipif(not hasattr(peft, "VeloraConfig"), reason="VeLoRA is in PEFT since 0.20")
def test_f8_unknown_variants_run_upstream():
    reference, model = pair(velora_config=peft.VeloraConfig(num_groups=2))
    report = patchkit.report(model)
    assert set(report.counts) == {"upstream"}
    assert all("LoRA variant VeloraLinearVariant" in row.reason for row in report.rows)
    assert_same(reference, model)


def with_second_adapter(model, active):
    config = peft.LoraConfig(r=3, target_modules=["q_proj", "gate_proj", "down_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    model.add_adapter("second", config)
    randomise_adapter(model, "second", seed=5)
    model.base_model.set_adapter(active)
    return model.train()


@pytest.mark.parametrize("active", [["default", "second"], ["second", "default"], "second", "default"], ids=str)
@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"lora_dropout": 0.3}], ids=str)
def test_f9_several_adapters(active, options):
    """All of them, in their order; one that does not reach a layer leaves it plain."""
    reference, model = (with_second_adapter(m, active) for m in pair(**options))
    assert_fused(model)
    assert_same(reference, model, seeds=(0, 1))


def test_f9_mixed_batches():
    reference, model = (with_second_adapter(m, "default").eval() for m in pair())
    inputs = tiny_inputs("llama", model)
    names = [("default", "second", "__base__")[i % 3] for i in range(inputs["input_ids"].shape[0])]
    with torch.no_grad():
        expected, found = (m(**inputs, adapter_names=names).logits for m in (reference, model))
        unmixed = model(**inputs).logits
    assert torch.equal(expected, found)
    assert not torch.allclose(found, unmixed)


class OddlyQuantised(nn.Linear):
    """Two by two blocks with a scale each, over sizes that are no multiples of two."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features, bias=False)
        self.weight = nn.Parameter(linear.weight.data, requires_grad=False)
        rows, columns = ((size + 1) // 2 for size in linear.weight.shape)
        self.scale = nn.Parameter(torch.rand(rows, columns) + 0.5, requires_grad=False)

    def forward(self, x):
        scale = self.scale.repeat_interleave(2, 0).repeat_interleave(2, 1)
        return F.linear(x, self.weight * scale[: self.weight.shape[0], : self.weight.shape[1]])


def test_f10_unknown_quantisation_runs_upstream():
    reference = add_lora(tiny_model("llama", intermediate_size=97)).train()
    for layer in named(reference, "gate_proj", "down_proj", "q_proj"):
        layer.base_layer = OddlyQuantised(layer.base_layer)
    model = copy.deepcopy(reference)
    report = patchkit.apply(model)
    assert {row.part: row.level for row in report.rows} == {"qkv": "alone", "o": "fused", "mlp": "alone"}
    assert any("OddlyQuantised" in row.reason for row in report.rows)
    assert_same(reference, model)


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_f13_each_4_bit_type_with_its_own_table(quant_type):
    """bitsandbytes decodes. The other type's table would be off by far more than rounding."""
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is Linux only")
    plain = tiny_model("llama")
    plain.is_loaded_in_4bit = True
    for parent in list(plain.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and name != "lm_head":
                layer = bnb.nn.Linear4bit(child.in_features, child.out_features, bias=False, quant_type=quant_type)
                layer.weight = bnb.nn.Params4bit(child.weight.data, requires_grad=False, quant_type=quant_type)
                setattr(parent, name, layer.to("cpu"))
    reference = add_lora(plain).train()
    model = copy.deepcopy(reference)
    patchkit.apply(model)
    assert_fused(model)
    assert_same(reference, model)
    weight = named(model, "q_proj")[0].base_layer.weight
    right = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
    other = copy.deepcopy(weight.quant_state)
    other.quant_type = {"nf4": "fp4", "fp4": "nf4"}[quant_type]
    assert (bnb.functional.dequantize_4bit(weight.data, other) - right).norm() > 0.1 * right.norm()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_f24_magnitude_zero(dropout):
    reference, model = pair(use_dora=True, lora_dropout=dropout)
    for copied in (reference, model):
        for layer in named(copied, "_proj"):
            with torch.no_grad():
                layer.lora_magnitude_vector["default"].weight[::2] = 0
    assert_fused(model)
    assert_same(reference, model)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=str)
def test_f25_merge_and_unload(options):
    reference, model = (m.merge_and_unload().train() for m in pair(**options))
    assert_same(reference, model)
