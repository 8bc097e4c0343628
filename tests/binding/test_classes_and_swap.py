"""The patched class stands in for the upstream class in everything but ``forward``."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import io
import linecache
import pickle
import traceback

import pytest
import torch
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP

import patchkit
from patchkit.arch.spec import GatedMLP
from patchkit.binding.classes import patched_class
from patchkit.binding.patch import patch_of
from patchkit.rewrite.rewriter import rewrite
from patchkit.testing import compare_runs, identical_runs, run, tiny_inputs, tiny_model
from patchkit.upstream.live import read_method


def block(model, cls):
    return next(module for module in model.modules() if isinstance(module, cls))


def test_the_class_looks_like_upstreams(lora_model):
    _, model = lora_model()
    patchkit.apply(model)
    attention = block(model, LlamaAttention)
    cls = type(attention)
    assert (cls.__name__, cls.__qualname__, cls.__module__, cls.__doc__) == (
        LlamaAttention.__name__,
        LlamaAttention.__qualname__,
        LlamaAttention.__module__,
        LlamaAttention.__doc__,
    )
    assert issubclass(cls, LlamaAttention)
    assert inspect.signature(cls.forward) == inspect.signature(LlamaAttention.forward)
    assert cls.forward.__annotations__ == LlamaAttention.forward.__annotations__
    assert repr(attention).splitlines()[0] == "LlamaAttention("


def test_state_dict_and_parameters_are_untouched(lora_model):
    _, model = lora_model()
    keys, identities = list(model.state_dict()), [id(p) for p in model.parameters()]
    patchkit.apply(model)
    assert list(model.state_dict()) == keys
    assert [id(p) for p in model.parameters()] == identities
    assert not any(key.startswith("patchkit") for module in model.modules() for key in vars(module))


def test_functions_run_in_upstreams_globals(lora_model, monkeypatch):
    """F11, F12: a later monkey patch of the upstream module is seen; nothing is written into it."""
    _, model = lora_model()
    before = dict(vars(modeling_llama))
    patchkit.apply(model)
    assert vars(modeling_llama) == before
    attention = block(model, LlamaAttention)
    assert type(attention).forward.__globals__ is vars(modeling_llama)
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", lambda *args, **kwargs: pytest.fail("seen"))
    with pytest.raises(pytest.fail.Exception, match="seen"):
        model(**tiny_inputs("llama", model))


def test_patching_one_architecture_leaves_another_bit_identical(lora_model):
    """F11."""
    _, llama = lora_model("llama")
    inputs = tiny_inputs("llama", llama)
    patchkit.apply(llama)
    first = run(llama, inputs)
    _, gemma3 = lora_model("gemma3")
    patchkit.apply(gemma3)
    run(gemma3, tiny_inputs("gemma3", gemma3))
    assert identical_runs(first, run(llama, inputs))


def test_source_is_visible_to_inspect_and_tracebacks(lora_model):
    """F22."""
    _, model = lora_model()
    patchkit.apply(model)
    attention = block(model, LlamaAttention)
    source = inspect.getsource(type(attention).forward)
    assert "q, k, v = self.apply_qkv(hidden_states)" in source
    assert "self.apply_o(attn_output)" in source
    linecache.checkcache()
    try:
        attention(torch.zeros(1, 2, 64), position_embeddings=None)
    except TypeError:
        text = traceback.format_exc()
    assert "cos, sin = position_embeddings" in text
    assert "<patchkit transformers.models.llama.modeling_llama.LlamaAttention" in text


def test_deepcopy_stays_patched_and_is_independent(lora_model):
    reference, model = lora_model()
    patchkit.apply(model)
    clone = copy.deepcopy(model)
    assert patchkit.report(clone).counts == {"fused": 6}
    assert patchkit.revert(model) == 4
    assert patchkit.report(clone).counts == {"fused": 6}
    assert {id(p) for p in clone.parameters()}.isdisjoint({id(p) for p in model.parameters()})
    inputs = tiny_inputs("llama", model)
    assert compare_runs(run(reference, inputs), run(clone, inputs)).passed


def test_deepcopy_of_what_a_name_stands_for(lora_model, monkeypatch):
    """An object that is pickled by a name alone is no other one in a copy."""
    _, model = lora_model()
    patchkit.apply(model)
    (mlp, *_) = (module for module in model.modules() if isinstance(module, LlamaMLP))
    monkeypatch.setattr(LlamaMLP, "__reduce_ex__", lambda self, protocol: "one_of_a_kind", raising=False)
    assert copy.deepcopy(mlp) is mlp


@pytest.mark.parametrize("save", ["torch", 0, 2, pickle.HIGHEST_PROTOCOL], ids=str)
def test_pickle_names_the_upstream_class(lora_model, save):
    """F22: the file loads without patchkit, as an unpatched model with the same numbers."""
    reference, model = lora_model()
    patchkit.apply(model)
    buffer = io.BytesIO()
    if save == "torch":
        torch.save(model, buffer)
    else:
        pickle.dump(model, buffer, protocol=save)
    assert b"patchkit" not in buffer.getvalue()
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False) if save == "torch" else pickle.load(buffer)
    assert type(block(loaded, LlamaMLP)) is LlamaMLP
    inputs = tiny_inputs("llama", model)
    assert identical_runs(run(reference, inputs), run(loaded, inputs))


def test_one_patched_class_per_class_and_options(lora_model):
    """No class is made again for a second model: caches keyed by class (torch.compile's, for one) keep working."""
    (_, first), (_, second) = lora_model(), lora_model()
    patchkit.apply(first)
    patchkit.apply(second)
    assert type(block(first, LlamaMLP)) is type(block(second, LlamaMLP))
    patchkit.apply(second, mlp=False)
    assert type(block(second, LlamaMLP)) is LlamaMLP


def test_binding_is_per_instance(lora_model):
    """F20: two blocks of a model share nothing but the class."""
    _, model = lora_model()
    patchkit.apply(model)
    first, second = (module for module in model.modules() if isinstance(module, LlamaMLP))
    assert type(first) is type(second)
    patchkit.revert(first)
    assert type(first) is LlamaMLP
    assert patch_of(second) is not None


def test_a_subclass_with_an_inherited_forward(lora_model):
    reference, model = lora_model()

    class OwnMLP(LlamaMLP):
        note = "mine"

    for module in model.modules():
        if type(module) is LlamaMLP:
            module.__class__ = OwnMLP
    assert patchkit.apply(model).counts == {"fused": 6}
    assert block(model, LlamaMLP).note == "mine"
    inputs = tiny_inputs("llama", model)
    assert compare_runs(run(reference, inputs), run(model, inputs)).passed
    patchkit.revert(model)
    assert type(block(model, LlamaMLP)) is OwnMLP


def test_a_subclass_that_calls_super_keeps_its_own_forward(lora_model):
    """Its forward calls no projection: it runs as it is, and upstream's inside it."""
    reference, model = lora_model()

    for copied in (reference, model):
        for module in copied.modules():
            if type(module) is LlamaMLP:
                module.__class__ = DoublingMLP
    with pytest.warns(patchkit.errors.PatchkitWarning, match="DoublingMLP mlp"):
        patchkit.apply(model)
    inputs = tiny_inputs("llama", model)
    assert compare_runs(run(reference, inputs), run(model, inputs)).passed


class DoublingMLP(LlamaMLP):
    def forward(self, x):
        return 2 * super().forward(x)


class KeywordMLP(LlamaMLP):
    """Defaults, closures over ``__class__`` and name mangling survive the rewriting."""

    __factor = 3.0

    def forward(self, x, *, shift: float = 0.5, extra=[]):  # noqa: B006
        extra.append(__class__)
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x)) * self.__factor + shift


