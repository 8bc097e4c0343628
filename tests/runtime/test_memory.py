"""The option ``memory``: what it takes, what runs then, what the report says of it, and where it does less."""

from __future__ import annotations

import copy
import logging
import warnings

import pytest
import torch
import transformers
from packaging.version import Version
from peft import LoraConfig
from torch.utils.checkpoint import checkpoint

import patchkit
from patchkit.api import _less_than_asked
from patchkit.errors import PatchkitWarning, UnknownOptionError
from patchkit.planning.row import Row
from patchkit.reporting import Report
from patchkit.runtime import fused
from patchkit.runtime.memory import MEMORY_VALUES, memory_of
from patchkit.testing import (
    FP32_TOLERANCE,
    LOW_PRECISION_RATIO,
    TEXT_PROJECTIONS,
    add_lora,
    compare_runs,
    measure_step,
    relative_error,
    run,
    tiny_inputs,
    tiny_inputs_for,
    tiny_model,
    tiny_model_from,
)
from patchkit_kernels.lora.memory import RECOMPUTE, TILED, Memory

TAKEN = {None: None, "recompute": RECOMPUTE, "tiled": TILED, "tiled:1": Memory(1), "tiled:12": Memory(12)}
REFUSED = [
    True,
    False,
    8,
    "",
    "tile",
    "Tiled",
    "tiled:",
    "tiled:0",
    "tiled:-1",
    "tiled: 2",
    "tiled:02",
    "tiled:2.0",
    b"tiled",
]


@pytest.fixture
def asked(monkeypatch):
    """What the fused functions of MLPs are asked to save."""
    found = []
    for name in ("lora_gated_mlp", "lora_mlp"):
        function = getattr(fused, name)

        def spy(*args, function=function, memory=None, **options):
            found.append(memory)
            return function(*args, memory=memory, **options)

        monkeypatch.setattr(fused, name, spy)
    return found


def adapted(name="llama", **lora):
    model = add_lora(tiny_model(name), **lora).train()
    return model, tiny_inputs(name, model)


def memories(report):
    return [row.memory for row in report.rows if row.part == "mlp"]


def assert_same(reference, model, inputs, **options):
    findings = compare_runs(run(reference, inputs, **options), run(model, inputs, **options))
    assert findings.passed, (findings.problems, str(findings.worst))


@pytest.mark.parametrize("value", TAKEN)
def test_values(value):
    assert memory_of(value) == TAKEN[value]


@pytest.mark.parametrize("value", REFUSED, ids=repr)
def test_other_values_are_one_clear_error(value):
    model, _ = adapted()
    with pytest.raises(UnknownOptionError) as raised:
        patchkit.apply(model, memory=value)
    assert str(raised.value) == f"option 'memory' takes {MEMORY_VALUES}, found {value!r}"
    assert not patchkit.report(model).at("fused")
    with pytest.raises(UnknownOptionError, match="option 'memory' takes"):
        patchkit.TrainerCallback(memory=value)


@pytest.mark.parametrize("memory", TAKEN)
def test_the_report_says_what_runs(memory, asked):
    model, inputs = adapted()
    reference = copy.deepcopy(model)
    report = patchkit.apply(model, memory=memory)
    assert memories(report) == memories(patchkit.report(model)) == [memory or ""] * 2
    assert {row.memory for row in report.rows if row.part not in ("mlp", "norm")} == {""}
    assert ("memory" in str(report)) == ("memory: " in report._repr_html_()) == (memory is not None)
    assert_same(reference, model, inputs)
    assert asked == [TAKEN[memory]] * 2


def test_nothing_changes_for_who_does_not_ask():
    """The same classes as ever, and others for who does; attention has one class either way."""
    plain, asking = adapted()[0], adapted()[0]
    patchkit.apply(plain)
    patchkit.apply(asking, memory="tiled")
    layers = [model.base_model.model.model.layers[0] for model in (plain, asking)]
    assert type(layers[0].mlp) is not type(layers[1].mlp)
    assert type(layers[0].self_attn) is type(layers[1].self_attn)
    patchkit.apply(asking)
    assert type(layers[0].mlp) is type(layers[1].mlp)


