"""The harness passes what is equal, and reports each of a table of faults."""

import copy

import parity_mutants as mutants
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

import patchkit
from patchkit.testing import CHECKS, add_lora, run_checks, tiny_inputs, tiny_model


def case(name="llama", **lora_config):
    model = add_lora(tiny_model(name), **lora_config)
    return model, tiny_inputs(name, model)


@pytest.mark.parametrize(
    ("name", "lora_config", "left_out"),
    [("qwen2", {"lora_dropout": 0.1}, set()), ("gemma3_mm", {}, {"compile", "hooks", "training_curve"})],
    ids=["text, dropout", "multimodal"],
)
def test_the_unchanged_model_passes_everything(name, lora_config, left_out):
    model, inputs = case(name, **lora_config)
    state = copy.deepcopy(model.state_dict())
    names = [check for check in CHECKS if check not in left_out]
    results = run_checks(model, inputs, mutants.does_nothing, revert=mutants.does_nothing, names=names)
    assert [result.check for result in results] == names
    assert not [str(result) for result in results if not result.passed]
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["llama", "gemma2", "paligemma", "mistral3", "qwen2_5_vl"])
def test_another_order_of_summation_passes_in_float32(name):
    model, inputs = case(name)
    names = [
        "forward_backward", "eval", "no_grad", "repeated_backward", "ragged_padding", "training_curve", "weight_updates",
        "checkpointing_reentrant", "checkpointing_non_reentrant", "generate", "disable_adapter", "merge_adapter",
        "adapter_switching", "pickle", "hooks", "patch_twice", "isolation", "revert",
    ]  # fmt: skip
    if name != "llama":
        names = [check for check in names if check not in {"training_curve", "hooks", "weight_updates"}]
    results = run_checks(model, inputs, mutants.everywhere(mutants.reordered), revert=mutants.restore, names=names)
    assert not [str(result) for result in results if not result.passed]
    assert results[0].worst.error > 1e-8
    assert len(results[0].patched_modules) == 14


@pytest.mark.parametrize("name", ["qwen2", "gemma3"])
@pytest.mark.parametrize("check", ["bfloat16", "float16", "autocast_bfloat16_base"])
def test_fewer_roundings_pass_in_low_precision(name, check):
    result = CHECKS[check](*case(name), mutants.everywhere(mutants.fused))
    assert result.passed, result
    totals = [m for m in result.findings.measurements if m.name in ("logits", "all gradients")]
    assert len(totals) == 2
    assert all(0.8 < total.error < 1.08 for total in totals)


@pytest.mark.parametrize("initial", [True, False], ids=["B is zero", "B is random"])
@pytest.mark.parametrize("seed", range(4))
def test_low_precision_is_judged_alike_for_every_draw_of_a_users_model(seed, initial):
    """A model with the initialisation of transformers and PEFT, in place of the weights that tiny models get here."""
    torch.manual_seed(seed)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 100}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **heads, **sizes))
    model = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=initial))
    ids = torch.randint(0, 100, (2, 16))
    results = run_checks(model, {"input_ids": ids, "labels": ids}, names=["autocast", "autocast_bfloat16_base"])
    assert not [str(result) for result in results if not result.passed]


