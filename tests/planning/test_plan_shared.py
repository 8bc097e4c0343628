"""Layers of one variable in a model: planned as a group, reported as one, and each by itself wherever that is not to be."""

from __future__ import annotations

import copy
import sys
import types

import pytest
import torch
import transformers

import patchkit
from patchkit.binding import classes
from patchkit.binding.patch import patch_of
from patchkit.check.numeric.model_types import counted_layers, described_classes
from patchkit.testing import add_lora, compare_runs, fused_calls, run
from patchkit.testing.tiny_models import initialise
from patchkit.trust import policy

SMALL = {
    "vocab_size": 64, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "pad_token_id": 0, "dropout": 0.0,
    "decoder_start_token_id": 1, "forced_eos_token_id": None,
}  # fmt: skip
GROUP = ("BartAttention.k_proj, v_proj", "linear", "fused")


@pytest.fixture(autouse=True)
def _own_ledger(tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(policy, "_decided", {})


def build(targets=("q_proj", "k_proj", "v_proj", "out_proj"), **options):
    """bart: three attentions, one of them across."""
    torch.manual_seed(0)
    model = transformers.BartForConditionalGeneration(transformers.BartConfig(**SMALL))
    initialise(model)
    return add_lora(model, r=4, target_modules=list(targets), **options).train()


def inputs():
    ids = torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "labels": ids.clone()}


def rows(report):
    return sorted({(row.module_class, row.part, row.level) for row in report.rows})


ALONE = [("BartAttention.out_proj", "linear", "fused"), ("BartAttention.q_proj", "linear", "fused")]
EACH = sorted([*ALONE, *((f"BartAttention.{name}", "linear", "fused") for name in ("k_proj", "v_proj"))])


@pytest.mark.parametrize("trust", ["verify", "always"])
@pytest.mark.parametrize("options", [{}, {"lora_dropout": 0.3}], ids=str)
def test_keys_and_values_of_a_model(trust, options):
    reference = build(**options)
    model = copy.deepcopy(reference)
    report = patchkit.apply(model, trust=trust)
    assert rows(report) == sorted([GROUP, *ALONE])
    assert len(report.rows) == 9
    assert not report.notes
    with fused_calls() as calls:
        model(**inputs())
    assert {call: calls.count(call) for call in calls} == {"lora_projections": 3, "lora_linear": 6}
    outcomes = []
    for each in (reference, model):
        torch.manual_seed(1)
        outcomes.append(run(each, inputs()))
    assert compare_runs(*outcomes).passed
    assert patchkit.report(model) == report
    patchkit.revert(model)
    assert [type(module) for module in model.modules()] == [type(module) for module in reference.modules()]


def test_what_is_counted_and_described():
    model = build()
    report = patchkit.apply(model, trust="always")
    assert counted_layers(model, report) == {"whole": 6, "alone": 6, "left": 0}
    described = "transformers.models.bart.modeling_bart.BartAttention: SharedInput(): linear"
    assert described_classes(model, report) == (described,)


def test_one_of_a_group_with_an_adapter():
    reference = build(("v_proj",))
    model = copy.deepcopy(reference)
    report = patchkit.apply(model, trust="always")
    assert rows(report) == [GROUP]
    assert compare_runs(run(reference, inputs()), run(model, inputs())).passed


def test_none_of_a_group_with_an_adapter():
    """It runs upstream, as any layer without one, and nobody is warned."""
    model = build(("q_proj",))
    report = patchkit.apply(model, trust="always")
    assert rows(report) == [("BartAttention.k_proj, v_proj", "linear", "upstream"), ALONE[1]]
    assert not report.left


def test_switched_off():
    model = build()
    report = patchkit.apply(model, linear=False)
    assert {(row.level, row.reason) for row in report.rows} == {("upstream", "switched off (linear=False)")}
    assert {row.module_class for row in report.rows} == {
        f"BartAttention.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")
    }
    assert not any(patch_of(module) for module in model.modules())


def test_other_parts_switched_off_change_nothing():
    assert rows(patchkit.apply(build(), qkv=False, o=False, mlp=False, trust="always")) == sorted([GROUP, *ALONE])


