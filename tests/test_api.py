"""``apply``, ``revert``, ``patched``, ``report``: what they do, and what they say when they cannot."""

from __future__ import annotations

import copy
import logging
import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP

import patchkit
from patchkit.binding import swap as binding
from patchkit.errors import (
    MetaModelError,
    NotAModelError,
    NotPatchedError,
    PatchkitError,
    PatchkitWarning,
    RevertError,
    UnknownOptionError,
)
from patchkit.testing import add_lora, compare_runs, identical_runs, run, tiny_inputs, tiny_model


def classes(model):
    return [type(module) for module in model.modules()]


def levels(report):
    return {(row.part, row.level) for row in report.rows}


def assert_equal(reference, model, **options):
    inputs = tiny_inputs("llama", model)
    findings = compare_runs(run(reference, inputs, **options), run(model, inputs, **options))
    assert findings.passed, (findings.problems, str(findings.worst))


def test_applies_to_a_peft_model(lora_model):
    reference, model = lora_model()
    report = patchkit.apply(model)
    assert report.counts == {"fused": 6}
    assert report.summary == "LlamaForCausalLM (llama): qkv 2 fused; o 2 fused; mlp 2 fused"
    assert_equal(reference, model)


def test_applies_to_a_bare_model_with_injected_adapters(lora_model):
    reference, model = lora_model()
    assert patchkit.apply(model.base_model.model).counts == {"fused": 6}
    assert_equal(reference, model)


def test_applies_to_a_plain_model():
    """No adapters: attention has nothing to fuse; the MLP keeps less for backward."""
    model = tiny_model("llama")
    reference = copy.deepcopy(model)
    report = patchkit.apply(model)
    assert levels(report) == {("qkv", "upstream"), ("o", "upstream"), ("mlp", "fused")}
    assert {row.reason for row in report.rows if row.part == "o"} == {"no active LoRA adapter"}
    assert_equal(reference, model)


@pytest.mark.parametrize("only", ["qkv", "o", "mlp"])
def test_each_option_works_alone(lora_model, only):
    """F26."""
    reference, model = lora_model()
    report = patchkit.apply(model, **{part: part == only for part in ("qkv", "o", "mlp")})
    assert {row.part for row in report.at("fused")} == {only}
    off = [row for row in report.rows if row.part != only]
    assert off
    assert all(row.reason == f"switched off ({row.part}=False)" for row in off)
    assert_equal(reference, model)


def test_all_options_off_changes_nothing(lora_model):
    _, model = lora_model()
    before = classes(model)
    patchkit.apply(model, qkv=False, o=False, mlp=False)
    assert classes(model) == before


def test_applying_twice_is_a_no_op(lora_model):
    """F21."""
    _, model = lora_model()
    first = patchkit.apply(model)
    before = classes(model)
    assert patchkit.apply(model) == first
    assert classes(model) == before


def test_applying_again_with_other_options(lora_model):
    reference, model = lora_model()
    patchkit.apply(model, mlp=False)
    assert {row.part for row in patchkit.apply(model, qkv=False, o=False).at("fused")} == {"mlp"}
    assert_equal(reference, model)
    assert patchkit.apply(model).counts == {"fused": 6}
    assert_equal(reference, model)


def test_revert_restores_the_exact_classes(lora_model):
    reference, model = lora_model()
    before = classes(model)
    patchkit.apply(model)
    assert classes(model) != before
    assert patchkit.revert(model) == 4
    assert classes(model) == before
    inputs = tiny_inputs("llama", model)
    assert identical_runs(run(reference, inputs), run(model, inputs))


def test_patched_restores_what_was_before(lora_model):
    _, model = lora_model()
    before = classes(model)
    with patchkit.patched(model) as report:
        assert report.counts == {"fused": 6}
        assert classes(model) != before
    assert classes(model) == before


def test_patched_restores_after_an_error(lora_model):
    _, model = lora_model()
    before = classes(model)
    with pytest.raises(RuntimeError, match="in the block"), patchkit.patched(model):
        raise RuntimeError("in the block")
    assert classes(model) == before


def test_patched_inside_an_applied_model_leaves_it_applied(lora_model):
    _, model = lora_model()
    patchkit.apply(model, mlp=False)
    before = classes(model)
    with patchkit.patched(model, qkv=False, o=False) as report:
        assert levels(report) >= {("mlp", "fused"), ("qkv", "upstream")}
    assert classes(model) == before


def test_report_before_and_after(lora_model):
    _, model = lora_model()
    assert {row.reason for row in patchkit.report(model).rows} == {"not patched; call patchkit.apply(model)"}
    applied = patchkit.apply(model)
    assert patchkit.report(model) == applied


def test_report_is_a_table(lora_model):
    _, model = lora_model(target_modules=["q_proj", "v_proj"])
    text = str(patchkit.apply(model))
    assert "LlamaAttention" in text
    assert "no active LoRA adapter" in text
    row = next(line for line in text.splitlines() if "LlamaAttention" in line and " o " in line)
    assert "upstream" in row


