"""What is found of a model type: each state once, the arbiter, and what a process may answer."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import patchkit
from patchkit.check.numeric import adapting, model_types
from patchkit.check.numeric.model_types import STATES, TypeOutcome, answer, examine
from patchkit.errors import TinyModelError
from patchkit.runtime import fused
from patchkit.testing import tiny_model_from
from patchkit.testing.tiny.heads import HEADS, types_with


@pytest.mark.parametrize(
    ("model_type", "head", "whole", "alone", "left", "blocks"),
    [
        ("qwen3", "causal", 14, 0, 0, ("Qwen3Attention o", "Qwen3Attention qkv", "Qwen3MLP mlp")),
        ("gpt2", "causal", 4, 4, 0, ("GPT2MLP mlp",)),
        ("t5", "seq2seq", 20, 12, 0, ("T5Attention linear", "T5DenseActDense mlp")),
        (
            "mixtral",
            "causal",
            8,
            4,
            0,
            ("MixtralAttention o", "MixtralAttention qkv"),
        ),
        ("musicgen", "causal", 12, 10, 1, ("ModuleList head", "MusicgenAttention linear", "MusicgenDecoderLayer mlp")),
    ],
)
def test_layers_are_counted_where_they_run(model_type, head, whole, alone, left, blocks):
    found = examine(model_type, head)
    assert (found.state, found.judged_in) == ("verified", "float32")
    assert (found.whole, found.alone, found.left, found.layers) == (whole, alone, left, whole + alone + left)
    assert found.blocks == blocks
    assert {one.partition(": ")[0].rpartition(".")[2] for one in found.classes} == {
        one.split()[0] for one in blocks if one.split()[0] != "ModuleList"
    }
    assert ("ModuleList" in found.reason) == bool(left)
    assert 0 <= found.error < 1e-5
    assert found.seconds > 0
    assert TypeOutcome.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_with_options_of_apply():
    """What a loss without logits does not give is not missed, and a type without one is verified all the same."""
    asked = {"model_type": "gpt2", "head": "causal", "options": {"memory": "tiled:2", "loss": True}}
    found = TypeOutcome.from_json(json.loads(answer(json.dumps(asked).encode())))
    assert (found.state, found.blocks) == ("verified", ("GPT2LMHeadModel loss", "GPT2MLP mlp"))
    assert examine("t5", "seq2seq", {"loss": True}).state == "verified"
    # Of experts that pick tokens float64 may have to decide, and there the loss is one of float32 all the same.
    assert examine("dbrx", "causal", {"loss": True}).state == "verified"


def test_a_fault_of_an_option_is_different(monkeypatch):
    right = fused.lora_cross_entropy
    monkeypatch.setattr(fused, "lora_cross_entropy", lambda *given, **options: 1.001 * right(*given, **options))
    assert examine("gpt2", "causal").state == "verified"
    found = examine("gpt2", "causal", {"loss": True})
    assert (found.state, found.judged_in) == ("different", "float64")


def test_a_fault_is_different(monkeypatch):
    """In a fused function of a block, and in that of a layer that stands alone."""
    for model_type, function in (("qwen3", "lora_projections"), ("gpt2", "lora_linear")):
        right = getattr(fused, function)

        def wrong(*arguments, right=right, **options):
            found = right(*arguments, **options)
            return tuple(1.001 * one for one in found) if isinstance(found, tuple) else 1.001 * found

        with monkeypatch.context() as patch:
            patch.setattr(fused, function, wrong)
            found = examine(model_type, "causal")
        assert found.state == "different", found
        assert found.judged_in == "float64"
        assert found.reason.startswith("in float64: ")


@pytest.mark.parametrize("exact", [True, False])
def test_float64_decides_where_float32_misses(exact, monkeypatch):
    """A float32 comparison that fails is no verdict: a kink or conditioning fails it too. A fault of float32 alone is one."""
    right = fused.lora_linear

    def wrong(x, *rest):
        found = right(x, *rest)
        return found * (1 + 2e-5) if found.dtype is torch.float32 and not exact else found

    monkeypatch.setattr(fused, "lora_linear", wrong)
    if exact:  # as if the tolerance were one that rounding alone exceeds
        real = patchkit.testing.compare_runs
        monkeypatch.setattr(
            patchkit.testing, "compare_runs", lambda one, other, tolerance=1e-12: real(one, other, tolerance)
        )
    found = examine("gpt2", "causal")
    assert found.judged_in == "float64"
    assert found.state == ("verified" if exact else "different"), found
    assert exact or "in float32 its error is" in found.reason


def failing(*_, **__):
    raise RuntimeError("no such thing\nin two lines")


def test_what_cannot_be_built_says_why(monkeypatch):
    def none(*_, **__):
        raise TinyModelError("no tiny X:\n  usual sizes: it wants a GPU")

    monkeypatch.setattr(patchkit.testing, "tiny_model_from", none)
    found = examine("llama", "causal")
    assert (found.state, found.reason, found.model_class) == ("not built", "usual sizes: it wants a GPU", "")


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("only this", "only this"),
        ("no tiny X:\n  a: one\n  b: two", "  a: one"),
        ("no tiny X:\n  a: w of shape [9] is not tiny\n  b: two\n  c: v of shape [8] is not tiny", "  b: two"),
        ("no tiny X:\n  a: w of shape [9] is not tiny\n  c: v is not tiny", "  a: w of shape [9] is not tiny"),
    ],
)
def test_of_several_attempts_the_first_that_met_more_than_a_large_size_is_told(said, reason):
    assert model_types._first_reason(said) == reason


def test_a_model_without_a_forward_is_not_tried():
    found = examine("bark", "base")
    assert (found.state, found.reason) == (
        "not built",
        "BarkModel has no forward: it generates, and its parts are trained",
    )


def test_what_stands_in_for_a_part_is_said():
    found = examine("deformable_detr", "base")
    assert found.state == "verified"
    assert found.reason == "its images are seen by a backbone of transformers in place of timm's"


def test_where_plain_peft_fails_nothing_is_said_of_patchkit(monkeypatch):
    monkeypatch.setattr(adapting, "add_lora", failing)
    found = examine("llama", "causal")
    assert (found.state, found.model_class) == ("not run", "LlamaForCausalLM")
    assert found.reason == "plain PEFT fails: RuntimeError: no such thing in two lines"


def test_a_part_that_no_class_takes():
    found = examine("sam_mask_decoder", "part")
    assert (found.state, found.model_class) == ("no model", "")
    assert "SamMaskDecoderConfig" in found.reason


def test_what_inputs_do_not_reach_is_said():
    """The last layers of one branch have no part in any output."""
    found = examine("lilt", "base")
    assert found.state == "verified"
    assert found.reason == "its inputs do not reach 4 of its adapted layers"


@pytest.mark.parametrize(("off", "state"), [({"linear": False}, "upstream"), ({}, "verified")])
def test_equal_and_nothing_fused_is_upstream(off, state, monkeypatch):
    real = patchkit.apply
    monkeypatch.setattr(patchkit, "apply", lambda model, **options: real(model, **options | off))
    found = examine("bloom", "causal")
    assert found.state == state
    assert (found.left == found.layers) == (state == "upstream")


def test_a_model_without_linear_layers(monkeypatch):
    class Nothing(nn.Module):
        pass

    monkeypatch.setattr(model_types, "counted_layers", lambda model, report: {"whole": 0, "alone": 0, "left": 0})
    assert examine("llama", "causal").state == "nothing to patch"


def test_long_reasons_are_cut():
    assert model_types._in_one_line("a\n b") == "a b"
    for length in (199, 200, 201, 400):
        cut = model_types._in_one_line("x" * length)
        assert len(cut) == min(length, 200)
        assert cut.endswith("...") == (length > 200)


FINE = TypeOutcome("llama", "causal", "verified", blocks=("A b",), classes=("m.A: MLP(): b",))
GOOD = json.loads(json.dumps(FINE.to_json()))


def test_what_a_process_says_is_read():
    assert TypeOutcome.from_json(GOOD) == FINE
    assert TypeOutcome.from_json(GOOD | {"error": 0, "seconds": 1}).seconds == 1


@pytest.mark.parametrize(
    "change",
    [{name: wrong} for name in GOOD for wrong in (None, {}, 1.5 if name not in ("error", "seconds") else "1")]
    + [{name: []} for name in GOOD if name not in ("blocks", "classes")]
    + [{"state": "fine"}, {"more": 1}, {"blocks": [1]}, {"classes": [None]}, {"whole": True}, {"whole": "1"}],
    ids=str,
)
def test_what_is_none_is_refused(change):
    with pytest.raises(ValueError, match=r"^(its?|a state) "):
        TypeOutcome.from_json(GOOD | change)


@pytest.mark.parametrize("data", [None, [], "text", {}, {name: GOOD[name] for name in list(GOOD)[1:]}], ids=str)
def test_what_has_other_fields_is_refused(data):
    with pytest.raises(ValueError, match="other fields"):
        TypeOutcome.from_json(data)


def test_a_worker_answers():
    assert set(STATES) > {"verified"}
    said = json.loads(answer(json.dumps({"heads": ["causal", "seq2seq"]}).encode()))
    assert list(said) == ["causal", "seq2seq"]
    assert {"llama", "qwen3"} <= set(said["causal"])
    assert "t5" in said["seq2seq"]
    outcome = TypeOutcome.from_json(json.loads(answer(json.dumps({"model_type": "llama", "head": "causal"}).encode())))
    assert (outcome.model_type, outcome.head, outcome.state) == ("llama", "causal", "verified")


@pytest.mark.parametrize("head", HEADS)
def test_types_of_a_head_are_sorted_and_can_be_named(head):
    types = types_with(head)
    assert types == sorted(set(types))
    assert types
    if head in ("causal", "vision", "seq2seq"):
        assert tiny_model_from({"causal": "llama", "vision": "vit", "seq2seq": "t5"}[head], head=head) is not None
