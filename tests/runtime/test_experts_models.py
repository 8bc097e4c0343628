"""Whole models with adapted experts and routers, patched against plain, through what users do with a model."""

from __future__ import annotations

import copy
import io
from collections import Counter

import pytest
import torch
import transformers
from packaging.version import Version
from peft import PeftModel, get_peft_model_state_dict

import patchkit
from patchkit.testing import add_lora, compare_runs, fused_calls, run, tiny_inputs_for, tiny_model_from
from patchkit.testing.checks import adapters as adapter_checks
from patchkit.testing.checks import inference, training
from patchkit.testing.checks import lifecycle as life_checks

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore::patchkit.errors.PatchkitWarning", "ignore::UserWarning", "ignore::FutureWarning"
    ),
    pytest.mark.skipif(
        Version(transformers.__version__) < Version("5"), reason="transformers before 5 keeps experts as linear layers"
    ),
]

GPT_OSS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.router.weight"]
MODELS: dict[str, dict[str, object]] = {
    "mixtral": {},
    "qwen3_moe": {},
    "gpt_oss": {"target_parameters": GPT_OSS},
    "granitemoe": {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    "deepseek_v3": {},
    "minimax": {},
    "nemotron_h": {"target_modules": ["q_proj"], "target_parameters": ["experts.up_proj", "experts.down_proj"]},
    "aria_text": {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    "longcat_flash": {},
}
EXACT = {"mixtral", "qwen3_moe", "gpt_oss", "granitemoe", "aria_text"}
"""Those that compute all in the model's dtype: the others have scores, or more, in float32 whatever that is."""


def build(model_type, *, implementation="eager", dtype=torch.float64):
    """A tiny model with adapters on linear layers, experts and routers, and inputs for it."""
    model = tiny_model_from(model_type)
    if hasattr(model.config, "_experts_implementation"):
        model.set_experts_implementation(implementation)
    options = {"target_modules": "all-linear", "task_type": "CAUSAL_LM", "r": 3} | MODELS[model_type]
    adapted = add_lora(model, **options).to(dtype)
    return adapted, tiny_inputs_for(adapted)


def patch(model):
    """Without blocks, of which other tests are."""
    return patchkit.apply(model, qkv=False, o=False, mlp=False)


def rows_of(report):
    return Counter((row.part, row.level, row.reason) for row in report.rows if row.part in ("linear", "experts"))


@pytest.mark.parametrize("model_type", MODELS)
def test_in_float64(model_type):
    model, inputs = build(model_type)
    ours = copy.deepcopy(model)
    report = patch(ours)
    assert {(level, reason) for _, level, reason in rows_of(report)} == {("fused", "")}
    assert "experts" in {row.part for row in report.rows}
    expected = run(model, inputs)
    with fused_calls() as calls:
        found = run(ours, inputs)
    assert "lora_linear" in calls
    findings = compare_runs(expected, found, 1e-11 if model_type in EXACT else 1e-5)
    assert findings.passed, findings


@pytest.mark.parametrize("implementation", ["batched_mm", "grouped_mm"])
@pytest.mark.parametrize("model_type", ["mixtral", "gpt_oss"])
def test_other_implementations(model_type, implementation):
    dtype = torch.float64 if implementation == "batched_mm" else torch.float32
    model, inputs = build(model_type, implementation=implementation, dtype=dtype)
    ours = copy.deepcopy(model)
    patch(ours)
    expected = run(model, inputs)
    with fused_calls() as calls:
        found = run(ours, inputs)
    assert calls.count("lora_stack") == 4
    # In float32 the logits alone: gradients through a softmax of scores are conditioned badly.
    if dtype == torch.float32:
        assert (found.outputs["logits"] - expected.outputs["logits"]).norm() <= 1e-5 * expected.outputs["logits"].norm()
    else:
        findings = compare_runs(expected, found, 1e-11)
        assert findings.passed, findings


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (
        adapter_checks.disable_adapter,
        adapter_checks.merge_adapter,
        adapter_checks.merge_and_unload,
        adapter_checks.adapter_switching,
        training.evaluation,
        training.no_grad,
        training.repeated_backward,
        training.ragged_padding,
        training.training_curve,
        training.weight_updates,
        training.checkpointing_reentrant,
        training.checkpointing_non_reentrant,
        inference.generate,
        life_checks.deepcopy,
        life_checks.pickle,
    )
}


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("model_type", ["mixtral", "gpt_oss"])
def test_what_users_do(model_type, name):
    """The scenarios of the contract, in float64: a choice of experts turns on the last bit of a float32."""
    model, inputs = build(model_type)
    ours = copy.deepcopy(model)
    patch(ours)
    wanted = list(SCENARIOS[name](model, inputs))
    found = list(SCENARIOS[name](ours, inputs))
    assert [stage for stage, _ in found] == [stage for stage, _ in wanted]
    for (stage, expected), (_, actual) in zip(wanted, found, strict=True):
        findings = compare_runs(expected, actual, 1e-9, stage=stage)
        assert findings.passed, findings


def test_mixed_batches_fail_as_before():
    model, inputs = build("mixtral")
    ours = copy.deepcopy(model.eval())
    patch(ours)
    errors = []
    for one in (model, ours):
        with pytest.raises(ValueError, match="ParamWrapper") as caught:
            one(**inputs, adapter_names=["default"] * len(inputs["input_ids"]))
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


def test_reverted():
    model, inputs = build("mixtral")
    ours = copy.deepcopy(model)
    classes = {name: type(module) for name, module in ours.named_modules()}
    keys = list(ours.state_dict())
    patch(ours)
    assert list(ours.state_dict()) == keys
    run(ours, inputs)
    patchkit.revert(ours)
    assert {name: type(module) for name, module in ours.named_modules()} == classes
    findings = compare_runs(run(model, inputs), run(ours, inputs), 0.0)
    assert findings.passed, findings


def test_patched_twice_is_patched_once():
    model, _ = build("mixtral")
    first = rows_of(patch(model))
    classes = {name: type(module) for name, module in model.named_modules()}
    assert rows_of(patch(model)) == first == rows_of(patchkit.report(model))
    assert {name: type(module) for name, module in model.named_modules()} == classes


def test_saved_and_loaded(tmp_path):
    """What is saved of a patched model is what is saved of a plain one, and loads into it."""
    model, inputs = build("mixtral")
    ours = copy.deepcopy(model)
    patch(ours)
    saved = [get_peft_model_state_dict(one) for one in (model, ours)]
    assert saved[0].keys() == saved[1].keys()
    assert all(torch.equal(tensor, saved[1][key]) for key, tensor in saved[0].items())
    ours.save_pretrained(tmp_path)
    base = copy.deepcopy(model).unload()
    loaded = PeftModel.from_pretrained(base, tmp_path, is_trainable=True).to(torch.float64)
    patch(loaded)
    findings = compare_runs(run(model, inputs), run(loaded, inputs), 1e-11)
    assert findings.passed, findings


def test_a_pickle_needs_no_patchkit():
    model, _ = build("mixtral")
    patch(model)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert not any("patchkit" in cls.__module__ for module in loaded.modules() for cls in type(module).__mro__)
    patchkit.revert(model)
    assert {type(module) for module in loaded.modules()} == {type(module) for module in model.modules()}


def test_the_report_follows_the_state():
    model, _ = build("mixtral")
    patch(model)

    def found():
        return rows_of(patchkit.report(model))

    fused = {("linear", "fused", ""): 2, ("experts", "fused", ""): 2}
    assert found() == fused
    model.merge_adapter()
    assert {level for _, level, _ in found()} == {"upstream"}
    model.unmerge_adapter()
    with model.disable_adapter():
        assert {reason for _, _, reason in found()} == {"no active LoRA adapter"}
    assert found() == fused
    handle = model.base_model.model.model.layers[0].mlp.experts.get_base_layer().register_forward_hook(print)
    assert found()["experts", "upstream", "MixtralExperts: a forward hook is registered on it"] == 1
    handle.remove()
    assert found() == fused