def test_report_follows_the_model(lora_model):
    """Levels are chosen at every call, so the report is of now, not of the time of apply."""
    _, model = lora_model()
    patchkit.apply(model)
    with model.disable_adapter():
        assert {row.reason for row in patchkit.report(model).at("upstream")} >= {"o_proj: its adapters are disabled"}
    assert patchkit.report(model).counts == {"fused": 6}


def test_one_summary_line_is_logged(lora_model, caplog):
    _, model = lora_model()
    with caplog.at_level(logging.INFO, logger="patchkit"):
        patchkit.apply(model)
    assert [record.getMessage() for record in caplog.records] == [
        f"patchkit {patchkit.__version__}: LlamaForCausalLM (llama): qkv 2 fused; o 2 fused; mlp 2 fused"
    ]


# Bad input: a typed, helpful error or a reported no-op, and the model is untouched.


@pytest.mark.parametrize("function", [patchkit.apply, patchkit.revert, patchkit.report], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("thing", "said"),
    [
        ("google/gemma-3-270m", "load it first"),
        (None, "found a NoneType"),
        (GPT2LMHeadModel, "pass an instance"),
        ({"weight": torch.zeros(1)}, "found a dict"),
    ],
    ids=["name", "none", "class", "state_dict"],
)
def test_not_a_model(function, thing, said):
    with pytest.raises(NotAModelError, match=said) as caught:
        function(thing)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, PatchkitError)


def test_a_model_with_no_supported_block():
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64))
    before = classes(model)
    with pytest.warns(
        PatchkitWarning,
        match=r"^GPT2LMHeadModel \(gpt2\) has no layer with an adapter and no block .*get_peft_model.*llama",
    ):
        report = patchkit.apply(model)
    assert report.rows == ()
    assert "no supported block and no adapted layer" in str(report)
    assert classes(model) == before
    with pytest.raises(NotPatchedError, match=r"strict=True: GPT2LMHeadModel \(gpt2\) has no layer with an adapter"):
        patchkit.apply(model, strict=True)


def test_unknown_option(lora_model):
    _, model = lora_model()
    before = classes(model)
    with pytest.raises(UnknownOptionError, match="unknown option 'qvk'; did you mean 'qkv'"):
        patchkit.apply(model, qvk=True)
    with pytest.raises(UnknownOptionError, match="'mlp' takes True or False, found 'swiglu'"):
        patchkit.apply(model, mlp="swiglu")
    with pytest.raises(UnknownOptionError), patchkit.patched(model, rope=True):
        pass
    assert classes(model) == before


def test_reverting_what_was_never_applied(lora_model):
    _, model = lora_model()
    before = classes(model)
    with pytest.warns(PatchkitWarning, match="^LlamaForCausalLM is not patched: there is nothing to revert"):
        assert patchkit.revert(model) == 0
    assert classes(model) == before


def test_model_on_meta():
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64))
    with pytest.warns(PatchkitWarning):
        patchkit.apply(model)  # not ours anyway
    model = tiny_model("llama").to("meta")
    before = classes(model)
    with pytest.raises(MetaModelError, match="on the meta device"):
        patchkit.apply(model)
    assert classes(model) == before


def test_strict_raises_before_anything_changes(lora_model):
    _, model = lora_model(alora_invocation_tokens=[5])
    before = classes(model)
    with pytest.raises(NotPatchedError, match="LoRA variant ALoraLinearVariant") as caught:
        patchkit.apply(model, strict=True)
    assert "these parts of LlamaForCausalLM (llama) have an adapter and would stay at upstream level: " in str(
        caught.value
    )
    assert "LlamaAttention o, LlamaAttention qkv, LlamaMLP mlp; nothing was changed" in str(caught.value)
    assert classes(model) == before


def test_strict_where_nothing_is_asked_for(lora_model):
    _, model = lora_model()
    with pytest.raises(
        NotPatchedError, match=r"nothing of LlamaForCausalLM \(llama\) has an adapter that is asked for"
    ):
        patchkit.apply(model, strict=True, qkv=False, o=False, mlp=False)


def test_strict_accepts_what_has_no_adapter(lora_model):
    _, model = lora_model(target_modules=["q_proj", "v_proj"])
    assert patchkit.apply(model, strict=True).counts == {"fused": 4, "upstream": 2}


def test_blocks_left_upstream_are_said_once(lora_model):
    _, model = lora_model(alora_invocation_tokens=[5])
    with pytest.warns(
        PatchkitWarning, match=r"^LlamaForCausalLM \(llama\): 6 of 6 parts run at upstream level"
    ) as caught:
        patchkit.apply(model)
    assert len(caught) == 1


