"""What to do about what is not fused."""

from __future__ import annotations

import re

import pytest
from torch import nn

import patchkit
from patchkit.advice import REMEDIES, REPORT_IT, advice_of, remedy
from patchkit.planning.row import Row
from patchkit.runtime.choice import NO_ADAPTER

pytestmark = pytest.mark.filterwarnings("ignore::patchkit.errors.PatchkitWarning")


@pytest.mark.parametrize("one", REMEDIES, ids=lambda one: one.reason)
def test_a_remedy_is_found_by_the_reason_that_it_shows(one):
    """And by none before it. The docs show these reasons."""
    example = re.sub(r"\bDTYPE\b", "float16", one.reason).replace("SHAPE", "(8, 4)").replace("PART", "mlp")
    assert remedy(example) == one.text
    assert remedy(f"q_proj, k_proj: {example}") == one.text or one.pattern.startswith("^")


def test_what_nobody_knows_is_to_be_reported():
    assert remedy("its moon is full") == REPORT_IT


def switch_off(model):
    return patchkit.apply(model, mlp=False)


def hook(model):
    patchkit.apply(model)
    model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj").register_forward_hook(lambda *_: None)


def merged(model):
    patchkit.apply(model)
    model.merge_adapter()


def disabled(model):
    patchkit.apply(model)
    model.base_model.disable_adapter_layers()


def replaced(model):
    patchkit.apply(model)
    mlp = model.get_submodule("base_model.model.model.layers.0.mlp")
    mlp.forward = lambda x: x


def activation(model):
    patchkit.apply(model)
    model.get_submodule("base_model.model.model.layers.0.mlp").act_fn = nn.Tanh()


def half_of_it(model):
    patchkit.apply(model)
    for name, parameter in model.named_parameters():
        if "lora_" in name and "q_proj" in name:
            parameter.data = parameter.data.double()


STATES = {
    None: ("not patched", "Call `patchkit.apply(model)`"),
    hook: ("hook", "Remove the hook"),
    merged: ("merged", "unmerge_adapter"),
    disabled: ("disabled", "enable_adapter_layers"),
    replaced: ("replaced", "Another library, or you"),
    activation: ("activation", "one by one"),
    half_of_it: ("differ in dtype", "Bring weights"),
}


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__ if state else "not patched")
def test_a_live_model_gets_the_advice_for_its_state(state, lora_model):
    _, model = lora_model()
    if state:
        state(model)
    reason, text = STATES[state]
    found = patchkit.report(model).advice
    assert found
    assert reason in found[0].reason
    assert text in found[0].text


def test_variants(lora_model):
    _, model = lora_model(alora_invocation_tokens=[5])
    (found,) = {one.text for one in patchkit.apply(model).advice}
    assert "Plain LoRA, rsLoRA and DoRA" in found


def test_nothing_is_said_of_what_is_as_it_should_be(lora_model):
    _, model = lora_model(target_modules=["q_proj"])
    report = patchkit.apply(model, mlp=False)
    assert NO_ADAPTER in " ".join(row.reason for row in report.rows) or report.at("upstream")
    assert report.advice == ()


def test_most_parts_come_first():
    rows = [Row("a", "A", "o", "alone", "hook is registered"), *[Row("b", "B", "o", "upstream", "odd")] * 2]
    rows += [Row("c", "C", "o", "fused"), Row("d", "D", "o", "upstream", "odd", expected=True)]
    assert [(one.reason, one.count) for one in advice_of(rows)] == [("odd", 2), ("hook is registered", 1)]