def test_defaults_closure_and_private_names():
    model = tiny_model("llama")
    mlp = block(model, LlamaMLP)
    mlp.__class__ = KeywordMLP
    x = torch.randn(3, 64, requires_grad=True)
    expected = mlp(x)
    defaults = KeywordMLP.forward.__kwdefaults__
    # Not verified on the spot: that calls the class too, and calls are counted here.
    assert patchkit.apply(mlp, trust="always").counts == {"fused": 1}
    assert torch.allclose(mlp(x), expected, rtol=1e-5, atol=1e-6)
    assert type(mlp).forward.__kwdefaults__ is defaults
    assert defaults["extra"] == [KeywordMLP, KeywordMLP]


def doubled(function):
    import functools

    @functools.wraps(function)
    def wrapper(self, x):
        return 2 * function(self, x)

    return wrapper


class DecoratedMLP(LlamaMLP):
    @doubled
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def test_decorators_stand_around_the_patched_method():
    mlp = block(tiny_model("llama"), LlamaMLP)
    mlp.__class__ = DecoratedMLP
    x = torch.randn(3, 64, requires_grad=True)
    expected = mlp(x)
    assert patchkit.apply(mlp).counts == {"fused": 1}
    assert torch.allclose(mlp(x), expected, rtol=1e-5, atol=1e-6)


