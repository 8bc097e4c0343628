"""The parity contract on the device: outputs, gradients, masks and rounding of patched tiny models against plain PEFT.

Dropout masks are compared by their effect: both sides start from the same state of the device's generator.
"""

from __future__ import annotations

import functools
import importlib.util
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any
from unittest import mock

import torch

import patchkit
from patchkit.check.numeric.loss_on_the_spot import LossAlone
from patchkit.testing import (
    CHECKS,
    TEXT_MODELS,
    TEXT_PROJECTIONS,
    Case,
    CheckResult,
    add_lora,
    compare_runs,
    on_device,
    run,
    tiny_inputs,
    tiny_model,
)
from patchkit.testing.checks.precision import precision_findings
from patchkit_kernels.lora import cross_entropy
from patchkit_kernels.lora.choices import choosing
from patchkit_kernels.ops import dropout_once
from tools.gpu.cells import Cell, NotRun, Setting, Wrong

FIRST = ("llama", "gemma3")
SHORT = ("forward_backward", "dropout", "autocast_bfloat16_base", "compile")
_TOKENS_AT_ONCE = 8
"""Of a loss without logits: the tiny inputs have 24 tokens, and one chunk would show nothing of chunks."""

_OF_LOSS = ("forward_backward", "eval", "repeated_backward", "ragged_padding", "dropout", "generate")
WIDE = {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 8, "num_key_value_heads": 2}
"""Sizes at which device kernels take the ways of real models: vector loads, several blocks, split sums."""

WAYS: dict[str, dict[str, int]] = {
    "in pieces": {"least_elements": 0},
    "P2 and P3": {"least_elements": 0, "one_pass_rank": 64, "in_activation_rank": 32},
}
"""Ways of computing that the inputs of a tiny model are too small for; see :mod:`patchkit_kernels.lora.choices`."""


def cells(setting: Setting) -> Sequence[Cell]:
    """The whole contract for two models, each option, state and way, then the short one for every other text model."""
    if setting.tiny:
        first = Cell("llama forward_backward", partial(_check, setting, "forward_backward"))
        return [first, _states(setting)[1], _options(setting)[0], *_options(setting)[-6:-5], _ways(setting)[-1]]
    made = [Cell(f"{model} {name}", partial(_check, setting, name, model)) for model in FIRST for name in SHORT]
    made += _ways(setting) + _states(setting) + _options(setting)
    made += [
        Cell(f"{model} {name}", partial(_check, setting, name, model))
        for model in FIRST
        for name in CHECKS
        if name not in SHORT
    ]
    made += [
        Cell(f"{model} {name}", partial(_check, setting, name, model))
        for name in SHORT
        for model in TEXT_MODELS
        if model not in FIRST
    ]
    return made


def _states(setting: Setting) -> list[Cell]:
    """What adapters and bases can be."""
    made = [
        Cell("llama, bfloat16 base, float32 adapters, no autocast", partial(_fp32_adapters, setting)),
        Cell("llama, NF4", partial(_nf4, setting)),
    ]
    lora: dict[str, dict[str, Any]] = {
        "DoRA": {"use_dora": True},
        "DoRA with dropout": {"use_dora": True, "lora_dropout": 0.1},
        "dropout": {"lora_dropout": 0.1},
        "bias": {"lora_bias": True},
        "rank 64": {"r": 64},
    }
    for label, config in lora.items():
        for name in ("forward_backward", "autocast_bfloat16_base", "checkpointing_non_reentrant", "compile"):
            made.append(Cell(f"llama, {label}: {name}", partial(_check, setting, name, "llama", lora=config)))
    for name in ("forward_backward", "autocast_bfloat16_base", "bfloat16", "checkpointing_non_reentrant"):
        made.append(Cell(f"llama, dropout, masks in bits: {name}", partial(_in_bits, setting, name)))
    for name in ("forward_backward", "dropout", "autocast_bfloat16_base", "bfloat16", "compile"):
        made.append(Cell(f"llama of width 1024: {name}", partial(_check, setting, name, "llama", sizes=WIDE)))
    return made


def _ways(setting: Setting) -> list[Cell]:
    """Each way of computing, with adapters in the base's dtype and in float32."""
    names = ("compile", "checkpointing_non_reentrant", "bfloat16", "autocast_bfloat16_base", "forward_backward")
    made = [
        Cell(f"{model}, {label}: {name}", partial(_check, setting, name, model, ways=chosen))
        for label, chosen in WAYS.items()
        for model in FIRST
        for name in names
    ]
    return [
        Cell(f"llama, {label}, float32 adapters, no autocast", partial(_fp32_adapters, setting, chosen))
        for label, chosen in WAYS.items()
    ] + made