def test_a_class_without_source(lora_model):
    """As in a REPL, or a frozen application: such a block is left alone and said."""
    reference, model = lora_model()
    namespace = {"__name__": LlamaMLP.__module__, "LlamaMLP": LlamaMLP}
    text = "class SourcelessMLP(LlamaMLP):\n    def forward(self, x):\n        return super().forward(x)\n"
    exec(compile(text, "<no file>", "exec"), namespace)  # since Python 3.13 "<string>" is what was given to `python -c`
    for copied in (reference, model):
        for module in copied.modules():
            if type(module) is LlamaMLP:
                module.__class__ = namespace["SourcelessMLP"]
    with pytest.warns(PatchkitWarning, match="SourcelessMLP mlp: there is no source"):
        report = patchkit.apply(model)
    assert report.counts == {"fused": 4, "alone": 2}
    assert_equal(reference, model)


def test_a_class_that_another_library_replaced(lora_model, monkeypatch):
    """Class-wide replacement of ``forward``, as some kernel libraries do."""
    reference, model = lora_model()

    def fast_forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))

    monkeypatch.setattr(LlamaMLP, "forward", fast_forward)
    with pytest.warns(PatchkitWarning, match=r"LlamaMLP mlp: its forward was replaced by .*fast_forward"):
        report = patchkit.apply(model)
    assert {row.part for row in report.at("alone")} == {"mlp"}
    assert_equal(reference, model)


def test_an_instance_that_another_library_replaced(lora_model):
    """Instance-wide replacement: hub kernels, accelerate. The replacement keeps running."""
    reference, model = lora_model()
    for copied in (reference, model):
        for module in copied.modules():
            if isinstance(module, LlamaMLP):
                module.forward = lambda x, mlp=module: 2 * mlp.down_proj(x[..., :1].expand(*x.shape[:-1], 112))
    with pytest.warns(PatchkitWarning, match="its forward was replaced on the instance"):
        report = patchkit.apply(model)
    assert {row.part for row in report.at("alone")} == {"mlp"}
    assert_equal(reference, model)


def test_revert_refuses_a_class_that_something_put_on_top(lora_model):
    _, model = lora_model()
    patchkit.apply(model)
    module = next(module for module in model.modules() if isinstance(module, LlamaAttention))
    module.__class__ = type("Wrapped", (type(module),), {})
    before = classes(model)
    with pytest.raises(RevertError, match="it became"):
        patchkit.revert(model)
    assert classes(model) == before


def test_bind_is_all_or_nothing(lora_model, monkeypatch):
    """F21: a failure in the middle leaves no half-patched model, and the next call works."""
    _, model = lora_model()
    before = classes(model)
    target = [module for module in model.modules() if isinstance(module, LlamaAttention)][-1]
    give = binding._give

    def stubborn(module, cls):
        if module is target:
            raise TypeError("no other class for me")
        give(module, cls)

    with monkeypatch.context() as patch:
        patch.setattr(binding, "_give", stubborn)
        with pytest.raises(TypeError, match="no other class"):
            patchkit.apply(model)
    assert classes(model) == before
    assert patchkit.apply(model).counts == {"fused": 6}


def test_importing_patchkit_imports_nothing_heavy():
    code = "import sys, patchkit; print([m for m in ('torch', 'transformers', 'peft', 'libcst') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_nothing_is_done_to_other_instances(lora_model):
    """F22: a reference model of the same classes stays what it was."""
    reference, model = lora_model()
    before = classes(reference)
    patchkit.apply(model)
    assert classes(reference) == before
    assert LlamaMLP.forward.__code__.co_filename.endswith("modeling_llama.py")


def test_an_unknown_attribute_of_the_package():
    with pytest.raises(AttributeError, match="no attribute 'appply'"):
        patchkit.appply  # noqa: B018


def test_a_frozen_model_without_adapters_has_nothing_to_patch():
    model = tiny_model("llama").requires_grad_(False).eval()
    reference = copy.deepcopy(model)
    patchkit.apply(model)
    inputs = tiny_inputs("llama", model)
    assert identical_runs(run(reference, inputs, backward=False), run(model, inputs, backward=False))


def test_adapters_added_after_apply():
    model = tiny_model("llama")
    patchkit.apply(model)
    model = add_lora(model)
    reference = copy.deepcopy(model)
    patchkit.revert(reference)
    assert patchkit.report(model).counts == {"fused": 6}
    assert_equal(reference, model)


def test_a_model_that_is_a_block_itself(lora_model):
    _, model = lora_model()
    block = next(module for module in model.modules() if isinstance(module, LlamaMLP))
    assert isinstance(block, nn.Module)
    assert patchkit.apply(block).counts == {"fused": 1}


def test_public_names_are_listed_and_a_near_miss_is_named():
    assert set(dir(patchkit)) == set(patchkit.__all__) >= {"apply", "report", "revert", "patched", "TrainerCallback"}
    with pytest.raises(AttributeError, match="no attribute 'aply'; did you mean 'apply'"):
        _ = patchkit.aply
    with pytest.raises(AttributeError, match=r"no attribute 'zzz'$"):
        _ = patchkit.zzz
