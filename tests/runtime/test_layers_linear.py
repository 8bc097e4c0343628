"""Every adapted linear layer where it stands, in models of which no block is known: equal to an unpatched copy, and said."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import peft
import pytest
import torch
import torch.nn.functional as F
import transformers
from peft.tuners import lora
from torch import nn

import patchkit
from patchkit.binding.patch import patch_of
from patchkit.derivation import known
from patchkit.errors import NotPatchedError
from patchkit.testing import CHECKS, add_lora, compare_runs, fused_calls, randomise_adapter, run
from patchkit.testing.parity import compare_types
from patchkit.testing.tiny_models import initialise

pytestmark = pytest.mark.filterwarnings("ignore::patchkit.errors.PatchkitWarning", "ignore::UserWarning")

_SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
_GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
_T5 = {
    "decoder_start_token_id": 0,
    "vocab_size": 64,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 1,
    "num_heads": 4,
    "pad_token_id": 0,
}
_QUIET = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}

CONFIGS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "one projection for q, k and v": lambda: (
        transformers.AutoModelForCausalLM,
        transformers.Phi3Config(intermediate_size=48, num_key_value_heads=2, **_SMALL),
    ),
    "Conv1D": lambda: (transformers.AutoModelForCausalLM, transformers.GPT2Config(**_GPT2, **_QUIET)),
    "FalconLinear, with bias": lambda: (
        transformers.AutoModelForCausalLM,
        transformers.FalconConfig(bias=True, **_SMALL),
    ),
    "FalconLinear": lambda: (transformers.AutoModelForCausalLM, transformers.FalconConfig(bias=False, **_SMALL)),
    "encoder": lambda: (
        transformers.AutoModelForMaskedLM,
        transformers.BertConfig(intermediate_size=48, hidden_dropout_prob=0.0, **_SMALL),
    ),
    "encoder and decoder": lambda: (
        transformers.AutoModelForSeq2SeqLM,
        transformers.T5Config(dropout_rate=0.0, feed_forward_proj="gated-gelu", **_T5),
    ),
}


class CrossAttention(nn.Module):
    """As in a diffusion model: keys and values of another sequence, the output projection in a container."""

    def __init__(self):
        super().__init__()
        self.to_q, self.to_k, self.to_v = nn.Linear(16, 24, bias=False), nn.Linear(12, 24), nn.Linear(12, 24)
        self.to_out = nn.ModuleList([nn.Linear(24, 16), nn.Dropout(0.0)])

    def forward(self, x, context):
        attended = F.scaled_dot_product_attention(self.to_q(x), self.to_k(context), self.to_v(context))
        for layer in self.to_out:
            attended = layer(attended)
        return x + attended


class Own(nn.Module):
    """A module of nobody's architecture; one layer is called twice, and one on a vector."""

    def __init__(self):
        super().__init__()
        self.attention = CrossAttention()
        self.net = nn.Sequential(nn.Linear(16, 20), nn.GELU(), nn.Linear(20, 16))
        self.proj = nn.Linear(16, 16)
        self.score = nn.Linear(16, 5)

    def forward(self, input_ids, labels, use_cache=None):
        x = torch.sin(input_ids[..., None] * torch.arange(1, 17, device=input_ids.device))
        x = self.net(self.attention(x, x[..., :12].flip(1)))
        logits = self.score(self.proj(torch.tanh(self.proj(x))))
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten() % 5) + self.score(x[0, 0]).square().mean()
        return transformers.modeling_outputs.CausalLMOutput(loss=loss, logits=logits)


@pytest.fixture(autouse=True)
def _nothing_is_derived(monkeypatch):
    """These are tests of layers that no block holds, so no source is looked at."""
    monkeypatch.setattr(known, "derive", lambda cls: "nobody looked")
    monkeypatch.setattr(known, "_derived", {})


def build(kind, **config):
    """A model with adapters on every linear layer but the head."""
    options = {"r": 4, "target_modules": "all-linear"} | config
    torch.manual_seed(0)
    if kind == "a user's own":
        model = Own()
        initialise(model)
        names = ["to_q", "to_k", "to_v", "to_out.0", "net.0", "net.2", "proj", "score"]
        return add_lora(model, **(options | {"target_modules": names, "task_type": None})).train()
    auto, made = CONFIGS[kind]()
    model = auto.from_config(made)
    initialise(model)
    return add_lora(model, **(options | {"task_type": None})).train()


