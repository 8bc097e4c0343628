"""``trust``: what is proven is bound at once, what is unknown is verified, what differs stays upstream."""

from __future__ import annotations

import copy
import logging
import warnings

import pytest
import torch
from edited_upstream import RENAMED, edited_llama, inputs, model_of, swapping_rewriter
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama import modeling_llama

import patchkit
from patchkit.arch.discovery import find_blocks
from patchkit.binding import classes
from patchkit.binding.patch import patch_of
from patchkit.check.numeric import on_the_spot as spot
from patchkit.check.numeric.tiny_instances import shrunk_config
from patchkit.errors import NotPatchedError, PatchkitWarning, UnknownOptionError
from patchkit.testing import add_lora, compare_runs, run, tiny_inputs, tiny_model
from patchkit.trust import key as identity
from patchkit.trust import policy as trust
from patchkit.trust.key import key_of
from patchkit.trust.ledger import SHIPPED_LEDGER, find_proof, read_proofs, user_ledger

pytest_plugins = ["proof_fixtures"]
pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def verified(monkeypatch):
    """The names of the classes that were verified on the spot, in order."""
    names = []
    real = spot.verify_on_the_spot

    def record(model, classes):
        names.extend(cls.__name__ for cls in classes)
        return real(model, classes)

    monkeypatch.setattr(spot, "verify_on_the_spot", record)
    return names


@pytest.fixture
def edited(tmp_path, monkeypatch):
    return edited_llama(tmp_path, monkeypatch, RENAMED)


@pytest.fixture
def misread(edited, monkeypatch):
    """Edited source that the rewriter takes for what it is not."""
    monkeypatch.setattr(classes, "rewrite", swapping_rewriter)
    return edited


def levels(report):
    return {(row.module_class, row.part): row.level for row in report.rows}


FUSED = {("LlamaAttention", "qkv"): "fused", ("LlamaAttention", "o"): "fused", ("LlamaMLP", "mlp"): "fused"}
REFUSED = FUSED | {("LlamaAttention", "qkv"): "alone", ("LlamaAttention", "o"): "alone"}


def assert_equal_to(reference, model):
    findings = compare_runs(run(reference, inputs()), run(model, inputs()))
    assert findings.passed, (findings.problems, str(findings.worst))


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize("mode", ["ledger", "verify"])
def test_what_is_in_the_shipped_ledger_is_bound_at_once(name, mode, verified):
    report = patchkit.apply(add_lora(tiny_model(name)), trust=mode)
    assert set(report.counts) == {"fused"}
    assert not verified
    assert not user_ledger().exists()


def test_unknown_source_is_verified_once_and_remembered(edited, verified, monkeypatch, caplog, lines):
    key = key_of(edited.LlamaAttention)
    assert find_proof(key) is None
    assert key_of(edited.LlamaMLP) == key_of(modeling_llama.LlamaMLP)  # the edit is not in it
    model = model_of(edited)
    reference = copy.deepcopy(model)
    with caplog.at_level(logging.INFO, logger="patchkit"):
        assert levels(patchkit.apply(model)) == FUSED
    assert verified == ["LlamaAttention"]
    assert "verified LlamaAttention on the spot" in caplog.text
    assert_equal_to(reference, model)
    # In another process:
    monkeypatch.setattr(trust, "_decided", {})
    assert levels(patchkit.apply(model_of(edited), trust="ledger")) == FUSED
    assert verified == ["LlamaAttention"]
    (line,) = lines(user_ledger())
    assert (line["class"], line["source"], line["stage"]) == (key.class_name, key.source, "spot")
    assert line["levels"] == {"qkv": "fused", "o": "fused"}
    assert set(line["checks"]) == set(spot.SPOT_CHECKS)
    assert 0 < line["checks"]["forward_backward"] <= 1e-5


def test_the_users_model_and_random_state_stay_as_they_are(edited):
    model = model_of(edited)
    config, state = copy.deepcopy(model.config.to_dict()), torch.get_rng_state()
    with torch.inference_mode(), torch.autocast("cpu"):
        assert levels(patchkit.apply(model)) == FUSED
    assert model.config.to_dict() == config
    assert torch.equal(torch.get_rng_state(), state)


def test_ledger_alone_leaves_unknown_source_upstream(edited, verified):
    model = model_of(edited)
    with pytest.warns(PatchkitWarning) as caught:
        report = patchkit.apply(model, trust="ledger")
    assert len(caught) == 1
    assert "its source is not in the ledger; trust='verify' verifies it on the spot" in str(caught[0].message)
    assert levels(report) == REFUSED
    assert not verified


def test_always_asks_nothing(edited, verified):
    assert levels(patchkit.apply(model_of(edited), trust="always")) == FUSED
    assert not verified
    assert not user_ledger().exists()


