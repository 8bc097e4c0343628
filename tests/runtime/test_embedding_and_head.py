"""The adapted embedding and head: equal to an unpatched copy in every state, and the report says what runs where."""

from __future__ import annotations

import copy
import types
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import peft
import pytest
import torch
import transformers
from peft.tuners.lora.layer import Embedding as LoraEmbedding
from torch import nn
from transformers import Trainer, TrainingArguments

import patchkit
from patchkit.binding.patch import patch_of
from patchkit.errors import NotPatchedError
from patchkit.runtime.embedding import choose_embedding
from patchkit.testing import (
    CHECKS,
    Result,
    RoundingErrors,
    add_lora,
    compare_runs,
    fused_calls,
    randomise_adapter,
    run,
    tiny_inputs,
    tiny_model,
)
from patchkit.testing.parity import compare_types

pytestmark = pytest.mark.filterwarnings("ignore::patchkit.errors.PatchkitWarning", "ignore::UserWarning")

BOTH = ["embed_tokens", "lm_head"]
FUSED = {"embedding": "fused", "head": "fused"}


class State(NamedTuple):
    """A model in some state, the levels it must have then, and words of every reason."""

    name: str
    build: Callable[[], nn.Module]
    levels: dict[str, str]
    reasons: tuple[str, ...] = ()


def lora(model="llama", change=None, targets=BOTH, **config):
    def build():
        adapted = add_lora(tiny_model(model), target_modules=["q_proj", *targets], **config).train()
        if change is not None:
            change(adapted)
        return adapted

    return build


def embedding_of(model):
    return next(module for module in model.modules() if isinstance(module, LoraEmbedding))


def second_adapter(active, **config):
    def change(model):
        torch.manual_seed(0)
        options = {"r": 3, "lora_alpha": 5, "target_modules": ["embed_tokens"], "init_lora_weights": False} | config
        model.add_adapter("second", peft.LoraConfig(**options))
        randomise_adapter(model, "second", seed=3)
        model.base_model.set_adapter(active)

    return change


def requires_input_gradients(model):
    """What the Trainer and PEFT do for gradient checkpointing over a frozen embedding."""
    model.enable_input_require_grads()


def hook_on_base(model):
    embedding_of(model).base_layer.register_forward_hook(lambda module, args, output: 1.5 * output)


def replace_forward(model):
    embedding = embedding_of(model)
    embedding.forward = types.MethodType(lambda self, ids: 1.5 * type(self).forward(self, ids), embedding)


def max_norm(model):
    embedding_of(model).base_layer.max_norm = 0.5


def own_base(model):
    class Shifted(nn.Embedding):
        def forward(self, ids):
            return super().forward(ids) + 1

    embedding_of(model).base_layer.__class__ = Shifted


def unused_scale(model):
    embedding_of(model).base_layer.embed_scale = torch.tensor(3.0)


def train_base(model):
    embedding_of(model).base_layer.weight.requires_grad_(True)


def freeze_adapters(model):
    for name, parameter in model.named_parameters():
        if "embed_tokens" in name or "lm_head" in name:
            parameter.requires_grad_(False)


def merge(model):
    model.merge_adapter()


def disable(model):
    model.base_model.disable_adapter_layers()


def delete(model):
    second_adapter("second")(model)
    model.delete_adapter("default")


UPSTREAM = {"embedding": "upstream", "head": "upstream"}
EMBEDDING = {"embedding": "fused"}
EMBEDDING_UPSTREAM = {"embedding": "upstream"}
HEAD = {"head": "fused"}