def test_a_wrapper_that_is_not_in_the_source_is_refused(monkeypatch):
    monkeypatch.setattr(LlamaMLP, "forward", doubled(LlamaMLP.forward))
    found = patched_class(LlamaMLP, GatedMLP("LlamaMLP"), frozenset({"mlp"}))
    assert "wrapper: that is not what the decorators in its source make" in found.why("mlp")


def test_source_that_is_not_what_runs_is_refused(monkeypatch):
    """The file was edited after the import: the text no longer says what runs."""
    filename = LlamaMLP.forward.__code__.co_filename
    lines = [
        line.replace("self.act_fn(self.gate_proj(x))", "self.act_fn(self.up_proj(x))")
        for line in linecache.getlines(filename)
    ]
    monkeypatch.setitem(linecache.cache, filename, (1, None, lines, filename))
    found = read_method(LlamaMLP, "forward")
    assert isinstance(found, str)
    assert found.startswith("the code of forward in memory is not that of")


def test_output_recorders_and_hooks_keep_working(lora_model):
    """``output_attentions`` is recorded by hooks that upstream puts on its attention class."""
    reference, model = lora_model("gemma3", task_type=None)
    patchkit.apply(model)
    for copied in (reference, model):
        copied.base_model.model.set_attn_implementation("eager")
    inputs = tiny_inputs("gemma3", model)
    expected, found = (m(**inputs, output_attentions=True, output_hidden_states=True) for m in (reference, model))
    assert len(found.attentions) == len(expected.attentions) == 2
    assert len(found.hidden_states) == 3
    seen = []
    from transformers.models.gemma3.modeling_gemma3 import Gemma3MLP

    block(model, Gemma3MLP).register_forward_hook(lambda module, args, output: seen.append(output))
    model(**inputs)
    assert len(seen) == 1


def test_rewritten_code_that_needs_another_variable_is_refused(monkeypatch):
    """Upstream's function lacks the cell of ``__class__`` that such code would read."""
    needs_more = replacing("return self.apply_mlp(x)", "return __class__ and self.apply_mlp(x)")
    monkeypatch.setattr("patchkit.binding.classes.rewrite", needs_more)
    refusal = patched_class(WithoutCell, GatedMLP("WithoutCell"), frozenset({"mlp"}))
    assert refusal.why("mlp") == "the rewritten code needs __class__ of an enclosing scope"


def test_rewritten_code_that_does_not_compile_is_refused(monkeypatch):
    monkeypatch.setattr("patchkit.binding.classes.rewrite", replacing("return self.apply_mlp(x)", "return return"))
    refusal = patched_class(NotCompiling, GatedMLP("NotCompiling"), frozenset({"mlp"}))
    assert refusal.why("mlp") == "the rewritten source does not compile"


def replacing(old, new):
    """A rewriter with a fault."""

    def faulty(*args, **options):
        result = rewrite(*args, **options)
        return dataclasses.replace(result, source=result.source.replace(old, new))

    return faulty


class WithoutCell(LlamaMLP):
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class NotCompiling(LlamaMLP):
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
