"""The key of a class changes with the code that its projections are moved past, and with nothing else outside of it."""

from __future__ import annotations

import copy
import functools
import sys
import types

import pytest
import torch
from edited_upstream import edited_llama, inputs, model_of
from torch import nn
from transformers.models.llama import modeling_llama

import patchkit
from patchkit.arch.registry import architectures
from patchkit.errors import PatchkitWarning
from patchkit.rewrite.rewriter import rewrite
from patchkit.testing import compare_runs, run
from patchkit.trust.key import key_of
from patchkit.trust.ledger import Key, Proof, read_proofs, user_ledger

pytest_plugins = ["proof_fixtures"]
pytestmark = pytest.mark.usefixtures("cache")

KEY = "key_states = self.k_proj(hidden_states).view(hidden_shape).transpose(1, 2)"
ABOVE = "def rotate_half(x):"
CLASS = "class LlamaAttention(nn.Module):"
INIT = "        self.layer_idx = layer_idx\n"


def between(call):
    return KEY, f"key_states = {call}(self.k_proj(hidden_states).view(hidden_shape)).transpose(1, 2)"


def above(text):
    return ABOVE, f"{text}\n\n\n{ABOVE}"


def helper(body):
    return between("rescale"), above(f"def rescale(x):\n    {body}")


def transitive(body):
    return between("rescale"), above(f"def inner(x):\n    {body}\n\n\ndef rescale(x):\n    return inner(x)")


def in_a_closure(body):
    text = f"def make():\n    def inner(x):\n        {body}\n    return lambda x: inner(x)\n\n\nrescale = make()"
    return between("rescale"), above(text)


def of_a_base(body):
    text = f"class Helps:\n    def _shape(self, x):\n        {body}"
    return between("self._shape"), above(text), (CLASS, "class LlamaAttention(nn.Module, Helps):")


def a_property_of_a_base(body):
    text = f"class Helps:\n    @property\n    def a_scale(self):\n        x = torch.ones(())\n        {body}"
    key = (KEY, KEY.replace("(hidden_shape)", "(hidden_shape).mul(self.a_scale)"))
    return key, above(text), (CLASS, "class LlamaAttention(nn.Module, Helps):")


def a_module(body):
    text = f"class Norm(nn.Module):\n    def forward(self, x):\n        {body}"
    return between("self.k_norm"), above(text), (INIT, f"{INIT}        self.k_norm = Norm()\n")


def a_function_that_the_class_calls(body):
    """A method of the class itself calls it, so the class's text says nothing of it."""
    method = "    def _shape(self, x):\n        return inner(x)\n\n    def forward(\n        self,\n        hidden_states: torch.Tensor,\n        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,\n        attention_mask"
    old = method[method.index("    def forward") :]
    return between("self._shape"), above(f"def inner(x):\n    {body}"), (old, method)


FORMS = (helper, transitive, in_a_closure, of_a_base, a_property_of_a_base, a_module, a_function_that_the_class_calls)


def key(folder, monkeypatch, edits):
    folder.mkdir()
    with monkeypatch.context() as patch:
        module = edited_llama(folder, patch, *edits)
        config = modeling_llama.LlamaConfig(hidden_size=8, num_attention_heads=2, num_key_value_heads=1)
        return key_of(module.LlamaAttention, module.LlamaAttention(config, 0))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_the_key_changes_with_the_helper(form, tmp_path, monkeypatch):
    plain = key(tmp_path / "plain", monkeypatch, form("return x * 1.0"))
    same = key(tmp_path / "same", monkeypatch, form("return  (x * 1.0)  # another comment"))
    draws = key(tmp_path / "draws", monkeypatch, form("return x * torch.bernoulli(x.detach().sigmoid())"))
    writes = key(tmp_path / "writes", monkeypatch, form("return x.mul_(1.0)"))
    assert plain == same
    assert len({plain.source, draws.source, writes.source}) == 1  # the class's text says nothing of it
    assert len({plain.outside, draws.outside, writes.outside, ""}) == 4


