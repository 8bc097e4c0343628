"""Every option of ``LoraConfig`` that is fused, in combinations that cover every pair of values, against PEFT.

Forward, loss, every gradient, the same seed for the same dropout masks, in fp32; every block that has an adapter must run
fused. What the options do one by one is in the kernels' tests; this is what a user does.
"""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from pairwise import pairwise

import patchkit
from patchkit.testing import add_lora, compare_runs, randomise_adapter, run, tiny_inputs, tiny_model

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
OPTIONS = {
    "architecture": ["llama", "qwen2", "gemma3"],  # no bias, bias of q/k/v, norms and tanh-GELU
    "lora_dropout": [0.0, 0.3],
    "variant": ["lora", "dora", "lora_bias"],
    "use_rslora": [False, True],
    "bias": ["none", "all", "lora_only"],
    "targets": ["all", "qv", "gate and down"],
    "patterns": [False, True],
    "layers": ["all", "one", "replicated"],
    "adapters": ["one", "two active", "second of two", "added later"],
    "base": ["frozen", "trained", "bias to save"],
    "mode": ["train", "eval"],
}


def possible(case):
    """What PEFT and transformers can build."""
    replicable = case["architecture"] == "llama"  # PEFT's layer_replication knows llama, mistral, bert and falcon
    return (replicable or case["layers"] != "replicated") and not (
        case["variant"] == "lora_bias" and case["bias"] != "none"
    )


GRID = pairwise(OPTIONS, possible)


def config(case):
    targets = {"all": ALL, "qv": ["q_proj", "v_proj"], "gate and down": ["gate_proj", "down_proj"]}[case["targets"]]
    options = {
        "target_modules": targets,
        "lora_dropout": case["lora_dropout"],
        "use_rslora": case["use_rslora"],
        "bias": case["bias"],
        "use_dora": case["variant"] == "dora",
        "lora_bias": case["variant"] == "lora_bias",
    }
    if case["patterns"]:
        options |= {"rank_pattern": {targets[0]: 1}, "alpha_pattern": {targets[-1]: 3}}
    if case["layers"] == "one":
        options["layers_to_transform"] = [1]
    elif case["layers"] == "replicated":
        options["layer_replication"] = [[0, 2], [1, 2]]
    if case["base"] == "bias to save":
        options["modules_to_save"] = ["norm", "o_proj"] if case["targets"] != "all" else ["norm"]
    return options


def add_second(model, case):
    kept = {name: value for name, value in config(case).items() if name not in ("layer_replication", "modules_to_save")}
    # PEFT lets only one adapter have biases of the base layers.
    kept |= {"bias": "none", "r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "up_proj", "down_proj"]}
    kept.pop("rank_pattern", None)
    kept.pop("alpha_pattern", None)
    model.add_adapter("second", peft.LoraConfig(**kept, init_lora_weights=False, task_type="CAUSAL_LM"))
    randomise_adapter(model, "second", seed=7)
    model.base_model.set_adapter({"two active": ["default", "second"]}.get(case["adapters"], "second"))


def prepare(case):
    model = add_lora(tiny_model(case["architecture"]), **config(case))
    if case["adapters"] in ("two active", "second of two"):
        add_second(model, case)
    if case["base"] == "trained":
        for name, parameter in model.named_parameters():
            if "base_layer" in name or "mlp" in name:
                parameter.requires_grad_(True)
    return model.train(case["mode"] == "train")


def same(case, reference, model):
    inputs = tiny_inputs(case["architecture"], model)
    for seed in (0, 1):
        expected, found = (run(copied, inputs, seed=seed, input_gradients=True) for copied in (reference, model))
        findings = compare_runs(expected, found)
        assert findings.passed, (findings.problems, str(findings.worst))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", GRID, ids=lambda case: "-".join(map(str, case.values())))
def test_options_equal_peft(case):
    model = prepare(case)
    reference = copy.deepcopy(model)
    report = patchkit.apply(model)
    assert not [row for row in report.rows if row.level != "fused" and not row.expected], str(report)
    assert report.counts.get("fused")
    if case["adapters"] == "added later":
        for copied in (reference, model):
            torch.manual_seed(0)
            add_second(copied, case)
            copied.train(case["mode"] == "train")
        assert not [row for row in patchkit.report(model).rows if row.level != "fused" and not row.expected]
    same(case, reference, model)


def test_the_grid_covers_every_pair():
    names = list(OPTIONS)
    missing = [
        (first, a, second, b)
        for i, first in enumerate(names)
        for second in names[i + 1 :]
        for a in OPTIONS[first]
        for b in OPTIONS[second]
        if not any(case[first] == a and case[second] == b for case in GRID)
    ]
    assert set(missing) == {
        ("architecture", "qwen2", "layers", "replicated"),
        ("architecture", "gemma3", "layers", "replicated"),
        ("variant", "lora_bias", "bias", "all"),
        ("variant", "lora_bias", "bias", "lora_only"),
    }
