"""The loss without logits in every state of a model: computed so, or left to upstream with the reason."""

from __future__ import annotations

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers.loss import loss_utils

import patchkit
from patchkit.errors import PatchkitWarning
from patchkit.testing import add_lora, fused_calls, run, tiny_inputs_for, tiny_model, tiny_model_from
from patchkit.testing.parity import Run, compare_runs, relative_error
from patchkit_kernels.lora import cross_entropy

VOCABULARY = 128
FUSED = ("fused", "")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(cross_entropy, "chunk_of", lambda *sizes: 8)


def make(name="llama", targets=("q_proj", "lm_head"), dtype=torch.float32, **lora):
    model = tiny_model(name, dtype=dtype)
    return (add_lora(model, target_modules=list(targets), **lora) if targets else model).train()


def inputs():
    ids = torch.randint(3, VOCABULARY - 8, (2, 11), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[0, :4] = -100
    return {"input_ids": ids, "labels": labels}


def apply(model, **options):
    return patchkit.apply(model, **{"loss": True, "trust": "always"} | options)


def inner(model):
    """The language model in a PEFT model."""
    return model.base_model.model if hasattr(model, "peft_config") else model


def row(model):
    (found,) = (one for one in patchkit.report(model).rows if one.part == "loss")
    return found.level, found.reason


def without_logits(result):
    outputs = {name: tensor for name, tensor in result.outputs.items() if name != "logits"}
    return Run(outputs, result.gradients, result.without_gradient)


def assert_equal(reference, model, given=None, *, fused=True, **options):
    """Loss and every gradient, and whether the loss was computed without logits."""
    given = inputs() if given is None else given
    expected = run(reference, given, **options)
    with fused_calls() as calls:
        found = run(model, given, **options)
    assert ("lora_cross_entropy" in calls) == fused
    assert ("logits" in found.outputs) == (not fused)
    findings = compare_runs(without_logits(expected), without_logits(found))
    assert findings.passed, findings


def save_head(model):
    return add_lora(model, target_modules=["q_proj"], modules_to_save=["lm_head"])


def train_all(model):
    return model.requires_grad_()


def two_adapters(model):
    model = add_lora(model, target_modules=["lm_head"])
    model.add_adapter("second", model.peft_config["default"])
    model.base_model.set_adapter(["default", "second"])
    return model


HEADS = {
    "frozen": lambda model: add_lora(model, target_modules=["q_proj", "v_proj"]),
    "adapted": lambda model: add_lora(model, target_modules=["q_proj", "lm_head"]),
    "adapted alone": lambda model: add_lora(model, target_modules=["lm_head"]),
    "dropout": lambda model: add_lora(model, target_modules=["lm_head", "o_proj"], lora_dropout=0.3),
    "dora": lambda model: add_lora(model, target_modules=["lm_head"], use_dora=True),
    "a bias of B": lambda model: add_lora(model, target_modules=["lm_head"], lora_bias=True),
    "rslora": lambda model: add_lora(model, target_modules=["lm_head"], use_rslora=True),
    "saved": save_head,
    "trained": train_all,
    "several": two_adapters,
}


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings.*", "ignore:.*tied.*")
def test_heads(head, tied):
    model = head(tiny_model("llama", tie_word_embeddings=tied)).train()
    reference = copy.deepcopy(model)
    apply(model)
    assert row(model) == FUSED
    for seed in (0, 1):
        assert_equal(reference, model, seed=seed)
    assert_equal(reference, model, inputs() | {"num_items_in_batch": torch.tensor(40)})


def test_a_head_with_a_bias():
    model = tiny_model("llama").requires_grad_(False)
    head = model.lm_head
    model.lm_head = nn.Linear(head.in_features, head.out_features)
    model.lm_head.bias.requires_grad_()
    reference = copy.deepcopy(model.train())
    apply(model)
    assert_equal(reference, model)


GIVEN = {
    "a number of items": {"num_items_in_batch": 17},
    "a tensor of items": {"num_items_in_batch": torch.tensor(17)},
    "another label to ignore": {"ignore_index": 5, "labels": inputs()["labels"].clamp(5)},
    "shifted labels": {"shift_labels": inputs()["labels"]},
    "hidden states": {"output_hidden_states": True},
    "arguments that are none of the loss's": {"position_ids": torch.arange(11)[None].expand(2, -1)},
}


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_what_the_loss_function_is_given(given):
    model = make()
    reference = copy.deepcopy(model)
    apply(model)
    assert_equal(reference, model, inputs() | given)


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "gemma"])
def test_a_soft_cap_counts(name):
    """Gemma 2's; with a cap of 1 it is most of what the loss is."""
    model = make(name)
    for config in (inner(model).config, inner(model).config.get_text_config()):
        if hasattr(config, "final_logit_softcapping"):
            config.final_logit_softcapping = 1.0
    reference = copy.deepcopy(model)
    apply(model)
    assert_equal(reference, model)