STATES = [
    State("llama", lora(), FUSED),
    State("gemma3, tied and scaled", lora("gemma3"), FUSED),
    State("gemma3 with images", lora("gemma3_mm"), FUSED),
    State("llava", lora("llava"), FUSED),
    State("embedding only", lora(targets=["embed_tokens"]), EMBEDDING),
    State("head only", lora(targets=["lm_head"]), HEAD),
    State("head of a tied model", lora("gemma3", targets=["lm_head"]), HEAD),
    State("rsLoRA", lora("gemma3", use_rslora=True, r=5), FUSED),
    State("rank and alpha patterns", lora(rank_pattern={"embed_tokens": 7}, alpha_pattern={"lm_head": 3}), FUSED),
    State("PEFT draws no dropout here", lora(targets=["embed_tokens"], lora_dropout=0.5), EMBEDDING),
    State("dropout", lora("gemma3", lora_dropout=0.3), FUSED),
    State("DoRA on both", lora("gemma3", use_dora=True), FUSED),
    State("DoRA", lora(targets=["embed_tokens"], use_dora=True), EMBEDDING),
    State("DoRA, scaled", lora("gemma3", targets=["embed_tokens"], use_dora=True, use_rslora=True), EMBEDDING),
    State("trained base", lora("gemma3", train_base), FUSED),
    State("trained base, DoRA", lora("gemma3", train_base, ["embed_tokens"], use_dora=True), EMBEDDING),
    State("frozen adapters", lora(change=freeze_adapters), FUSED),
    State("inputs require gradients", lora(change=requires_input_gradients), FUSED),
    State("tied adapters", lora("gemma3", targets=["embed_tokens"], ensure_weight_tying=True), FUSED),
    State("two adapters", lora("gemma3", second_adapter(["default", "second"])), FUSED),
    State("the other adapter", lora("gemma3", second_adapter("second"), ["embed_tokens"]), EMBEDDING),
    State("deleted adapter", lora("llama", delete, ["embed_tokens"]), EMBEDDING),
    State(
        "an adapter that is not here",
        lora("llama", second_adapter("second", target_modules=["q_proj"]), ["embed_tokens"]),
        EMBEDDING_UPSTREAM,
        ("no active LoRA adapter",),
    ),
    State(
        "LoRA and DoRA",
        lora("llama", second_adapter(["default", "second"], use_dora=True), ["embed_tokens"]),
        EMBEDDING_UPSTREAM,
        ("not all of them plain LoRA",),
    ),
    State("merged", lora("gemma3", merge), UPSTREAM, ("its adapters are merged",)),
    State("disabled", lora("gemma3", disable), UPSTREAM, ("its adapters are disabled",)),
    State(
        "MiCA",
        lora(targets=["embed_tokens"], init_lora_weights="mica"),
        EMBEDDING_UPSTREAM,
        ("LoRA variant MiCAEmbeddingVariant",),
    ),
    State("hook on the base", lora(change=hook_on_base), {**FUSED, **EMBEDDING_UPSTREAM}, ("base layer: a forward",)),
    State(
        "replaced forward",
        lora(change=replace_forward),
        {**FUSED, **EMBEDDING_UPSTREAM},
        ("was replaced on the instance",),
    ),
    State("max_norm", lora(change=max_norm, targets=["embed_tokens"]), EMBEDDING_UPSTREAM, ("uses max_norm",)),
    State("another base class", lora(change=own_base), {**FUSED, **EMBEDDING_UPSTREAM}, ("Shifted",)),
    State("scale that is not used", lora(change=unused_scale), {**FUSED, **EMBEDDING_UPSTREAM}, ("embed_scale",)),
    State(
        "trainable tokens",
        lora(targets=[], trainable_token_indices={"embed_tokens": [3, 5]}),
        EMBEDDING_UPSTREAM,
        ("TrainableTokensWrapper",),
    ),
    State(
        "trainable tokens, tied",
        lora("gemma3", targets=[], trainable_token_indices=[3, 5]),
        UPSTREAM,
        ("TrainableTokensWrapper",),
    ),
    State("modules_to_save", lora(targets=[], modules_to_save=BOTH), UPSTREAM, ("modules_to_save",)),
    State(
        "modules_to_save, tied",
        lora("gemma3", targets=[], modules_to_save=["embed_tokens"], ensure_weight_tying=True),
        UPSTREAM,
        ("modules_to_save",),
    ),
    State(
        "embedding trained, head adapted",
        lora(targets=["lm_head"], modules_to_save=["embed_tokens"]),
        {"embedding": "upstream", "head": "fused"},
        ("modules_to_save",),
    ),
]


def levels(report):
    return {row.part: row.level for row in report.rows if row.part in FUSED}


def inputs_of(model):
    kind = type(model.base_model.model).__name__
    names = {"LlamaForCausalLM": "llama", "Gemma3ForCausalLM": "gemma3", "LlavaForConditionalGeneration": "llava"}
    return tiny_inputs(names.get(kind, "gemma3_mm"), model)


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.name)
def test_states(state):
    # Built twice: PEFT's tied adapters cannot be copied.
    reference, model = state.build(), state.build()
    inputs = inputs_of(reference)
    report = patchkit.apply(model)
    assert levels(report) == state.levels, str(report)
    said = [row.reason for row in report.rows if row.part in FUSED and row.reason]
    assert all(any(words in reason for reason in said) for words in state.reasons), said
    for seed in (0, 1):
        expected = run(reference, inputs, seed=seed, input_gradients=True)
        with fused_calls() as calls:
            found = run(model, inputs, seed=seed, input_gradients=True)
        assert ("lora_embedding" in calls) == (state.levels.get("embedding") == "fused")
        findings = compare_runs(expected, found) + compare_types(expected, found)
        assert findings.passed, findings
    assert levels(patchkit.report(model)) == state.levels


