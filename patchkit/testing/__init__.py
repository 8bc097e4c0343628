"""Public test kit: tiny models of every architecture, the parity contract as checks, and exact counts of cost.

    model = add_lora(tiny_model("gemma3"))
    for result in run_checks(model, tiny_inputs("gemma3", model)):
        assert result.status != "failed", result  # it may be "inapplicable": the unpatched model cannot do it

A plugin's test needs one call, ``verify_architecture("acme")``.
"""

from patchkit.testing.checks import CHECKS, Case, Check, CheckResult, Patcher, Reverter, check, run_checks, scenario
from patchkit.testing.devices import on_device, usable_device
from patchkit.testing.fused_calls import FUSED_FUNCTIONS, fused_calls
from patchkit.testing.lora import TEXT_PROJECTIONS, add_lora, randomise_adapter
from patchkit.testing.measure import Cost, OpCount, count_flops, count_ops, measure_step, saved_bytes
from patchkit.testing.parity import (
    CURVE_TOLERANCE,
    FP32_TOLERANCE,
    LOW_PRECISION_RATIO,
    Findings,
    Inputs,
    Measurement,
    Run,
    compare_runs,
    identical_runs,
    relative_error,
    run,
)
from patchkit.testing.rounding import Result, RoundingErrors, rounding_floor
from patchkit.testing.tiny.factory import tiny_model_from
from patchkit.testing.tiny.inputs import tiny_inputs_for
from patchkit.testing.tiny_inputs import Padding, tiny_inputs
from patchkit.testing.tiny_models import MULTIMODAL_MODELS, TEXT_MODELS, TINY_MODELS, tiny_model, tiny_models_of
from patchkit.testing.verification import verify_architecture

__all__ = [
    "CHECKS",
    "CURVE_TOLERANCE",
    "FP32_TOLERANCE",
    "FUSED_FUNCTIONS",
    "LOW_PRECISION_RATIO",
    "MULTIMODAL_MODELS",
    "TEXT_MODELS",
    "TEXT_PROJECTIONS",
    "TINY_MODELS",
    "Case",
    "Check",
    "CheckResult",
    "Cost",
    "Findings",
    "Inputs",
    "Measurement",
    "OpCount",
    "Padding",
    "Patcher",
    "Result",
    "Reverter",
    "RoundingErrors",
    "Run",
    "add_lora",
    "check",
    "compare_runs",
    "count_flops",
    "count_ops",
    "fused_calls",
    "identical_runs",
    "measure_step",
    "on_device",
    "randomise_adapter",
    "relative_error",
    "rounding_floor",
    "run",
    "run_checks",
    "saved_bytes",
    "scenario",
    "tiny_inputs",
    "tiny_inputs_for",
    "tiny_model",
    "tiny_model_from",
    "tiny_models_of",
    "usable_device",
    "verify_architecture",
]