def test_what_is_wrapped_around_a_helper_counts(tmp_path, monkeypatch):
    module = edited_llama(tmp_path, monkeypatch, *helper("return x * 1.0"))
    before = key_of(module.LlamaAttention)
    inner = module.rescale

    @functools.wraps(inner)
    def noisy(x):
        return inner(x + torch.rand_like(x))

    monkeypatch.setattr(module, "rescale", noisy)
    assert key_of(module.LlamaAttention).outside not in (before.outside, "")
    monkeypatch.setattr(module, "rescale", functools.partial(inner))
    assert "`rescale()` is called between the projections, and is a functools.partial" in key_of(module.LlamaAttention)
    monkeypatch.delattr(module, "rescale")
    assert "`rescale()` is called between the projections, and is not defined" in key_of(module.LlamaAttention)


def test_a_helper_of_another_module_counts(tmp_path, monkeypatch):
    (tmp_path / "helpers_of_mine.py").write_text("def rescale(x):\n    return x * 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "helpers_of_mine", None)
    del sys.modules["helpers_of_mine"]
    edits = between("helpers_of_mine.rescale"), (ABOVE, f"import helpers_of_mine\n\n\n{ABOVE}")
    module = edited_llama(tmp_path, monkeypatch, *edits)
    before = key_of(module.LlamaAttention)
    assert before.outside
    monkeypatch.setattr(module.helpers_of_mine, "rescale", draws)
    assert key_of(module.LlamaAttention).outside not in (before.outside, "")


def test_what_a_helper_calls_in_another_module_counts(tmp_path, monkeypatch):
    (tmp_path / "helpers_below.py").write_text("def inner(x):\n    return x * 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "helpers_below", None)
    del sys.modules["helpers_below"]
    text = f"import helpers_below\n\n\ndef rescale(x):\n    return helpers_below.inner(x)\n\n\n{ABOVE}"
    module = edited_llama(tmp_path, monkeypatch, between("rescale"), (ABOVE, text))
    before = key_of(module.LlamaAttention)
    assert before.outside
    monkeypatch.setattr(module.helpers_below, "inner", draws)
    assert key_of(module.LlamaAttention).outside not in (before.outside, "")


def draws(x):
    return x * torch.rand_like(x)


class Draws(nn.Module):
    def forward(self, x):
        return draws(x)


def test_the_modules_of_an_instance_count(tmp_path, monkeypatch):
    module = edited_llama(tmp_path, monkeypatch, *a_module("return x * 1.0"))
    config = modeling_llama.LlamaConfig(hidden_size=8, num_attention_heads=2, num_key_value_heads=1)
    first, second = (module.LlamaAttention(config, 0) for _ in range(2))
    second.k_norm = Draws()
    keys = [key_of(module.LlamaAttention, one) for one in (first, second)]
    assert keys[0].outside != keys[1].outside
    second.k_norm.forward = types.MethodType(draws, second.k_norm)
    assert "its forward was replaced" in key_of(module.LlamaAttention, second)
    assert "only an instance knows it" in key_of(module.LlamaAttention)


def test_a_method_of_an_unknown_value_is_not_trusted(tmp_path, monkeypatch):
    edits = (KEY, f"{KEY}\n        past_key_values.update(1)")
    module = edited_llama(tmp_path, monkeypatch, edits)
    assert "`.update()` is called between the projections, and what it does is not known" in key_of(
        module.LlamaAttention
    )
    model = model_of(module)
    with pytest.warns(PatchkitWarning, match="cannot be looked up in the ledger"):
        report = patchkit.apply(model, mlp=False)
    assert {row.level for row in report.rows if row.part != "mlp"} == {"alone"}


class Inherits(modeling_llama.LlamaMLP):
    note = "nothing that forward names"


class HasAProperty(modeling_llama.LlamaMLP):
    @property
    def up_proj(self):
        return self._modules["gate_proj"]


class Answers(modeling_llama.LlamaMLP):
    def __getattr__(self, name):
        return super().__getattr__(name)


@pytest.mark.parametrize(("cls", "counts"), [(Inherits, False), (HasAProperty, True), (Answers, True)])
def test_what_an_heir_answers_for_counts(cls, counts):
    inherited, own = key_of(modeling_llama.LlamaMLP), key_of(cls)
    assert own._replace(outside="") == inherited
    assert bool(own.outside) == counts


@pytest.mark.parametrize("name", sorted(architectures()))
def test_shipped_proofs_rely_on_nothing_outside(name):
    """Their keys are what they were before keys had such a part."""
    for block in architectures()[name].blocks:
        module = pytest.importorskip(architectures()[name].module)
        cls = getattr(module, block.class_name)
        assert key_of(cls).outside == "", cls


def test_a_proof_with_an_outside_is_read_as_it_was_written():
    proof = Proof(Key("a.B", "0" * 64, 1, "1" * 64), "spot", {"qkv": "fused"}, {"eval": 0.0}, {}, "2026-01-02")
    assert Proof.from_line(proof.to_line()) == proof
    assert "outside" not in Proof(proof.key._replace(outside=""), *list(vars(proof).values())[1:]).to_line()
    with pytest.raises(ValueError, match="its outside is none"):
        Proof.from_line(proof.to_line().replace("1" * 64, "1"))


def levels(report):
    return {row.level for row in report.rows if row.module_class == "LlamaAttention"}


def test_a_helper_that_begins_to_draw_is_not_trusted(tmp_path, monkeypatch):
    (tmp_path / "before").mkdir()
    (tmp_path / "after").mkdir()
    with monkeypatch.context() as patch:
        module = edited_llama(tmp_path / "before", patch, *helper("return x * 1.0"))
        assert levels(patchkit.apply(model_of(module))) == {"fused"}
    (proven,) = read_proofs(user_ledger())
    module = edited_llama(tmp_path / "after", monkeypatch, *helper("return x * (1 + torch.rand_like(x))"))
    assert key_of(module.LlamaAttention)._replace(outside=proven.outside) == proven
    for trust in ("ledger", "verify"):
        model = model_of(module)
        for part in model.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.3
        reference = copy.deepcopy(model)
        with pytest.warns(PatchkitWarning, match="its source is not in the ledger"):
            assert levels(patchkit.apply(model, trust=trust)) == {"alone"}
        assert compare_runs(run(reference, inputs()), run(model, inputs())).passed


@pytest.mark.parametrize(
    ("statement", "names"),
    [
        ("z = rotate(y)", ("rotate()",)),
        ("z = module.rotate(y)", ("module.rotate()",)),
        ("z = self.q_norm(y).view(1)", ("self.q_norm()",)),
        ("z = self.inner.norm(y)", ("self.inner.norm()", "self.inner")),
        ("z = y * self.scale", ("self.scale",)),
        ("z = past.update(y)", (".update()",)),
        ("z = y.view(1).transpose(0, 1).to(z.dtype)", ()),
    ],
)
def test_what_is_passed_over_is_named(statement, names):
    from patchkit.arch.spec import Attention, GatedMLP

    attention = f"before(y)\nq = self.q_proj(x)\n{statement}\nk, v = self.k_proj(x), self.v_proj(x)\nafter(y)"
    mlp = (
        f"before(y)\ng = self.gate_proj(x)\n{statement}\nreturn after(self.down_proj(self.act_fn(g) * self.up_proj(x)))"
    )
    for body, block in ((attention, Attention("Block")), (mlp, GatedMLP("Block"))):
        lines = "".join(f"        {line}\n" for line in body.split("\n"))
        text = f"class Block:\n    def forward(self, x, y, z, past):\n{lines}"
        (site,) = rewrite(text, block, only=frozenset({"qkv", "mlp"})).sites
        assert site.passed_over == names
