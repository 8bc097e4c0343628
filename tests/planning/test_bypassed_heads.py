"""A fused loss of another library that does not call an adapted head: one clear line in the report, and a warning."""

from __future__ import annotations

import types
import warnings

import pytest

import patchkit
from patchkit.testing import add_lora, tiny_model

WITH_HEAD = ["q_proj", "lm_head"]

# What three libraries look like, each as a module of its own.
STAND_INS = {
    "liger": """
def LigerForCausalLMLoss(hidden_states, lm_head_weight, labels): ...
def loss_of(self, hidden_states, labels):
    return LigerForCausalLMLoss(hidden_states=hidden_states, lm_head_weight=self.lm_head.weight, labels=labels)
def forward(self, input_ids=None, labels=None, **kwargs):
    return loss_of(self, self.model(input_ids)[0], labels)
""",
    "unsloth": """
import functools
def unsloth_fused_ce_loss(trainer, **kwargs): ...
def plain(self, input_ids=None, labels=None, **kwargs):
    lm_head = self.lm_head.weight
    return unsloth_fused_ce_loss(None, hidden_states=self.model(input_ids)[0], lm_head_weight=lm_head)
@functools.wraps(plain)
def forward(self, *args, **kwargs):
    return plain(self, *args, **kwargs)
""",
    "cut_cross_entropy": """
def apply_lce(e, c, labels): ...
def forward(self, input_ids=None, labels=None, **kwargs):
    return apply_lce(self.model(input_ids)[0], self.lm_head.weight, labels)
""",
}
# What calls the head, whatever its names are.
HARMLESS = {
    "calls the head": """
def fused_linear_cross_entropy(logits, labels): ...
def forward(self, input_ids=None, labels=None, **kwargs):
    return fused_linear_cross_entropy(self.lm_head(self.model(input_ids)[0]), labels)
""",
    "reads a weight for something else": """
def forward(self, input_ids=None, labels=None, **kwargs):
    return self.lm_head(self.model(input_ids)[0]) * self.model.norm.weight.sum()
""",
}


def foreign(name, source):
    found = types.ModuleType(f"acme_{name.replace(' ', '_')}")
    exec(source, vars(found))
    return found.forward


def adapted(targets=WITH_HEAD):
    return add_lora(tiny_model("llama"), target_modules=targets)


def on_instance(model, forward, monkeypatch):
    inner = model.get_base_model()
    inner.forward = types.MethodType(forward, inner)


def on_class(model, forward, monkeypatch):
    monkeypatch.setattr(type(model.get_base_model()), "forward", forward)


def told(act):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = act()
    lines = [str(one.message) for one in caught if "does not call" in str(one.message)]
    assert all(one.filename == __file__ for one in caught if "does not call" in str(one.message))
    assert [note for note in report.notes if "does not call" in note] == lines
    return lines


@pytest.mark.parametrize("put", [on_instance, on_class])
@pytest.mark.parametrize("name", STAND_INS)
def test_it_is_said_by_apply_and_by_report(name, put, monkeypatch):
    model = adapted()
    put(model, foreign(name, STAND_INS[name]), monkeypatch)
    for act in (lambda: patchkit.apply(model), lambda: patchkit.report(model)):
        (line,) = told(act)
        assert f"acme_{name}" in line
        assert "LlamaForCausalLM from lm_head.weight" in line
        assert "patchkit.apply(model, loss=True)" in line
        assert "\n" not in line


@pytest.mark.parametrize("name", HARMLESS)
def test_a_forward_that_calls_the_head_is_no_reason(name, monkeypatch):
    model = adapted()
    on_instance(model, foreign(name, HARMLESS[name]), monkeypatch)
    assert not told(lambda: patchkit.apply(model))


def test_a_head_without_an_adapter_is_no_reason(monkeypatch):
    model = adapted(["q_proj"])
    on_instance(model, foreign("liger", STAND_INS["liger"]), monkeypatch)
    assert not told(lambda: patchkit.apply(model))


@pytest.mark.parametrize("loss", [False, True])
def test_upstream_and_our_own_loss_call_the_head(loss):
    model = adapted()
    assert not told(lambda: patchkit.apply(model, loss=loss))
    assert not told(lambda: patchkit.report(model))


def test_liger_kernel_itself():
    liger = pytest.importorskip("liger_kernel.transformers")
    model = adapted()
    liger.apply_liger_kernel_to_llama(
        rope=False, rms_norm=False, swiglu=False, fused_linear_cross_entropy=True, model=model.get_base_model()
    )
    try:
        (line,) = told(lambda: patchkit.apply(model))
        assert line.startswith("liger_kernel.transformers.model.llama.lce_forward computes the loss")
    finally:
        vars(model.get_base_model()).pop("forward", None)
    assert not told(lambda: patchkit.report(model))
