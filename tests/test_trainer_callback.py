"""``patchkit.TrainerCallback`` by itself; tests/training has it in real trainers."""

from __future__ import annotations

import inspect
import logging
import pickle

import pytest
import transformers

import patchkit
from patchkit.errors import NotAModelError, NotPatchedError, PatchkitWarning, RevertError, UnknownOptionError
from patchkit.testing import tiny_model


@pytest.fixture
def train():
    """Makes a callback see the begin, the end, or both, of a training of a model."""

    def make(callback, model, events=("on_train_begin", "on_train_end")):
        for event in events:
            getattr(callback, event)(None, transformers.TrainerState(), transformers.TrainerControl(), model=model)

    return make


def classes(model):
    return [type(module) for module in model.modules()]


def test_patches_and_reports(lora_model, train, caplog):
    _, model = lora_model()
    before = classes(model)
    callback = patchkit.TrainerCallback()
    assert callback.report is None
    with caplog.at_level(logging.INFO, "patchkit"):
        train(callback, model)
    assert callback.report == patchkit.report(model)
    assert callback.report.counts == {"fused": 6}
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "qkv 2 fused; o 2 fused; mlp 2 fused" in caplog.text
    assert classes(model) != before


@pytest.mark.parametrize("main", [True, False])
def test_a_line_is_seen_without_logging_being_set_up(lora_model, train, caplog, main):
    """By the main process alone: the others would repeat it."""
    _, model = lora_model()
    callback = patchkit.TrainerCallback()
    with caplog.at_level(logging.WARNING, "patchkit"):
        callback.on_train_begin(
            None, transformers.TrainerState(is_world_process_zero=main), transformers.TrainerControl(), model=model
        )
    shown = f"patchkit {patchkit.__version__}: LlamaForCausalLM (llama): qkv 2 fused; o 2 fused; mlp 2 fused"
    assert [record.getMessage() for record in caplog.records] == [shown] * main


def test_options_are_those_of_apply(lora_model, train):
    options = {
        name: parameter.default
        for name, parameter in inspect.signature(patchkit.apply).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    assert options.keys() >= {"qkv", "o", "mlp", "strict"}
    patchkit.TrainerCallback(**options)
    _, model = lora_model()
    callback = patchkit.TrainerCallback(mlp=False)
    train(callback, model)
    levels = {row.part: row.level for row in callback.report.rows}
    assert levels == {"qkv": "fused", "o": "fused", "mlp": "upstream"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stritc": True}, "did you mean 'strict'"),
        ({"mlp": 1}, "'mlp' takes True or False, found 1"),
        ({"revert_at_end": "yes"}, "'revert_at_end' takes True or False, found 'yes'"),
    ],
)
def test_bad_options_are_found_at_once(options, message):
    with pytest.raises(UnknownOptionError, match=message):
        patchkit.TrainerCallback(**options)


def test_without_a_model(train):
    with pytest.raises(NotAModelError, match=r"Call patchkit\.apply\(model\) yourself"):
        train(patchkit.TrainerCallback(), None)


def test_strict_changes_nothing(lora_model, train):
    _, model = lora_model()
    before = classes(model)
    with pytest.raises(NotPatchedError):
        train(patchkit.TrainerCallback(qkv=False, o=False, mlp=False, strict=True), model)
    assert classes(model) == before


def test_unsupported_models_train_on(train):
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=8))
    before = classes(model)
    with pytest.warns(PatchkitWarning, match="nothing was changed and the model runs as before"):
        train(patchkit.TrainerCallback(revert_at_end=True), model)
    assert classes(model) == before


@pytest.mark.parametrize("before_training", [{}, {"mlp": False}, None], ids=["patched", "partly", "unpatched"])
def test_revert_at_end(before_training, lora_model, train):
    """Back to what was there when training began, which may have been patched by the user."""
    _, model = lora_model()
    if before_training is not None:
        patchkit.apply(model, **before_training)
    before = classes(model)
    callback = patchkit.TrainerCallback(revert_at_end=True)
    train(callback, model, ["on_train_begin"])
    assert callback.report == patchkit.report(model)
    assert patchkit.report(model).counts == {"fused": 6}
    train(callback, model, ["on_train_end"])
    assert classes(model) == before


def test_a_training_that_was_aborted(lora_model, train):
    """No end was seen, as after an exception; the next training begins from the state before, or has a new model."""
    first, second = lora_model()
    before = classes(first)
    callback = patchkit.TrainerCallback(revert_at_end=True)
    for _ in range(2):
        train(callback, first, ["on_train_begin"])
        assert patchkit.report(first).counts == {"fused": 6}
    train(callback, second, ["on_train_begin"])
    assert classes(first) == before
    assert patchkit.report(second).counts == {"fused": 6}
    train(callback, second, ["on_train_end"])
    assert classes(second) == before


def test_revert_after_another_change_of_class(lora_model, train):
    _, model = lora_model()
    callback = patchkit.TrainerCallback(revert_at_end=True)
    train(callback, model, ["on_train_begin"])
    mlp = model.base_model.model.model.layers[0].mlp
    mlp.__class__ = type("Subclass", (type(mlp),), {})
    with pytest.raises(RevertError, match=r"layers\.0\.mlp"):
        train(callback, model, ["on_train_end"])


def test_ends_without_a_beginning(train):
    train(patchkit.TrainerCallback(revert_at_end=True), tiny_model("llama"), ["on_train_end"])


def test_is_picklable():
    callback = pickle.loads(pickle.dumps(patchkit.TrainerCallback(mlp=False, revert_at_end=True)))
    assert callback.report is None