def test_before_apply_each_layer_is_named():
    report = patchkit.report(build())
    assert {row.reason for row in report.rows} == {"not patched; call patchkit.apply(model)"}
    assert {row.module_class for row in report.rows} == {name for name, _, _ in EACH}


@pytest.mark.filterwarnings("error::patchkit.errors.PatchkitWarning")
def test_unproven_layers_run_by_themselves_and_say_why():
    """They are fused all the same: nobody need be warned."""
    model = build()
    report = patchkit.apply(model, trust="ledger")
    assert rows(report) == EACH
    reasons = {row.module_class: row.reason for row in report.rows}
    why = "by itself: its source is not in the ledger; trust='verify' verifies it on the spot"
    assert reasons == {
        "BartAttention.q_proj": "", "BartAttention.out_proj": "", "BartAttention.k_proj": why, "BartAttention.v_proj": why,
    }  # fmt: skip
    report = patchkit.apply(model, trust="always")
    assert rows(report) == sorted([GROUP, *ALONE])


def test_a_fault_of_the_group_is_found_on_the_spot(monkeypatch):
    real = classes._methods

    def wrong(*arguments):
        methods = real(*arguments)

        def swapped(self, x, *modules, apply=methods["apply_shared"]):
            return apply(self, x, *modules)[::-1]

        return methods | {"apply_shared": swapped}

    monkeypatch.setattr(classes, "_methods", wrong)
    monkeypatch.setattr(classes, "_cache", {})
    reference = build()
    model = copy.deepcopy(reference)
    report = patchkit.apply(model)
    assert rows(report) == EACH
    (reason,) = {row.reason for row in report.rows if row.reason}
    assert reason.startswith("by itself: its source is not in the ledger, and verified on the spot it is not equal")
    assert patchkit.report(model) == report
    assert compare_runs(run(reference, inputs()), run(model, inputs())).passed
    patchkit.apply(model, trust="always")
    assert not compare_runs(run(reference, inputs()), run(model, inputs())).passed


@pytest.mark.parametrize("first", ["apply", "forward"])
def test_a_forward_that_somebody_sets_on_an_instance_is_run(first):
    model = build()
    if first == "apply":
        patchkit.apply(model, trust="always")
    for module in model.modules():
        if type(module).__name__ == "BartAttention":
            module.forward = types.MethodType(lambda self, *args, **kwargs: None, module)
    if first == "apply":  # nothing of the group is called by then
        report = patchkit.report(model)
        assert rows(report) == sorted([(GROUP[0], "linear", "upstream"), *ALONE])
        assert len({row.reason for row in report.left}) == 1
    else:
        assert rows(patchkit.apply(model, trust="always")) == EACH


OWN = """
import torch
from torch import nn

class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(8, 8) for _ in range(4))
        self.noise = nn.Dropout(0.0)

    def forward(self, x):
        h = self.a(x) * self.b(x)
        seen = self.c(h)
        return self.noise(seen) + self.d(h)

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.pair = Pair()

    def forward(self, x):
        return self.pair(x)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    import importlib.util

    path = tmp_path / "pairs_of_mine.py"
    path.write_text(OWN, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("pairs_of_mine", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "pairs_of_mine", module)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    return add_lora(module.Own(), target_modules=["a", "b", "c", "d"], task_type=None, r=2).train()


def test_a_group_that_no_rule_takes_is_layers_like_any_other(own):
    reference = copy.deepcopy(own)
    report = patchkit.apply(own, trust="always")
    fused = [("Pair.a, b", "linear", "fused"), ("Pair.c", "linear", "fused"), ("Pair.d", "linear", "fused")]
    assert rows(report) == fused
    assert all(not row.reason for row in report.rows)
    assert counted_layers(own, report) == {"whole": 2, "alone": 2, "left": 0}
    x = torch.randn(3, 8)
    torch.testing.assert_close(own(x), reference(x))


@pytest.mark.filterwarnings("error::patchkit.errors.PatchkitWarning")
def test_a_class_of_a_users_own_is_not_warned_of(own):
    report = patchkit.apply(own)
    assert rows(report) == [(f"Pair.{name}", "linear", "fused") for name in "abcd"]
    assert "no transformers model is around it" in {row.module_class: row.reason for row in report.rows}["Pair.a"]