SCALED = mutants.everywhere(mutants.scaled_adapter)
ROUNDED = mutants.everywhere(mutants.rounds_once_more(6))
ROUNDED_HALF = mutants.everywhere(mutants.rounds_once_more(9))
FAULTS = {
    # name: (model, LoRA configuration, patch, checks that must fail, text that must be in the report)
    "adapter scaled by 1.01": ("llama", {}, SCALED, ["forward_backward", "eval", "no_grad", "generate"], "logits"),
    "k and v swapped": ("llama", {}, mutants.swaps_k_and_v, ["forward_backward"], "gradient"),
    "erf-GELU for tanh-GELU": ("gemma", {}, mutants.erf_gelu, ["forward_backward", "mlp_input_shapes"], ""),
    "bias dropped": ("qwen2", {}, mutants.drops_bias, ["forward_backward"], "logits"),
    "dA zero": ("llama", {}, mutants.zeroes_gradient_of_lora_a, ["forward_backward"], "gate_proj.lora_A"),
    "gradient missing": ("llama", {}, mutants.freezes_one_parameter, ["forward_backward"], "upstream has them"),
    "gradient too many": ("llama", {}, mutants.trains_one_parameter_more, ["forward_backward"], "upstream has none"),
    "bias not trained": (
        "qwen2", {"bias": "all"},
        lambda model: mutants.layers(model, "k_proj")[1].base_layer.bias.requires_grad_(False),
        ["forward_backward"], "k_proj",
    ),
    "extra dropout": ("llama", {}, mutants.everywhere(mutants.extra_dropout), ["forward_backward"], "logits"),
    "shared dropout mask": ("llama", {"lora_dropout": 0.1}, mutants.shares_dropout_mask, ["forward_backward", "dropout"], ""),
    "wrong in eval": ("llama", {}, mutants.everywhere(mutants.in_eval_only), ["eval"], ""),
    "wrong without grad": (
        "llama", {}, mutants.everywhere(mutants.without_grad_only), ["no_grad", "checkpointing_reentrant"], "",
    ),
    "wrong under checkpointing": (
        "llama", {}, mutants.everywhere(mutants.under_checkpointing_only), ["checkpointing_non_reentrant"], "",
    ),
    "saved tensor overwritten": (
        "llama", {}, mutants.everywhere(mutants.overwrites_saved), ["repeated_backward"], "accumulated",
    ),
    "long rows": ("llama", {}, mutants.everywhere(mutants.on_long_rows), ["ragged_padding"], "padded"),
    "slightly wrong gradient": ("llama", {}, mutants.wrong_gradient_scale, ["training_curve"], "step"),
    "stale weights": (
        "llama", {}, mutants.everywhere(mutants.keeps_stale_product),
        ["weight_updates", "training_curve", "state_dict", "deepcopy"], "",
    ),
    "three dimensions only": (
        "llama", {}, mutants.everywhere(mutants.on_three_dimensions_only), ["mlp_input_shapes"], "Traceback",
    ),
    "single tokens": ("llama", {}, mutants.everywhere(mutants.on_single_tokens, "k_proj"), ["generate"], "logits"),
    "graph break": ("llama", {}, mutants.everywhere(mutants.breaks_the_graph), ["compile"], "Traceback"),
    "adapter not disabled": (
        "llama", {}, mutants.everywhere(mutants.ignores_disabling), ["disable_adapter"], "no visible difference",
    ),
    "merged applied twice": (
        "llama", {}, mutants.everywhere(mutants.applies_merged_twice), ["merge_adapter"], "merged: logits",
    ),
    "first adapter only": (
        "llama", {}, mutants.everywhere(mutants.first_adapter_only), ["adapter_switching"], "",
    ),
    "adapter_names dropped": ("llama", {}, mutants.everywhere(mutants.drops_adapter_names), ["mixed_adapters"], ""),
    "hooks bypassed": ("llama", {}, mutants.everywhere(mutants.bypasses_hooks), ["hooks"], "makes no difference"),
    "original captured": ("llama", {}, mutants.closes_over_the_module, ["deepcopy", "pickle", "revert"], ""),
    "patched at every call": ("llama", {}, mutants.patches_every_call, ["patch_twice"], "the second call changed"),
    "class renamed": ("llama", {}, mutants.renames_class, ["state_dict"], "is named Patched"),
    "parameters replaced": ("llama", {}, mutants.replaces_parameters, ["state_dict"], "replaced"),
    "one more rounding, bfloat16": ("llama", {}, ROUNDED, ["bfloat16", "autocast", "autocast_bfloat16_base"], "all grad"),
    "one more rounding, float16": ("llama", {}, ROUNDED_HALF, ["float16"], "logits"),
    "merge_and_unload": ("llama", {}, mutants.erf_gelu, ["merge_and_unload"], "unloaded"),
    "crash": ("llama", {}, mutants.crashes, ["forward_backward", "bfloat16", "compile"], "the patch crashes"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_reported(fault):
    name, lora_config, patch, checks, text = FAULTS[fault]
    model, inputs = case(name, **lora_config)
    for result in run_checks(model, inputs, patch, revert=mutants.restore, names=checks):
        assert result.status == "failed", result
        assert text in str(result)


def test_falling_back_while_compiling_is_reported(monkeypatch):
    """The numbers are right, and the graph has nothing of what was asked for."""
    from patchkit.runtime import methods

    real = methods.input_of
    model, inputs = case("llama")
    assert CHECKS["compile"](model, inputs, patchkit.apply).passed
    monkeypatch.setattr(
        methods, "input_of", lambda x, precision: "compiling" if torch.compiler.is_compiling() else real(x, precision)
    )
    result = CHECKS["compile"](model, inputs, patchkit.apply)
    assert result.status == "failed"
    assert "lora_projections: 2 calls are not in the graph" in str(result)
    assert "lora_gated_mlp: 2 calls" in str(result)


def test_a_global_monkey_patch_is_reported(monkeypatch):
    from transformers.models.llama.modeling_llama import LlamaMLP

    upstream = LlamaMLP.forward

    def patch(model):
        monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: upstream(self, x * 1.0000001))

    result = CHECKS["isolation"](*case(), patch)
    assert result.status == "failed"
    assert "bystander" in str(result)


def test_every_check_has_a_fault_that_it_reports():
    assert {check for *_, checks, _ in FAULTS.values() for check in checks} | {"isolation"} == set(CHECKS)


def test_a_patch_result_and_the_patched_modules_are_kept():
    def patch(model):
        mutants.everywhere(mutants.reordered, "q_proj")(model)
        return "the report"

    result = CHECKS["forward_backward"](*case(), patch)
    assert result.passed
    assert result.patch_result == "the report"
    assert [name.rpartition(".")[2] for name in result.patched_modules] == ["q_proj", "q_proj"]


class TestInapplicable:
    def test_no_peft_model(self):
        model = tiny_model("llama")
        inputs = tiny_inputs("llama", model)
        result = CHECKS["disable_adapter"](model, inputs, mutants.does_nothing)
        assert (result.status, result.passed) == ("inapplicable", False)
        assert "LlamaForCausalLM is not a PEFT model" in str(result)

    def test_an_adapter_without_effect_proves_nothing(self):
        model = add_lora(tiny_model("llama"))
        for layer in mutants.layers(model):
            torch.nn.init.zeros_(layer.lora_B["default"].weight)
        result = CHECKS["disable_adapter"](model, tiny_inputs("llama", model), mutants.does_nothing)
        assert result.status == "inapplicable"

    def test_nothing_to_revert_with(self):
        assert CHECKS["revert"](*case(), mutants.does_nothing).status == "inapplicable"

    def test_upstream_does_not_compile(self):
        result = CHECKS["compile"](*case("llava"), mutants.does_nothing)
        assert result.status == "inapplicable"
        assert "upstream does not compile" in result.reason


def test_unknown_checks_are_named():
    with pytest.raises(ValueError, match="unknown checks forward; known: "):
        run_checks(*case(), mutants.does_nothing, names=["forward"])


def test_models_of_another_dtype_are_checked_in_float32():
    model = add_lora(tiny_model("llava", dtype=torch.bfloat16))
    result = CHECKS["forward_backward"](
        model, tiny_inputs("llava", model), mutants.everywhere(mutants.reordered, "q_proj")
    )
    assert result.passed, result
    assert 0 < result.worst.error < 1e-5


def test_a_truth_that_float64_cannot_give_is_taken_in_float32():
    model = add_lora(tiny_model("gemma2"))
    inputs = tiny_inputs("gemma2", model, padding="left")
    assert CHECKS["bfloat16"](model, inputs, mutants.everywhere(mutants.fused)).passed