def inputs_of(kind):
    ids = torch.tensor([[5, 9, 33, 2, 17, 40], [8, 61, 3, 3, 12, 7]])
    return {"input_ids": ids, "labels": ids.clone()}


def longer_inputs():
    """Enough tokens that a ratio of two rounding errors is known to a few percent."""
    ids = torch.randint(3, 64, (2, 24), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "labels": ids.clone(), "attention_mask": torch.ones_like(ids)}


KINDS = ["a user's own", *CONFIGS]


def levels(model_or_report):
    report = patchkit.report(model_or_report) if isinstance(model_or_report, nn.Module) else model_or_report
    return {(row.part, row.level) for row in report.rows}


def assert_equal(reference, model, inputs, seeds=(0, 1)):
    for seed in seeds:
        expected, found = (run(one, inputs, seed=seed, input_gradients=False) for one in (reference, model))
        findings = compare_runs(expected, found) + compare_types(expected, found)
        assert findings.passed, findings


@pytest.mark.parametrize(
    ("kind", "config"),
    [(kind, config) for kind in KINDS for config in ({}, {"lora_dropout": 0.3})]
    # A single vector, on which that model calls its score, is no matrix, as PEFT's DoRA wants one.
    + [(kind, {"use_dora": True, **dropped}) for kind in CONFIGS for dropped in ({}, {"lora_dropout": 0.3})]
    # The bias of a key has no gradient but rounding, because softmax does not see it.
    + [(kind, {"bias": "all"}) for kind in CONFIGS if kind != "encoder"],
    ids=str,
)
def test_every_adapted_layer_runs_fused_and_equal(kind, config):
    reference = build(kind, **config)
    model = copy.deepcopy(reference)
    report = patchkit.apply(model)
    adapted = [name for name, module in model.named_modules() if isinstance(module, lora.Linear)]
    assert [row.name for row in report.rows] == adapted
    assert {row.level for row in report.rows} == {"fused"}, str(report)
    with fused_calls() as calls:
        model(**inputs_of(kind))
    assert Counter(calls).keys() == {"lora_linear"}
    assert len(calls) >= len(adapted)
    assert_equal(reference, model, inputs_of(kind))
    assert patchkit.report(model) == report
    assert patchkit.revert(model) == len(adapted)
    assert not any(patch_of(module) for module in model.modules())


def second_adapter(active):
    def change(model):
        torch.manual_seed(1)
        model.add_adapter("second", peft.LoraConfig(r=3, lora_alpha=5, target_modules=["qkv_proj", "down_proj"]))
        randomise_adapter(model, "second", seed=3)
        model.base_model.set_adapter(active)

    return change


def merge(model):
    model.merge_adapter()


def disable(model):
    model.base_model.disable_adapter_layers()


def hook(model):
    layer_of(model).register_forward_hook(lambda module, arguments, output: output * 1.5)


def hook_on_base(model):
    layer_of(model).base_layer.register_forward_hook(lambda module, arguments, output: output * 1.5)


def replace_forward(model):
    layer = layer_of(model)
    layer.forward = lambda x: 2 * type(layer).forward(layer, x)


def layer_of(model):
    return next(module for module in model.modules() if isinstance(module, lora.Linear))


def train_base(model):
    for module in model.modules():
        if isinstance(module, lora.Linear):
            module.base_layer.weight.requires_grad_(True)


class State(NamedTuple):
    """What is done to a model, the levels that its layers have then, and words of the reason."""

    name: str
    change: Callable[[nn.Module], None]
    levels: set[str]
    reason: str = ""
    targets: tuple[str, ...] = ("qkv_proj", "o_proj", "down_proj")


STATES = [
    State("two adapters", second_adapter(["default", "second"]), {"fused"}),
    State("the other adapter", second_adapter("second"), {"fused", "upstream"}, "no active LoRA adapter"),
    State("merged", merge, {"upstream"}, "its adapters are merged"),
    State("disabled", disable, {"upstream"}, "its adapters are disabled"),
    State("hook", hook, {"fused", "upstream"}, "a forward hook is registered on it"),
    State("hook on the base", hook_on_base, {"fused", "upstream"}, "base layer: a forward hook"),
    State("replaced forward", replace_forward, {"fused", "upstream"}, "was replaced on the instance"),
    State("trained base", train_base, {"fused"}),
]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.name)
def test_states(state, when):
    """What is done before ``apply`` and what is done after it are seen alike."""
    reference, model = (build("one projection for q, k and v", target_modules=state.targets) for _ in range(2))
    if when == "after":
        patchkit.apply(model)
    for each in (reference, model):
        state.change(each)
    if when == "before":
        patchkit.apply(model)
    report = patchkit.report(model)
    assert {row.level for row in report.rows} == state.levels, str(report)
    assert any(state.reason in row.reason for row in report.rows)
    if state.change in (merge, disable):  # nothing is trained then
        assert torch.equal(reference(**inputs_of("")).logits, model(**inputs_of("")).logits)
    else:
        assert_equal(reference, model, inputs_of(""))