def test_f2_scaled_embedding():
    """F2: gemma's ``embed_scale`` multiplies what the adapter adds as well; forward, and every gradient."""
    reference = lora("gemma3", train_base)()
    base = embedding_of(reference).base_layer
    assert base.embed_scale == 8
    assert base.weight is reference.base_model.model.lm_head.base_layer.weight, "the table is tied to the head"
    model = copy.deepcopy(reference)
    assert levels(patchkit.apply(model)) == FUSED
    ids = torch.tensor([[5, 7, 5], [0, 127, 1]])
    for change in (None, torch.tensor(0.25)):
        if change is not None:  # read at every call
            for each in (reference, model):
                embedding_of(each).base_layer.embed_scale = change
        outputs = [embedding_of(each)(ids) for each in (reference, model)]
        cotangent = torch.randn(outputs[0].shape)
        gradients = []
        for each, output in zip((reference, model), outputs, strict=True):
            trained = [p for p in embedding_of(each).parameters() if p.requires_grad]
            assert len(trained) == 3
            gradients.append(torch.autograd.grad(output, trained, cotangent))
        for a, b in zip((outputs[0], *gradients[0]), (outputs[1], *gradients[1]), strict=True):
            assert (a - b).norm() <= 1e-6 * a.norm()


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("llama", check)
        for check in ("generate", "eval", "hooks", "isolation", "pickle", "revert", "state_dict", "merge_and_unload")
    ]
    + [("gemma3_mm", check) for check in ("generate", "checkpointing_reentrant", "adapter_switching")],
)
def test_contract(name, check):
    result = CHECKS[check](model := lora(name)(), tiny_inputs(name, model))
    assert result.passed, str(result)
    assert levels(result.patch_result) == FUSED


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("check", ["bfloat16", "autocast", "training_curve", "weight_updates", "repeated_backward"])
def test_contract_of_gemma3(check, dora):
    """Tied and scaled, the embedding with and without DoRA (F1: nothing kept goes stale)."""
    model = lora("gemma3", targets=["embed_tokens"], use_dora=dora)()
    result = CHECKS[check](model, tiny_inputs("gemma3", model))
    assert result.passed, str(result)
    assert levels(result.patch_result) == EMBEDDING


@pytest.mark.parametrize("dora", [False, True])
def test_compiled_in_one_graph_and_fused(dora):
    """PEFT's own DoRA does not compile, so a graph without a break is the fused one."""
    model = lora("gemma3", targets=["embed_tokens"], use_dora=dora)()
    expected = run(model, inputs_of(model))
    patchkit.apply(model)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph.print_readable(print_output=False))
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(embedding_of(model), fullgraph=True, backend=backend)
    compiled(torch.tensor([[1, 2]])).sum().backward()
    assert len(graphs) == 1
    assert "autograd_function_apply" in graphs[0]
    assert ("dora_weight_norm" in graphs[0]) == dora
    assert compare_runs(expected, run(model, inputs_of(model))).passed


@pytest.mark.parametrize("off", ["embedding", "head"])
def test_each_switch_works_alone(off):
    reference = lora()()
    model = copy.deepcopy(reference)
    report = patchkit.apply(model, **{off: False})
    assert levels(report) == FUSED | {off: "upstream"}
    assert f"switched off ({off}=False)" in str(report)
    assert compare_runs(run(reference, inputs_of(model)), run(model, inputs_of(model))).passed
    assert levels(patchkit.apply(model)) == FUSED
    assert levels(patchkit.apply(model, **{off: False})) == FUSED | {off: "upstream"}
    layer = model.get_input_embeddings() if off == "embedding" else model.get_output_embeddings()
    assert type(layer).__module__ == "peft.tuners.lora.layer"
    assert not hasattr(layer, "__patchkit__")


@pytest.mark.parametrize("dora", [False, True])
def test_fast_precision(dora):
    """float32 adapters over a bfloat16 table: the products in bfloat16, close to those of bfloat16 adapters."""
    reference = lora("gemma3", targets=["embed_tokens"], use_dora=dora)().to(torch.bfloat16)
    model = copy.deepcopy(reference)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    ids = torch.arange(100).view(2, 50)
    with torch.no_grad():
        exact = embedding_of(copy.deepcopy(model).double())(ids)
    assert levels(patchkit.apply(model, precision="fast")) == EMBEDDING
    ready = choose_embedding(embedding_of(model), ids, "fast")
    assert ready.lora == torch.bfloat16
    assert choose_embedding(embedding_of(model), ids, "peft").lora == torch.float32
    found, theirs = embedding_of(model)(ids), embedding_of(reference)(ids)
    assert found.dtype == torch.bfloat16
    errors = RoundingErrors()
    errors.add_draw("embeddings", [Result(exact, theirs, found)])
    assert not errors.failures(totals=["embeddings"])
    found.sum().backward()
    assert {p.grad.dtype for p in embedding_of(model).parameters() if p.requires_grad} == {torch.float32}
    assert levels(patchkit.apply(model)) == EMBEDDING
    assert patch_of(embedding_of(model)).precision == "peft"


