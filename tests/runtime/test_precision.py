"""``precision="fast"``: adapters computed in the dtype of the activations; and the default, in PEFT's."""

from __future__ import annotations

import copy

import pytest
import torch

import patchkit
from patchkit.errors import UnknownOptionError
from patchkit.runtime.levels import Ready, examine, input_of
from patchkit.testing import add_lora, compare_runs, identical_runs, run, tiny_inputs, tiny_model

MIXED = (torch.bfloat16, torch.float32)


def mixed():
    """A bfloat16 base with float32 adapters, as PEFT makes it."""
    return add_lora(tiny_model("llama", dtype=torch.bfloat16)).train()


def halved(model):
    """The same model with adapters in the dtype of the base."""
    model = copy.deepcopy(model)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(torch.bfloat16)
    return model


def test_fast_is_peft_with_adapters_of_the_activations_dtype():
    model = mixed()
    assert {p.dtype for n, p in model.named_parameters() if "lora_" in n} == {torch.float32}
    fast, exact, low = copy.deepcopy(model), copy.deepcopy(model), halved(model)
    for copied, precision in ((fast, "fast"), (low, "peft"), (exact, "peft")):
        assert patchkit.apply(copied, precision=precision).counts == {"fused": 6}
    inputs = tiny_inputs("llama", model)
    results = {name: run(copied, inputs) for name, copied in (("fast", fast), ("low", low), ("exact", exact))}
    assert torch.equal(results["fast"].outputs["logits"], results["low"].outputs["logits"])
    assert not torch.equal(results["fast"].outputs["logits"], results["exact"].outputs["logits"])
    for name, gradient in results["fast"].gradients.items():
        assert gradient.dtype == results["exact"].gradients[name].dtype
        other = results["low"].gradients[name]
        assert (gradient - other).norm() <= 2**-7 * other.float().norm()  # one rounding to bfloat16


@pytest.mark.parametrize("options", [{}, {"lora_dropout": 0.3}, {"use_dora": True}])
def test_fast_changes_nothing_where_there_is_one_dtype(options):
    model = add_lora(tiny_model("llama"), **options).train()
    fast = copy.deepcopy(model)
    patchkit.apply(model)
    patchkit.apply(fast, precision="fast")
    inputs = tiny_inputs("llama", model)
    assert identical_runs(*(run(copied, inputs, seed=1) for copied in (model, fast)))


def test_the_same_masks_in_both_precisions():
    model = add_lora(tiny_model("llama", dtype=torch.bfloat16), lora_dropout=0.5).train()
    reference = copy.deepcopy(model)
    patchkit.apply(model, precision="fast")
    inputs = tiny_inputs("llama", model)
    expected, found = (run(copied, inputs, seed=4) for copied in (reference, model))
    # Other masks would give other numbers altogether, not others by a rounding of bfloat16.
    assert compare_runs(expected, found, tolerance=0.1).passed


def test_applying_again_changes_the_precision():
    model = mixed()
    q = model.base_model.model.model.layers[0].self_attn
    patchkit.apply(model, precision="fast")
    first = type(q)
    patchkit.apply(model)
    assert type(q) is not first
    patchkit.apply(model, precision="fast")
    assert type(q) is first
    patchkit.revert(model)
    assert "__patchkit__" not in dir(type(q))


def test_an_unknown_precision():
    model = mixed()
    with pytest.raises(UnknownOptionError, match=r"'precision' takes 'peft' or 'fast', found 'float16'"):
        patchkit.apply(model, precision="float16")


def test_what_each_precision_means():
    model = mixed()
    q = model.base_model.model.model.layers[0].self_attn.q_proj
    x = torch.randn(2, 64, dtype=torch.bfloat16)
    found = {name: examine(q, input_of(x, name)) for name in ("peft", "fast")}
    assert all(isinstance(reading, Ready) for reading in found.values())
    assert found["peft"].precision == (*MIXED, torch.bfloat16, torch.float32)
    assert found["fast"].precision == (torch.bfloat16, torch.bfloat16, torch.bfloat16, torch.float32)
