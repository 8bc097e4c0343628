"""The parity contract of PEFT's layers: small models with each kind of adapter, patched against plain, by reader.

This runs in worker processes of an environment that has the PEFT in question, and nowhere else. Every PEFT is read
there: what is to be proven cannot be asked for its proof. Models are in float64 where their layers allow it, so that
formulas are compared and not their rounding.
"""

from __future__ import annotations

import copy
import functools
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from patchkit.check.numeric.reader_outcomes import CaseOutcome, ReaderOutcome

if TYPE_CHECKING:
    from torch import nn

    from patchkit.testing import Findings, Inputs
    from patchkit.testing.checks import Scenario

_EXACT = 1e-9
"""Relative, in float64: far above its rounding, far below any other formula."""

_USUAL = ("forward_backward", "eval", "no_grad")
_LIFE = ("disable_adapter", "merge_adapter", "adapter_switching")
_EXPERTS = {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}


@dataclass(frozen=True)
class ContractCase:
    """One kind of adapter that a reader reads.

    Attributes:
        name: for people.
        lora: of the configuration, beside :func:`patchkit.testing.add_lora`'s.
        checks: scenarios of :data:`patchkit.testing.CHECKS`.
        model: a tiny model, a model type, or how the weights of a llama are stored.
        single: whether it stays in float32.
        adapters: the dtype of the adapters, where it is not that of the model.
    """

    name: str
    lora: Mapping[str, Any] = field(default_factory=dict)
    checks: tuple[str, ...] = _USUAL
    model: str = "llama"
    single: bool = False
    adapters: str = ""


_TABLE = {"target_modules": ["embed_tokens"]}
CASES: Mapping[str, tuple[ContractCase, ...]] = {
    "Linear": (
        ContractCase("LoRA", checks=_USUAL + _LIFE),
        ContractCase("LoRA with dropout", {"lora_dropout": 0.3}),
        ContractCase("LoRA with biases, rsLoRA", {"lora_bias": True, "use_rslora": True}),
        ContractCase("LoRA in float64 over a float32 base", single=True, adapters="float64"),
    ),
    "Linear, DoRA": (
        ContractCase("DoRA", {"use_dora": True}, checks=_USUAL + _LIFE),
        ContractCase("DoRA with dropout", {"use_dora": True, "lora_dropout": 0.3}),
    ),
    "Embedding": (
        ContractCase("LoRA", _TABLE, checks=_USUAL + _LIFE),
        ContractCase("LoRA, scaled embedding", _TABLE, model="gemma3"),
    ),
    "Embedding, DoRA": (
        ContractCase("DoRA", _TABLE | {"use_dora": True}),
        ContractCase("DoRA, scaled embedding", _TABLE | {"use_dora": True}, model="gemma3"),
    ),
    "ParamWrapper": (ContractCase("experts", _EXPERTS, checks=(*_USUAL, "disable_adapter"), model="mixtral"),),
    "ModulesToSaveWrapper": (
        ContractCase(
            "beside LoRA",
            {"target_modules": ["q_proj", "v_proj", "gate_proj", "up_proj"], "modules_to_save": ["k_proj"]},
            checks=(*_USUAL, "disable_adapter"),
        ),
    ),
    "Linear4bit": (
        ContractCase("LoRA", checks=("forward_backward",), model="4 bits", single=True),
        ContractCase("LoRA with dropout", {"lora_dropout": 0.3}, ("forward_backward",), "4 bits", single=True),
    ),
    "Linear8bitLt": (
        ContractCase("LoRA", checks=("forward_backward",), model="8 bits", single=True),
        ContractCase("LoRA with dropout", {"lora_dropout": 0.3}, ("forward_backward",), "8 bits", single=True),
    ),
}
"""What is run of each reader of :data:`patchkit.adapters.peft_sources.READERS`."""


def answer(request: bytes) -> bytes:
    """What a worker is asked, a reader's name as JSON, and its :class:`ReaderOutcome`."""
    from patchkit.adapters.peft_known import assume_known

    assume_known()
    return check_reader(json.loads(request)["reader"]).to_json().encode()


def check_reader(reader: str) -> ReaderOutcome:
    """Run the contract of one reader, with the PEFT that is imported."""
    from patchkit.adapters.peft_sources import digest_of, pieces_of, sources_of
    from patchkit.check.numeric.proving import versions
    from patchkit.upstream.release import installed_release
    from patchkit.upstream.wheels import PEFT

    logging.disable(logging.WARNING)  # bitsandbytes tells of each product of eight bits
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = tuple(check_case(case) for case in CASES[reader])
    source = digest_of(sources_of(pieces_of(installed_release(PEFT).read, reader)))
    return ReaderOutcome(reader, source, versions(), cases)