def test_without_adapters_there_is_no_row_and_no_patch():
    model = add_lora(tiny_model("gemma3"))
    before = [type(model.get_input_embeddings()), type(model.get_output_embeddings())]
    assert levels(patchkit.apply(model)) == {}
    assert [type(model.get_input_embeddings()), type(model.get_output_embeddings())] == before


def test_model_classes_stay_and_revert_restores_the_layers():
    model = lora("gemma3_mm")()
    before = {name: type(module) for name, module in model.named_modules()}
    patchkit.apply(model)
    changed = {type(module).__name__ for name, module in model.named_modules() if type(module) is not before[name]}
    assert changed == {"Embedding", "Linear", "Gemma3Attention", "Gemma3MLP", "SiglipAttention"}
    assert isinstance(model.get_input_embeddings(), LoraEmbedding)
    patchkit.revert(model)
    assert {name: type(module) for name, module in model.named_modules()} == before


def test_strict():
    with pytest.raises(NotPatchedError, match="uses max_norm"):
        patchkit.apply(lora(change=max_norm)(), strict=True, qkv=False, o=False)
    patchkit.apply(lora(targets=["lm_head"], modules_to_save=["embed_tokens"])(), strict=True, qkv=False, o=False)


def test_an_adapter_added_afterwards_needs_another_apply():
    model = add_lora(tiny_model("llama"), target_modules=["q_proj"])
    patchkit.apply(model)
    second_adapter("second")(model)
    assert levels(patchkit.report(model)) == {"embedding": "upstream"}
    assert "call patchkit.apply" in str(patchkit.report(model))
    assert levels(patchkit.apply(model)) == EMBEDDING


def test_a_later_replacement_of_pefts_forward_is_honoured(monkeypatch):
    model = lora(targets=["embed_tokens"])()
    patchkit.apply(model)
    ids = torch.tensor([[1, 2]])
    monkeypatch.setattr(LoraEmbedding, "forward", lambda self, ids: "theirs")
    assert embedding_of(model)(ids) == "theirs"
    (row,) = (row for row in patchkit.report(model).rows if row.part == "embedding")
    assert row.level == "upstream"
    assert "its forward was replaced by" in row.reason
    monkeypatch.undo()
    assert levels(patchkit.report(model)) == EMBEDDING


def test_an_architecture_that_is_not_known():
    """Its layers are PEFT's own, so they are fused in any model."""
    config = transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=40, n_positions=16)
    torch.manual_seed(0)
    targets = ["wte", "lm_head"]
    reference = add_lora(transformers.GPT2LMHeadModel(config), target_modules=targets).eval()
    model = copy.deepcopy(reference)
    report = patchkit.apply(model)
    assert levels(report) == FUSED
    assert "block" not in str(report), "nothing is missing: no layer of a block has an adapter"
    ids = torch.tensor([[1, 2, 3]])
    inputs = {"input_ids": ids, "labels": ids}
    assert compare_runs(run(reference, inputs), run(model, inputs)).passed


@pytest.mark.parametrize("reentrant", [True, False])
def test_trainer_with_gradient_checkpointing(reentrant, tmp_path):
    """The Trainer puts a hook on the embedding, which stays fused; losses are the unpatched model's."""
    losses: list[list[float]] = []
    for patch in (False, True):
        model: Any = lora("gemma3")()
        if patch:
            patchkit.apply(model)
        ids = [[(7 * i + j) % 120 for j in range(12)] for i in range(8)]
        options = {"use_reentrant": reentrant}
        arguments = TrainingArguments(
            tmp_path,
            max_steps=4,
            per_device_train_batch_size=2,
            learning_rate=1e-2,
            logging_steps=1,
            gradient_checkpointing=True,
            gradient_checkpointing_kwargs=options,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            save_strategy="no",
        )
        trainer = Trainer(model, arguments, train_dataset=[{"input_ids": row, "labels": row} for row in ids])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        if patch:
            assert levels(patchkit.report(model)) == FUSED
    assert len(losses[0]) == 4
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