def test_logits_are_there_where_somebody_asks():
    model = make()
    reference = copy.deepcopy(model)
    apply(model)
    given = inputs()
    with torch.no_grad():
        expected = reference(**given)
    found = {
        "in training without labels": model(input_ids=given["input_ids"]).logits,
        "by name": model(**given, output_logits=True).logits,
        "in a tuple": model(**given, return_dict=False)[1],
        "without gradients": torch.no_grad()(model)(**given).logits,
        "in evaluation": model.eval()(**given).logits,
    }
    for name, logits in found.items():
        assert relative_error(logits, expected.logits) < 1e-5, name
    assert model.train()(**given).logits is None


def test_the_report_is_of_training_wherever_it_is_asked_for():
    model = make()
    apply(model)
    with torch.no_grad():
        assert {row.level for row in patchkit.report(model).rows if row.part == "loss"} == {"fused"}


def test_a_configuration_that_asks_for_tuples():
    model = make()
    apply(model)
    assert row(model) == FUSED
    inner(model).config.return_dict = False
    assert row(model) == ("upstream", "its output is a tuple, in which nothing may be missing")


def own_loss(logits, labels, vocab_size, **kwargs):
    return loss_utils.ForCausalLMLoss(logits, labels, vocab_size, **kwargs) * 2


def hook(module, *_):
    return None


