"""Low precision: our rounding error may be at most 1.1 times upstream's own.

The criterion is that of :mod:`patchkit.testing.rounding`; here it is applied to whole models. The truth is the same
model, with the same already rounded weights, run in float64. (Upstream casts to float32 inside norms, rope and the
loss, so that truth is good to about 1e-7, far below the rounding of 16-bit floats.)

* A draw multiplies every parameter by 1 + 0.1 · noise: a change by many units in the last place, so each rounding falls
  anew, at a model of the same kind.
* Two totals are held to the limit as they are: the logits, and all gradients as one vector (what an optimizer step
  sees). Over 8 draws their ratio is known to two or three percent: one needless rounding of each projection's output,
  which makes about 1.12, is seen in most models.
* The parts are *kinds* of gradient: a parameter's name without its layer numbers, "dA of q_proj".
* The loss is not judged: 8 numbers give no ratio (between equals, one in fifty is beyond 2). It is upstream's function
  of the logits, which are.

Dropout draws differ between dtypes, so a model with dropout is measured in eval mode.
"""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from patchkit.testing.checks.base import Case, InapplicableError, cast_inputs, cast_parameters, check, run_upstream
from patchkit.testing.parity import LOW_PRECISION_RATIO, Findings, Inputs, Measurement, Run, compare_types, run
from patchkit.testing.rounding import Result, RoundingErrors

_DRAWS = 8
_PERTURBATION = 0.1

# Gradients of a mean over tokens fall below float16's normal numbers; a GradScaler is how float16 is trained.
_FLOAT16_LOSS_SCALE = 2.0**8

LOGITS = "logits"
GRADIENTS = "all gradients"
TOTALS = (LOGITS, GRADIENTS)
"""The measurements that are sums over everything; the others are of one kind of gradient."""


class ErrorTally:
    """The errors of runs of whole models, one entry per draw."""

    def __init__(self) -> None:
        self.errors = RoundingErrors()

    def add(self, truth: Run, upstream: Run, candidate: Run) -> None:
        """Add one draw: runs of the same weights and inputs, ``truth`` in float64 (or float32)."""
        for name, tensors in _named_groups(truth).items():
            results = (Result(tensor, _lookup(upstream, key), _lookup(candidate, key)) for key, tensor in tensors)
            self.errors.add_draw(name, results)

    def measurements(self, limit: float = LOW_PRECISION_RATIO) -> tuple[Measurement, ...]:
        """The ratio of each name, held to ``limit`` as the top of this file says."""
        return self.errors.measurements(limit, TOTALS)


@check("bfloat16", "rounding error in bfloat16 against upstream's own")
def bfloat16(case: Case) -> Findings:
    """Weights and activations in bfloat16."""
    return precision_findings(case, torch.bfloat16)


@check("float16", "rounding error in float16 against upstream's own, with a scaled loss")
def float16(case: Case) -> Findings:
    """Weights and activations in float16."""
    return precision_findings(case, torch.float16, loss_scale=_FLOAT16_LOSS_SCALE)


@check("autocast", "rounding error of float32 weights under bfloat16 autocast against upstream's own")
def autocast(case: Case) -> Findings:
    """Mixed precision as the Trainer's ``bf16=True`` does it."""
    return precision_findings(case, torch.float32, autocast_dtype=torch.bfloat16)


@check("autocast_bfloat16_base", "the same with a bfloat16 base and float32 adapters, the usual LoRA mixture")
def autocast_bfloat16_base(case: Case) -> Findings:
    """PEFT keeps adapters in float32 on a bfloat16 base by default."""
    return precision_findings(case, torch.bfloat16, autocast_dtype=torch.bfloat16, trainable_dtype=torch.float32)


def precision_findings(
    case: Case,
    dtype: torch.dtype,
    *,
    autocast_dtype: torch.dtype | None = None,
    trainable_dtype: torch.dtype | None = None,
    loss_scale: float = 1.0,
) -> Findings:
    """Both errors against float64, over draws of the weights.

    Args:
        case: the model and its patch.
        dtype: of the weights and floating inputs.
        autocast_dtype: the forward runs under autocast with it; None for no autocast.
        trainable_dtype: of what is trained, if it is another one.
        loss_scale: see :func:`patchkit.testing.run`.

    Raises:
        InapplicableError: upstream fails, or overflows.
    """
    tally, types = ErrorTally(), Findings()
    inputs = cast_inputs(case.inputs, dtype)
    drops = _has_dropout(case.model)
    for draw in range(_DRAWS):
        model = _perturbed(case.unpatched(), draw).train(not drops)
        rounded = cast_parameters(model, dtype)
        if trainable_dtype is not None:
            _cast_trainable(rounded, trainable_dtype)
        # From here on nothing is rounded but by computation: all three start from the same values.
        truth = _truth(rounded, inputs, loss_scale)
        upstream = run_upstream(copy.deepcopy(rounded), inputs, autocast=autocast_dtype, loss_scale=loss_scale)
        if not _finite(upstream):
            raise InapplicableError("upstream itself overflows in this dtype")
        candidate = run(case.patched(rounded), inputs, autocast=autocast_dtype, loss_scale=loss_scale)
        types += compare_types(upstream, candidate, stage=f"draw {draw}")
        if candidate.gradients.keys() != upstream.gradients.keys():
            differing = sorted(candidate.gradients.keys() ^ upstream.gradients.keys())
            return types + Findings(problems=(f"gradients on one side only: {', '.join(differing)}",))
        tally.add(truth, upstream, candidate)
    return types + Findings(tally.measurements())


def _perturbed(model: nn.Module, draw: int) -> nn.Module:
    generator = torch.Generator().manual_seed(draw)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
                parameter.copy_(parameter * (1 + _PERTURBATION * noise))
    return model


def _cast_trainable(model: nn.Module, dtype: torch.dtype) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def _has_dropout(model: nn.Module) -> bool:
    config: Any = getattr(model, "config", None)
    text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
    attention = getattr(text_config, "attention_dropout", 0.0) or 0.0
    return attention > 0 or any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())


def _truth(model: nn.Module, inputs: Inputs, loss_scale: float) -> Run:
    # Eager attention masks with float64's lowest number and then takes a float32 softmax: NaN where a row sees nothing
    # but padding. There float32 has to do; its error is far below that of 16 bits too.
    for dtype in (torch.float64, torch.float32):
        exact = cast_parameters(copy.deepcopy(model), dtype)
        truth = run_upstream(exact, cast_inputs(inputs, dtype), loss_scale=loss_scale)
        if _finite(truth):
            return truth
    raise InapplicableError("upstream gives no finite result even in float32")


def _finite(found: Run) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in (*found.outputs.values(), *found.gradients.values()))


def _named_groups(truth: Run) -> Mapping[str, list[tuple[str, Tensor]]]:
    groups: dict[str, list[tuple[str, Tensor]]] = defaultdict(list)
    groups[LOGITS].append((LOGITS, truth.outputs[LOGITS]))
    for key, tensor in truth.gradients.items():
        groups[GRADIENTS].append((key, tensor))
        groups["gradient of " + re.sub(r"(?<=\.)\d+(?=\.)", "*", key)].append((key, tensor))
    return groups


def _lookup(found: Run, key: str) -> Tensor:
    return found.outputs[key] if key in found.outputs else found.gradients[key]