def _options(setting: Setting) -> list[Cell]:
    """What ``apply`` can be asked for."""
    made = [
        Cell(f'llama, memory="{memory}": {name}', partial(_check, setting, name, "llama", options={"memory": memory}))
        for memory in ("recompute", "tiled:2")
        for name in ("forward_backward", "dropout", "checkpointing_reentrant", "autocast_bfloat16_base", "compile")
    ]
    return made + [
        Cell(f"{model}, loss=True: {name}", partial(_loss, setting, name, model))
        for model in ("llama", "gemma2")
        for name in _OF_LOSS
    ]


@functools.lru_cache(maxsize=4)
def _made(name: str, device: str, sizes: tuple[tuple[str, Any], ...], lora: tuple[tuple[str, Any], ...]) -> Any:
    model = add_lora(tiny_model(name, **dict(sizes)), **dict(lora)).train()
    return on_device(model, tiny_inputs(name, model), device)


def _check(
    setting: Setting,
    name: str,
    model: str = "llama",
    *,
    sizes: dict[str, Any] | None = None,
    lora: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
    ways: dict[str, int] | None = None,
) -> dict[str, Any]:
    made, inputs = _made(model, setting.device, tuple((sizes or {}).items()), tuple((lora or {}).items()))
    patch = functools.partial(patchkit.apply, trust="always", **(options or {}))
    with _choosing(setting, ways):
        return figures_of(CHECKS[name](made, inputs, patch, revert=patchkit.revert))


def _choosing(setting: Setting, ways: dict[str, int] | None) -> AbstractContextManager[Any]:
    return choosing(emulated=setting.on_cpu, **ways) if ways else nullcontext()


def _in_bits(setting: Setting, name: str) -> dict[str, Any]:
    """With the kernels that pack masks and apply them, for which the inputs of a tiny model are too small."""
    with mock.patch.object(dropout_once, "UNPACKED_ON_GPU", 0):
        return _check(setting, name, lora={"lora_dropout": 0.1})


def figures_of(result: CheckResult) -> dict[str, Any]:
    """The worst error and the levels of a check that passed.

    Raises:
        NotRun: upstream itself cannot do it.
        Wrong: it failed.
    """
    if result.status == "inapplicable":
        raise NotRun(f"inapplicable: {result.reason}")
    counts = getattr(result.patch_result, "counts", {})
    figures: dict[str, Any] = {"levels": dict(counts)}
    if result.worst is not None:
        figures |= {"worst": result.worst.name, "error": result.worst.error, "limit": result.worst.limit}
    if not result.passed:
        problems = result.findings.problems
        said = problems[0].strip().splitlines()[-1] if problems else str(result.worst)
        raise Wrong(said[:300], figures | {"found": str(result)[-6000:]})
    return figures


def _fp32_adapters(setting: Setting, ways: dict[str, int] | None = None) -> dict[str, Any]:
    """PEFT's default mixture without autocast: every adapter casts its input."""
    model, inputs = _made("llama", setting.device, (), ())
    case = Case(model, inputs, functools.partial(patchkit.apply, trust="always"))
    with _choosing(setting, ways):
        findings = precision_findings(case, torch.bfloat16, trainable_dtype=torch.float32)
    worst = findings.worst
    figures = {"worst": worst.name, "error": worst.error, "limit": worst.limit} if worst else {}
    if not findings.passed:
        raise Wrong("; ".join(findings.problems) or str(worst), figures)
    return figures


def _loss(setting: Setting, name: str, model: str) -> dict[str, Any]:
    host = tiny_model(model)
    inputs = tiny_inputs(model, host)
    adapted = add_lora(host, target_modules=[*TEXT_PROJECTIONS, "lm_head"])
    placed, moved = on_device(LossAlone(adapted), inputs, setting.device)
    patch = functools.partial(patchkit.apply, loss=True, trust="always")
    with mock.patch.object(cross_entropy, "chunk_of", return_value=_TOKENS_AT_ONCE):
        return figures_of(CHECKS[name](placed, moved, patch, revert=patchkit.revert))


def _nf4(setting: Setting) -> dict[str, Any]:
    """A base of 4-bit weights, loaded as users load it, on the device; patched in a copy."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise NotRun("bitsandbytes is not installed")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    stored = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        tiny_model("llama").save_pretrained(folder)
        plain, patched = (
            add_lora(
                AutoModelForCausalLM.from_pretrained(
                    folder, quantization_config=stored, dtype=torch.float32, device_map={"": setting.device}
                )
            ).train()
            for _ in range(2)
        )
    report = patchkit.apply(patched)
    inputs = tiny_inputs("llama", plain)
    findings = compare_runs(run(plain, inputs, input_gradients=True), run(patched, inputs, input_gradients=True))
    worst = findings.worst
    figures: dict[str, Any] = {"levels": dict(report.counts)}
    figures |= {"worst": worst.name, "error": worst.error, "limit": worst.limit} if worst else {}
    if not findings.passed:
        raise Wrong("; ".join(findings.problems) or str(worst), figures)
    return figures