def test_what_differs_stays_upstream_with_one_warning(misread, verified):
    model = model_of(misread)
    reference = copy.deepcopy(model)
    with pytest.warns(PatchkitWarning) as caught:
        report = patchkit.apply(model)
    assert len(caught) == 1
    text = str(caught[0].message)
    assert "LlamaAttention" in text
    assert "verified on the spot it is not equal to upstream (forward_backward: " in text
    assert "`patchkit check --arch llama` examines it" in text
    assert levels(report) == REFUSED
    assert patchkit.report(model) == report
    assert not user_ledger().exists()
    assert_equal_to(reference, model)
    # The fault is real: bound without asking, the numbers are other ones.
    patchkit.apply(model, trust="always")
    assert not compare_runs(run(reference, inputs()), run(model, inputs())).passed


def test_what_differs_is_not_verified_for_every_model(misread, verified):
    for _ in range(2):
        with pytest.warns(PatchkitWarning, match="not equal to upstream"):
            patchkit.apply(model_of(misread))
    assert verified == ["LlamaAttention"]


def test_one_class_that_differs_does_not_refuse_the_other(tmp_path, monkeypatch):
    """Both are unknown and verified together."""
    module = edited_llama(tmp_path, monkeypatch, RENAMED, ("return down_proj", "return +down_proj"))
    monkeypatch.setattr(classes, "rewrite", swapping_rewriter)
    with pytest.warns(PatchkitWarning, match="not equal to upstream"):
        report = patchkit.apply(model_of(module))
    assert levels(report) == REFUSED
    assert [key.class_name.rpartition(".")[2] for key in read_proofs(user_ledger())] == ["LlamaMLP"]


def test_strict_raises_before_anything_changes(misread):
    model = model_of(misread)
    classes = [type(module) for module in model.modules()]
    with pytest.raises(NotPatchedError, match="its source is not in the ledger"):
        patchkit.apply(model, strict=True, linear=False)
    assert [type(module) for module in model.modules()] == classes


def test_applying_again_with_less_trust_takes_the_patch_back(misread):
    model = model_of(misread)
    assert levels(patchkit.apply(model, trust="always")) == FUSED
    with pytest.warns(PatchkitWarning, match="not equal to upstream"):
        assert levels(patchkit.apply(model)) == REFUSED
    assert not [module for module in model.modules() if patch_of(module) and "Attention" in type(module).__name__]


def test_patched_takes_it_too(edited, verified):
    with (
        pytest.warns(PatchkitWarning, match="not in the ledger"),
        patchkit.patched(model_of(edited), trust="ledger") as report,
    ):
        assert levels(report) == REFUSED


def test_a_wrong_value_is_an_error(lora_model):
    _, model = lora_model()
    with pytest.raises(UnknownOptionError, match="'trust' takes 'ledger' or 'verify' or 'always', found 'never'"):
        patchkit.apply(model, trust="never")
    with pytest.raises(UnknownOptionError, match="did you mean 'trust'"):
        patchkit.apply(model, trusts="ledger")


def test_a_cache_that_cannot_be_written_costs_a_warning(edited, cache, verified):
    cache.write_text("a file where the folder should be")
    with pytest.warns(PatchkitWarning, match=r"what was verified is not remembered: .*cannot be (written|read)"):
        assert levels(patchkit.apply(model_of(edited))) == FUSED
    with warnings.catch_warnings():
        warnings.simplefilter("error", PatchkitWarning)
        assert levels(patchkit.apply(model_of(edited))) == FUSED
    assert verified == ["LlamaAttention"]  # the process remembers


def test_a_damaged_ledger_never_stops_apply(edited, cache):
    cache.mkdir()
    user_ledger().write_bytes(b"\xff\xfe{]\n")
    with pytest.warns(PatchkitWarning, match="damaged lines"):
        assert levels(patchkit.apply(model_of(edited))) == FUSED
    assert len(read_proofs(user_ledger())) == 1  # and is whole again


class TestWithoutATinyInstance:
    def test_a_constructor_that_fails(self, tmp_path, monkeypatch):
        """The recipe for llama is of the installed classes: it cannot take the place of one that differs in __init__."""
        check = (
            "        self.layer_idx = layer_idx\n",
            "        self.layer_idx = layer_idx\n        assert not globals().get('finished')\n",
        )
        module = edited_llama(tmp_path, monkeypatch, check)
        model = model_of(module)
        module.finished = True
        monkeypatch.setattr("patchkit.check.numeric.tiny_instances.tiny_models_of", lambda _: ())
        with pytest.warns(PatchkitWarning, match=r"could not be verified on the spot \(AssertionError.*trust='always'"):
            assert levels(patchkit.apply(model)) == REFUSED
        assert levels(patchkit.apply(model, trust="always")) == FUSED

    def test_the_recipe_is_the_second_way(self, edited, monkeypatch, verified):
        """A bare block has no transformers model around it."""
        monkeypatch.setattr(
            "patchkit.testing.tiny_models._from_transformers", lambda name: vars(edited).get(name, LlamaConfig)
        )
        attention = model_of(edited).base_model.model.model.layers[0].self_attn
        assert {row.level for row in patchkit.apply(nn.ModuleList([attention])).rows} == {"fused"}
        assert verified == ["LlamaAttention"]

    def test_a_class_given_to_finished_modules_is_given_to_tiny_ones(self, monkeypatch, verified):
        model = model_of(modeling_llama)
        for module in model.modules():
            if type(module) is modeling_llama.LlamaMLP:
                module.__class__ = Negated
        reference = copy.deepcopy(model)
        report = patchkit.apply(model)
        assert verified == ["Negated"]
        assert {row.level for row in report.rows if row.module_class == "Negated"} == {"fused"}
        assert_equal_to(reference, model)

    def test_a_class_that_adds_to_the_constructor_cannot_be_given(self, monkeypatch):
        model = model_of(modeling_llama)
        for module in model.modules():
            if type(module) is modeling_llama.LlamaMLP:
                module.__class__ = WithConstructor
        with pytest.warns(PatchkitWarning, match="has no WithConstructor"):
            report = patchkit.apply(model)
        assert {row.level for row in report.rows if row.part == "mlp"} == {"alone"}