class Mode(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


STATES = {
    "a hook on the head": (lambda m: inner(m).lm_head.register_forward_hook(hook), "a forward hook is registered"),
    "a pre-hook": (lambda m: inner(m).lm_head.register_forward_pre_hook(hook), "a forward hook is registered"),
    "a backward hook": (
        lambda m: inner(m).lm_head.register_full_backward_hook(hook),
        "a backward hook is registered",
    ),
    "a hook in the adapter": (
        lambda m: inner(m).lm_head.lora_A["default"].register_forward_hook(hook),
        "a forward hook is registered",
    ),
    "a forward on the head": (
        lambda m: setattr(inner(m).lm_head, "forward", lambda x: type(inner(m).lm_head).forward(inner(m).lm_head, x)),
        "forward was replaced on the instance",
    ),
    "a loss function": (lambda m: setattr(inner(m), "loss_function", own_loss), "its loss function is test_loss.own"),
    "a module as loss function": (
        lambda m: setattr(inner(m), "_loss_function", loss_utils.ForMaskedLMLoss),
        "its loss function is transformers.loss.loss_utils.ForMaskedLMLoss",
    ),
    "another head": (lambda m: setattr(inner(m), "lm_head", Doubled(64, VOCABULARY)), "it is a test_loss.Doubled"),
}


class Doubled(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


@pytest.mark.parametrize(("change", "reason"), STATES.values(), ids=STATES)
def test_states_that_are_left_to_upstream(change, reason):
    model = make()
    reference = copy.deepcopy(model)
    apply(model)
    for one in (reference, model):
        torch.manual_seed(0)
        change(one)
    level, told = row(model)
    assert level == "upstream"
    assert reason in told
    assert_equal(reference, model, fused=False)


FUNCTIONS = {
    "of torch": (F, "cross_entropy"),
    "of transformers": (loss_utils, "fixed_cross_entropy"),
    "of the loss": (loss_utils, "ForCausalLMLoss"),
}


@pytest.mark.parametrize(("owner", "name"), FUNCTIONS.values(), ids=FUNCTIONS)
def test_functions_that_somebody_replaced(owner, name, monkeypatch):
    model = make()
    reference = copy.deepcopy(model)
    apply(model)
    original = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args, **kwargs: original(*args, **kwargs) * 3)
    assert row(model)[0] == "upstream"
    assert_equal(reference, model, fused=False)
    monkeypatch.undo()
    assert row(model) == FUSED


def test_a_function_mode_sees_what_it_sees_upstream():
    model = make()
    reference = copy.deepcopy(model)
    apply(model)
    with Mode():
        assert_equal(reference, model, fused=False)


def test_disabled_merged_and_deleted_adapters():
    model = make()
    reference = copy.deepcopy(model)
    apply(model)
    for one in (reference, model):
        one.get_input_embeddings().requires_grad_()
    with reference.disable_adapter(), model.disable_adapter():
        assert_equal(reference, model, fused=False)
    for one in (reference, model):
        one.merge_adapter()
    assert_equal(reference, model, fused=False)
    for one in (reference, model):
        one.unmerge_adapter()
    assert_equal(reference, model)


def test_dora_with_dropout_is_upstreams():
    model = make(use_dora=True, lora_dropout=0.2)
    reference = copy.deepcopy(model)
    apply(model)
    assert row(model) == ("upstream", "its head has a DoRA adapter with dropout")
    assert_equal(reference, model, fused=False)


def test_autocast():
    model = make()
    reference = copy.deepcopy(model)
    apply(model)
    for one in (reference, model):
        one.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = one(**inputs()).loss
        loss.backward()
    for (name, theirs), ours in zip(reference.named_parameters(), model.parameters(), strict=True):
        assert (theirs.grad is None) == (ours.grad is None), name
        if theirs.grad is not None:
            assert relative_error(ours.grad, theirs.grad) < 0.05, name


BAD = {
    "a label out of range": ({"labels": torch.full((2, 11), VOCABULARY)}, IndexError),
    "a negative label": ({"labels": torch.full((2, 11), -1)}, IndexError),
    "labels of another size": ({"labels": torch.zeros(2, 9, dtype=torch.int64)}, ValueError),
    "fewer logits than labels": ({"logits_to_keep": 3}, ValueError),
    "labels of another dtype": ({"labels": torch.zeros(2, 11, dtype=torch.int32)}, RuntimeError),
    "a number of items for each row": ({"num_items_in_batch": torch.tensor([3, 4])}, None),
}


@pytest.mark.parametrize(("given", "kind"), BAD.values(), ids=BAD)
def test_bad_input_gives_upstreams_error_or_value(given, kind):
    model = make()
    reference = copy.deepcopy(model)
    apply(model)
    if kind is None:
        assert torch.equal(model(**inputs() | given).loss, reference(**inputs() | given).loss)
        return
    with pytest.raises(kind) as expected:
        reference(**inputs() | given)
    with pytest.raises(kind, match=re.escape(str(expected.value))):
        model(**inputs() | given)


@pytest.mark.parametrize("items", [None, 5])
def test_labels_that_all_do_not_count(items):
    model = make()
    reference = copy.deepcopy(model)
    apply(model)
    given = inputs() | {"labels": torch.full((2, 11), -100), "num_items_in_batch": items}
    losses = [one(**given).loss for one in (reference, model)]
    assert torch.equal(losses[0].isnan(), losses[1].isnan())
    assert losses[0].isnan() == (items is None)
    for one, loss in zip((reference, model), losses, strict=True):
        loss.backward()
        assert all(not p.grad.any() for p in one.parameters() if p.grad is not None)


def test_not_a_number_stays_so():
    model = make()
    apply(model)
    with torch.no_grad():
        inner(model).model.norm.weight[0] = torch.nan
    assert model(**inputs()).loss.isnan()


def test_off_by_default_and_switched_on_and_off():
    model = make()
    cls = type(inner(model))
    report = patchkit.apply(model, trust="always")
    assert "loss" not in {one.part for one in report.rows}
    assert type(inner(model)) is cls
    report = apply(model)
    assert "output_logits=True" in str(report)
    assert type(inner(model)) is not cls
    assert type(inner(model)).__name__ == cls.__name__
    patchkit.apply(model, trust="always")
    assert type(inner(model)) is cls
    apply(model)
    patchkit.revert(model)
    assert type(inner(model)) is cls


def test_a_forward_on_the_instance_owns_the_loss():
    model = make()
    own = inner(model)
    own.forward = lambda *args, **kwargs: type(own).forward(own, *args, **kwargs)
    with pytest.warns(PatchkitWarning, match="its forward was replaced on the instance"):
        apply(model)


def test_where_nothing_is_trained_upstream_runs():
    model = tiny_model("llama").requires_grad_(False).train()
    apply(model)
    with fused_calls() as calls:
        assert model(**inputs()).logits is not None
    assert calls == []


def test_what_is_verified_on_the_spot(tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHKIT_CACHE", str(tmp_path))
    model = make()
    report = patchkit.apply(model, loss=True)
    assert [one.level for one in report.rows if one.part == "loss"] == ["fused"]


def test_the_ledger_alone_leaves_it_upstream(tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHKIT_CACHE", str(tmp_path))
    model = make()
    with pytest.warns(PatchkitWarning, match="its source is not in the ledger"):
        patchkit.apply(model, loss=True, trust="ledger")
    assert "loss" not in {one.part for one in patchkit.report(model).rows}


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("bart", "hands no logits to a loss function"), ("chameleon", "stands between")],
)
def test_models_whose_loss_is_not_known_say_so(kind, reason):
    model = tiny_model_from(kind).train()
    with pytest.warns(PatchkitWarning, match=reason):
        report = apply(model)
    assert [(one.level, reason in one.reason) for one in report.rows if one.part == "loss"] == [("upstream", True)]


FORMS = ["falcon", "gpt2", "opt", "cohere", "granite", "mixtral", "recurrent_gemma", "gemma3n_text", "qwen3"]


@pytest.mark.parametrize("kind", FORMS)
def test_other_models(kind):
    """Tuples, positions, a scale, a quotient, a joint loss of experts, a cap that is always there, one with a name."""
    model = tiny_model_from(kind, head="causal")
    given = tiny_inputs_for(model)
    head = next(name for name, module in model.named_modules() if module is model.get_output_embeddings())
    model = add_lora(model, target_modules=[head], task_type=None).train()
    reference = copy.deepcopy(model)
    apply(model, qkv=False, mlp=False, linear=False)
    assert_equal(reference, model, given, input_gradients=True)