@pytest.mark.parametrize("check", list(CHECKS))
def test_contract(check):
    model = build("one projection for q, k and v", r=3, lora_alpha=7)
    result = CHECKS[check](model, longer_inputs())
    assert result.status != "failed", str(result)
    assert result.patch_result is None or levels(result.patch_result) == {("linear", "fused")}


@pytest.mark.parametrize("check", ["bfloat16", "float16", "autocast", "training_curve", "checkpointing_reentrant"])
@pytest.mark.parametrize("kind", ["Conv1D", "FalconLinear, with bias"])
def test_contract_of_other_kinds_of_layers(kind, check):
    result = CHECKS[check](build(kind), longer_inputs())
    assert result.passed, str(result)


def test_a_layer_that_is_never_called_is_said():
    """``torch.nn.MultiheadAttention`` reads the weight of its output projection: PEFT's adapter on it does nothing."""

    class Calls(nn.MultiheadAttention):
        def forward(self, x):
            return self.out_proj(x)

    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
            self.calls = Calls(16, 4)
            self.proj = nn.Linear(16, 16)

        def forward(self, x):
            return self.calls(self.proj(self.attention(x, x, x)[0]))

    torch.manual_seed(0)
    model = add_lora(Attends(), target_modules=["out_proj", "proj"], task_type=None)
    x = torch.randn(2, 3, 16)
    before = model(x)
    report = patchkit.apply(model)
    rows = {row.module_class: (row.level, "does not call it" in row.reason) for row in report.rows}
    assert rows == {
        "MultiheadAttention.out_proj": ("upstream", True),
        "Attends.proj": ("fused", False),
        "Calls.out_proj": ("fused", False),
    }
    torch.testing.assert_close(model(x), before)
    output = next(module for name, module in model.named_modules() if name.endswith("attention.out_proj"))
    assert patch_of(output) is None
    with torch.no_grad():  # the fact that the report tells
        for parameter in output.lora_B.parameters():
            parameter.add_(1.0)
    torch.testing.assert_close(model(x), before)


def test_switched_off():
    model = build("one projection for q, k and v")
    classes = [type(module) for module in model.modules()]
    report = patchkit.apply(model, linear=False)
    assert levels(report) == {("linear", "upstream")}
    assert {row.reason for row in report.rows} == {"switched off (linear=False)"}
    assert [type(module) for module in model.modules()] == classes
    with pytest.raises(NotPatchedError):
        patchkit.apply(model, linear=False, strict=True)
    patchkit.apply(model, strict=True)
    patchkit.apply(model, linear=False)
    assert [type(module) for module in model.modules()] == classes


def test_compiled_in_one_graph():
    model = build("one projection for q, k and v", target_modules=["qkv_proj", "down_proj"])
    inputs = {"input_ids": inputs_of("")["input_ids"]}
    expected = model(**inputs).logits
    patchkit.apply(model)
    with fused_calls() as calls:
        found = torch.compile(model, fullgraph=True, backend="aot_eager")(**inputs).logits
    assert len(calls) == 4
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("tuner", "reason"),
    [
        (peft.IA3Config(target_modules=["qkv_proj"], feedforward_modules=[]), "peft.tuners.ia3"),
        (peft.LoHaConfig(target_modules=["qkv_proj"]), "peft.tuners.loha"),
    ],
    ids=["IA3", "LoHa"],
)
def test_another_kind_of_adapter_is_named(tuner, reason):
    auto, config = CONFIGS["one projection for q, k and v"]()
    model = peft.get_peft_model(auto.from_config(config), tuner)
    classes = [type(module) for module in model.modules()]
    report = patchkit.apply(model)
    assert levels(report) == {("linear", "upstream")}
    assert all(reason in row.reason for row in report.rows)
    assert patchkit.report(model) == report
    assert [type(module) for module in model.modules()] == classes