def check_case(case: ContractCase) -> CaseOutcome:
    """Run one case; what fails in any way is a failed case, with the reason."""
    import torch

    import patchkit
    from patchkit.testing import FP32_TOLERANCE, add_lora, fused_calls, run

    try:
        base, make_inputs = _MODELS.get(case.model, _tiny)(case.model)
        model = add_lora(base, **case.lora).train()
        if not case.single:
            model = _exact(model)
        for name, parameter in model.named_parameters():
            if case.adapters and "lora_" in name:
                parameter.data = parameter.data.to(getattr(torch, case.adapters))
        inputs = make_inputs(model)
        run(copy.deepcopy(model), inputs)
    except Exception as error:  # upstream's own: a release may lack what is asked for
        return CaseOutcome(case.name, "inapplicable", {}, f"PEFT itself cannot do it: {_short(error)}")
    try:
        patched = copy.deepcopy(model)
        report = patchkit.apply(patched, trust="always")
        with fused_calls() as calls:
            run(patched, inputs)
        if report.left or not calls:
            why = report.left[0].reason if report.left else "no fused function was called"
            return CaseOutcome(case.name, "inapplicable", {}, f"it runs at upstream level: {why}")
        errors = {}
        for check in case.checks:
            found = _played(check, model, inputs, FP32_TOLERANCE if case.single else _EXACT)
            errors[check] = float(f"{found.worst.error:.2g}") if found.worst is not None else 0.0
            if not found.passed:
                said = found.problems[0].splitlines()[-1] if found.problems else str(found.worst)
                return CaseOutcome(case.name, "failed", errors, f"{check}: {said}")
        return CaseOutcome(case.name, "passed", errors)
    except Exception as error:
        return CaseOutcome(case.name, "failed", {}, _short(error))


def _played(check: str, model: nn.Module, inputs: Inputs, tolerance: float) -> Findings:
    """One scenario, upstream's and ours, compared run by run, in the dtypes that the model has."""
    import patchkit
    from patchkit.testing import Findings, compare_runs

    play, found = _scenarios()[check], Findings()
    patched = copy.deepcopy(model)
    patchkit.apply(patched, trust="always")
    for (stage, expected), (_, ours) in zip(
        list(play(copy.deepcopy(model), inputs)), list(play(patched, inputs)), strict=True
    ):
        found += compare_runs(expected, ours, tolerance, stage=stage)
    return found


def _scenarios() -> dict[str, Scenario]:
    from patchkit.testing.checks import adapters, training

    return {
        "forward_backward": training.forward_backward,
        "eval": training.evaluation,
        "no_grad": training.no_grad,
        "disable_adapter": adapters.disable_adapter,
        "merge_adapter": adapters.merge_adapter,
        "adapter_switching": adapters.adapter_switching,
    }


def _short(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


# ---- models


def _exact(model: Any) -> Any:
    """The model in float64. Norms that compute in float32 give way to torch's, which do not: patchkit reads none."""
    import torch

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                module.register_module(name, torch.nn.RMSNorm(child.weight.shape, eps=1e-6))
    return model.double()


def _tiny(name: str) -> tuple[Any, Callable[[Any], Inputs]]:
    from patchkit.testing import tiny_inputs, tiny_model

    return tiny_model(name), functools.partial(tiny_inputs, name)


def _of_type(name: str) -> tuple[Any, Callable[[Any], Inputs]]:
    from patchkit.testing import tiny_inputs_for, tiny_model_from

    model = tiny_model_from(name)
    if hasattr(model.config, "_experts_implementation"):
        model.set_experts_implementation("eager")  # grouped products take no float64
    return model, tiny_inputs_for


def _quantised(name: str) -> tuple[Any, Callable[[Any], Inputs]]:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from patchkit.testing import tiny_inputs, tiny_model

    stored: dict[str, Any] = {"load_in_8bit": True}
    if name == "4 bits":
        stored = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
    with tempfile.TemporaryDirectory() as folder:
        tiny_model("llama").save_pretrained(folder)
        options: dict[str, Any] = {"quantization_config": BitsAndBytesConfig(**stored), "device_map": "cpu"}
        model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32, **options)
    return model, functools.partial(tiny_inputs, "llama")


_MODELS: Mapping[str, Callable[[str], tuple[Any, Callable[[Any], Inputs]]]] = {
    "mixtral": _of_type,
    "4 bits": _quantised,
    "8 bits": _quantised,
}