def test_another_value_is_another_choice(asked):
    model, inputs = adapted()
    classes = [type(module) for module in model.modules()]
    for memory in ("recompute", "tiled:3", "tiled:3", None):
        assert memories(patchkit.apply(model, memory=memory)) == [memory or ""] * 2
        model(**inputs)
    assert asked == [TAKEN["recompute"]] * 2 + [Memory(3)] * 4 + [None] * 2
    with patchkit.patched(model, memory="tiled"):
        assert memories(patchkit.report(model)) == ["tiled"] * 2
    assert memories(patchkit.report(model)) == [""] * 2
    patchkit.revert(model)
    assert [type(module) for module in model.modules()] == classes


@pytest.mark.parametrize("memory", ["recompute", "tiled:2"])
def test_bytes_kept(memory):
    """Less by gate and up of each layer, and no more FLOPs than to make them again."""
    model, inputs = adapted()
    costs = []
    for option in (None, memory):
        patchkit.apply(model, memory=option)
        costs.append(measure_step(model, inputs))
    tokens, config, rank = inputs["input_ids"].numel(), model.config, model.peft_config["default"].r
    wide = config.num_hidden_layers * 2 * tokens * config.intermediate_size
    assert costs[0].bytes_kept - costs[1].bytes_kept == wide * 4
    assert costs[1].flops - costs[0].flops == 2 * wide * (config.hidden_size + rank)


@pytest.mark.parametrize("memory", ["recompute", "tiled:2"])
@pytest.mark.parametrize(
    "lora",
    [
        {"use_dora": True},
        {"lora_dropout": 0.2, "use_dora": True},
        {"bias": "all"},
        {"lora_bias": True},
        {"target_modules": ["down_proj"]},
        {"target_modules": ["q_proj"]},
        {"target_modules": ["gate_proj", "down_proj"], "modules_to_save": ["norm"]},
    ],
    ids=str,
)
def test_adapters(lora, memory):
    model, inputs = adapted(**lora)
    reference = copy.deepcopy(model)
    patchkit.apply(model, memory=memory)
    for seed in (0, 1):
        assert_same(reference, model, inputs, seed=seed, input_gradients=True)


@pytest.mark.parametrize("memory", ["recompute", "tiled:2"])
def test_trained_weights(memory):
    """Everything is trained: weights, biases and adapters."""
    model, inputs = adapted("qwen2")
    model.requires_grad_(True)
    reference = copy.deepcopy(model)
    patchkit.apply(model, memory=memory)
    assert_same(reference, model, inputs)


@pytest.mark.parametrize("memory", ["recompute", "tiled:2"])
def test_several_adapters(memory):
    model, inputs = adapted()
    add = {"r": 3, "target_modules": ["up_proj", "down_proj"], "init_lora_weights": False}
    model.add_adapter("other", LoraConfig(**add))
    model.base_model.set_adapter(["default", "other"])
    reference = copy.deepcopy(model)
    patchkit.apply(model, memory=memory)
    assert_same(reference, model, inputs)


UNGATED = {"gpt2": ["c_fc", "c_proj"], "phi": ["fc1", "fc2"], "phi3": ["gate_up_proj", "down_proj"]}


@pytest.mark.parametrize("memory", ["recompute", "tiled:2"])
@pytest.mark.parametrize("name", UNGATED)
def test_other_forms(name, memory, asked):
    """No gate, and one projection for gate and up."""
    model = tiny_model_from(name)
    inputs = tiny_inputs_for(model)
    model = add_lora(model, target_modules=UNGATED[name]).train()
    reference = copy.deepcopy(model)
    report = patchkit.apply(model, memory=memory, trust="always")
    levels = {(row.level, row.memory) for row in report.rows if row.part == "mlp"}
    assert_same(reference, model, inputs)
    assert levels == {("fused", memory)}
    assert set(asked) == {TAKEN.get(memory, Memory(2))}


def test_with_the_loss_without_logits():
    """Both at once keep what each saves, and the loss does without its input."""
    model, inputs = adapted(target_modules=[*TEXT_PROJECTIONS, "lm_head"])
    reference = copy.deepcopy(model)
    kept = {}
    for options in ({}, {"loss": True}, {"memory": "tiled:2"}, {"loss": True, "memory": "tiled:2"}):
        patchkit.apply(model, trust="always", **options)
        kept[tuple(options)] = measure_step(model, inputs).bytes_kept
    saved = {options: kept[()] - bytes_kept for options, bytes_kept in kept.items()}
    of_loss = 4 * 64 * inputs["input_ids"].numel()
    assert saved["loss", "memory"] == saved["loss",] + saved["memory",] + of_loss
    assert min(saved["loss",], saved["memory",]) > 0
    losses = [model(**inputs).loss, reference(**inputs).loss]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(*losses, rtol=FP32_TOLERANCE, atol=0)
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if theirs.grad is not None:
            assert (ours.grad - theirs.grad).norm() <= FP32_TOLERANCE * theirs.grad.norm()