class Negated(modeling_llama.LlamaMLP):
    def forward(self, x):
        return -self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class WithConstructor(modeling_llama.LlamaMLP):
    def __init__(self, config, factor):
        super().__init__(config)
        self.factor = factor

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x)) * getattr(self, "factor", 1)


def test_the_source_is_hashed_once_for_each_class(monkeypatch):
    identity.hash_of_class.cache_clear()
    for _ in range(3):
        patchkit.apply(add_lora(tiny_model("llama")))
    assert identity.hash_of_class.cache_info().misses == 2


def test_the_harness_is_not_loaded_when_the_ledger_has_it():
    """A hit costs a hash and a look into a file."""
    import subprocess
    import sys

    code = (
        "import sys, torch, patchkit; from transformers import LlamaConfig, LlamaForCausalLM;"
        "model = LlamaForCausalLM(LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=1,"
        " num_attention_heads=2, num_key_value_heads=1, vocab_size=32));"
        "assert patchkit.apply(model, trust='ledger').rows;"
        "assert not [name for name in sys.modules if name.startswith('patchkit.testing')]"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "gemma", "gemma2", "gemma3", "qwen2_vl", "mistral3"])
def test_every_registered_class_can_be_verified_on_the_spot(name, monkeypatch, verified):
    """As if the shipped ledger knew none."""
    monkeypatch.setattr("patchkit.trust.ledger.SHIPPED_LEDGER", SHIPPED_LEDGER.with_name("none.jsonl"))
    model = add_lora(tiny_model(name))
    report = patchkit.apply(model)
    assert set(report.counts) == {"fused"}, str(report)
    assert len(verified) == 2
    findings = compare_runs(run(add_lora(tiny_model(name)), inputs := tiny_inputs(name, model)), run(model, inputs))
    assert findings.passed, findings


class TestShrunkConfig:
    def test_sizes_of_a_large_model(self):
        small = shrunk_config(
            LlamaConfig(hidden_size=8192, num_attention_heads=64, num_key_value_heads=8, num_hidden_layers=80)
        )
        assert (small.num_hidden_layers, small.num_attention_heads, small.num_key_value_heads) == (2, 4, 2)
        assert (small.hidden_size, small.head_dim, small.vocab_size) == (64, 16, 128)

    def test_heads_that_are_not_grouped_stay_so(self):
        small = shrunk_config(LlamaConfig(num_attention_heads=32, num_key_value_heads=32))
        assert small.num_attention_heads == small.num_key_value_heads == 2

    def test_rotary_sections_fix_the_head(self):
        model = tiny_model("qwen2_vl")
        config = getattr(model.config, "text_config", model.config)
        assert shrunk_config(config).hidden_size == 4 * 16

    def test_what_is_not_a_size_stays(self):
        config = tiny_model("gemma3").config
        small = shrunk_config(config)
        same = ("hidden_activation", "rms_norm_eps", "attention_bias", "query_pre_attn_scalar", "sliding_window")
        assert [getattr(small, name) for name in same] == [getattr(config, name) for name in same]


def test_a_class_that_is_refused_hides_none_that_comes_after_it(monkeypatch):
    """Each class is looked at, in whatever order blocks come: one that is passed over would be bound unproven."""
    found = list(find_blocks(tiny_model("llama")))
    attentions = [one for one in found if type(one.module) is modeling_llama.LlamaAttention]
    mlps = [one for one in found if type(one.module) is modeling_llama.LlamaMLP]
    real = trust.key_of
    monkeypatch.setattr(
        trust, "key_of", lambda cls, *of: "no source" if "Attention" in cls.__name__ else real(cls, *of)
    )
    monkeypatch.setattr(trust, "find_proof", lambda key: None)
    blocks = [(one, type(one.module)) for one in (*attentions, *mlps)]
    assert len(attentions) == len(mlps) == 2
    refused = trust._refusals(tiny_model("llama"), blocks, "ledger")
    assert refused.keys() == {modeling_llama.LlamaAttention, modeling_llama.LlamaMLP}