@pytest.mark.parametrize("reentrant", [True, False])
def test_another_choice_between_a_checkpoint_and_its_recomputation(reentrant):
    """What runs again saves what was saved when it was run first, with the class that the block had then."""
    model, _ = adapted()
    mlp = model.base_model.model.model.layers[0].mlp
    x = torch.randn(3, 9, 64, requires_grad=True)
    expected = torch.autograd.grad(mlp(x).square().sum(), x)[0]
    for first, second in (("recompute", None), (None, "tiled:2"), ("tiled:2", "recompute")):
        patchkit.apply(model, memory=first)
        y = checkpoint(mlp, x, use_reentrant=reentrant)
        patchkit.apply(model, memory=second)
        y.square().sum().backward()
        assert (x.grad - expected).norm() <= FP32_TOLERANCE * expected.norm()
        x.grad = None


@pytest.mark.parametrize("memory", ["recompute", "tiled"])
def test_where_no_mlp_runs_fused(memory):
    model, _ = adapted()
    with pytest.warns(PatchkitWarning, match=f"memory='{memory}' has no effect, because no MLP of it runs fused"):
        report = patchkit.apply(model, mlp=False, memory=memory)
    assert memories(report) == ["", ""]


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("4.56"),
    reason="from_pretrained takes dtype= since transformers 4.56, and before 4.51 puts no bitsandbytes on a CPU",
)
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.filterwarnings("ignore")
def test_quantised_weights(bits, autocast, tmp_path, asked):
    """Made again in forward's autocast; eight bits look for outliers among all tokens, and so are not tiled."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is Linux only")
    logging.disable(logging.WARNING)  # of every product of eight bits
    try:
        check_quantised(bits, autocast, tmp_path, asked)
    finally:
        logging.disable(logging.NOTSET)


def check_quantised(bits, autocast, folder, asked):
    tiny_model("llama").save_pretrained(folder)
    stored = transformers.BitsAndBytesConfig(**{f"load_in_{bits}bit": True}, bnb_4bit_compute_dtype=torch.float32)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=stored, dtype=torch.float32, device_map="cpu"
    )
    model = add_lora(model).train()
    inputs, results = tiny_inputs("llama", model), {}
    for memory in (None, "recompute", "tiled:2"):
        copied = copy.deepcopy(model)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            report = patchkit.apply(copied, memory=memory, trust="always")
        warned = [str(one.message) for one in seen if "is less for 2 of 2 MLPs" in str(one.message)]
        assert len(warned) == ((bits, memory) == (8, "tiled:2"))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            results[memory] = run(copied, inputs)
        if (bits, memory) == (8, "tiled:2"):
            (row, _) = (row for row in report.rows if row.part == "mlp")
            assert (row.level, row.memory) == ("fused", "recompute")
            assert "depends on all tokens at once" in row.reason
            assert asked[-2:] == [RECOMPUTE] * 2
        else:
            assert memories(report) == [memory or ""] * 2
    assert compare_runs(results[None], results["recompute"]).worst.error == 0
    if not autocast:
        assert compare_runs(results[None], results["tiled:2"]).passed
        return
    truth = total(run(model, inputs))
    kept, tiled = (relative_error(total(results[memory]), truth) for memory in (None, "tiled:2"))
    assert 1e-4 < tiled <= LOW_PRECISION_RATIO * kept


def total(found):
    return torch.cat([gradient.flatten() for gradient in found.gradients.values()])


def test_what_does_less_than_was_asked_for_is_told_in_one_line():
    rows = (Row("a", "A", "mlp", "fused", "why", memory="recompute"), Row("b", "A", "mlp", "fused", memory="tiled"))
    told = _less_than_asked(Report("M", rows), "tiled")
    assert told == "memory='tiled' is less for 1 of 2 MLPs (A: memory='recompute', since why)"
    assert _less_than_asked(Report("M", rows[1:]), "tiled") == ""
