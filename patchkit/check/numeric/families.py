"""One model of each family of transformers, patched against plain PEFT: what it keeps, and how it rounds."""

from __future__ import annotations

import contextlib
import copy
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from patchkit.testing import Cost, Inputs


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        model_type: the one that stands for it.
        head: see :data:`patchkit.testing.tiny.heads.HEADS`; None for the first that the type has.
        shows: what is particular to its linear layers.
    """

    model_type: str
    head: str | None
    shows: str


FAMILIES = (
    Family("qwen3", "causal", "separate q, k, v; gated MLP"),
    Family("phi3", "causal", "one projection for q, k and v, one for gate and up"),
    Family("gpt2", "causal", "Conv1D; ungated MLP"),
    Family("phi", "causal", "separate q, k, v; ungated MLP"),
    Family("opt", "causal", "ungated MLP (ReLU), inline in a layer"),
    Family("falcon", "causal", "layers of a class of its own"),
    Family("deepseek_v3", "causal", "latent attention, experts"),
    Family("mixtral", "causal", "experts, routers"),
    Family("gpt_oss", "causal", "experts with biases and an activation of their own"),
    Family("qwen3_next", "causal", "linear attention, experts"),
    Family("mamba2", "causal", "state space"),
    Family("bert", "encoder", "layers over several classes"),
    Family("bart", "seq2seq", "cross-attention; ungated MLP with dropout, inline"),
    Family("t5", "seq2seq", "cross-attention; MLP with dropout and a cast"),
    Family("whisper", None, "speech"),
    Family("wav2vec2", None, "audio"),
    Family("vit", None, "images"),
    Family("mllama", "image-text", "images and text, cross-attention"),
)

RANK, ALPHA, BATCH, LENGTH = 8, 11, 2, 64
LARGER = {"hidden_size": 256, "d_model": 256, "n_embd": 256, "word_embed_proj_dim": 256}
"""Widths for the comparison, of those that a configuration has: a rank is small beside them."""

PRECISION_CHECK = "autocast_bfloat16_base"


@dataclass(frozen=True)
class FamilyComparison:
    """A model of a family, patched against plain PEFT, with LoRA on every linear layer that PEFT takes.

    Attributes:
        family: which one.
        whole: adapted layers that run fused in a block.
        alone: adapted layers that run fused by themselves.
        left: adapted layers that run upstream.
        single: cost of one forward and backward in float32, plain and patched.
        mixed: the same with a bfloat16 base and float32 adapters, which is how PEFT loads them.
        rounding: our error in bfloat16 against float64, relative to upstream's: of the logits, and of all gradients;
            None where upstream cannot be run so.
    """

    family: Family
    whole: int
    alone: int
    left: int
    single: tuple[Cost, Cost]
    mixed: tuple[Cost, Cost] | None
    rounding: tuple[float, float] | None


def compare_family(family: Family) -> FamilyComparison:
    """Build a small model of a family, put adapters on it, patch a copy, and compare.

    Raises:
        TinyModelError: there is no tiny model of it.
    """
    import torch

    import patchkit
    from patchkit.check.numeric.model_types import counted_layers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is left upstream is counted
        model, inputs = _adapted(family, LENGTH, **LARGER)
        single = _costs(model, inputs)
        mixed = None
        with contextlib.suppress(RuntimeError):  # upstream itself may mix dtypes that do not go together
            mixed = _costs(_in_bfloat16(model), _cast(inputs, torch.bfloat16))
        patched = copy.deepcopy(model)
        counts = counted_layers(patched, patchkit.apply(patched, trust="always"))
        rounding = _rounding(*_adapted(family, 12))
    return FamilyComparison(family, counts["whole"], counts["alone"], counts["left"], single, mixed, rounding)


def _adapted(family: Family, length: int, **sizes: int) -> tuple[nn.Module, Inputs]:
    """The model with adapters, with a loss, and its inputs. Sizes that do not go together are left as they were."""
    from patchkit.check.numeric.adapting import adapted
    from patchkit.check.numeric.tiny_instances import WithoutCache
    from patchkit.errors import TinyModelError
    from patchkit.testing import tiny_inputs_for, tiny_model_from

    tiny = tiny_model_from(family.model_type, head=family.head)
    wanted: dict[str, Any] = {name: size for name, size in sizes.items() if hasattr(tiny.config, name)}
    with contextlib.suppress(TinyModelError):
        tiny = tiny_model_from(family.model_type, head=family.head, **wanted)
    inputs = tiny_inputs_for(tiny, batch=BATCH, length=length)
    return WithoutCache(adapted(tiny, inputs, r=RANK, lora_alpha=ALPHA).model), inputs


def _costs(model: nn.Module, inputs: Inputs) -> tuple[Cost, Cost]:
    import patchkit
    from patchkit.testing import measure_step

    patched = copy.deepcopy(model)
    patchkit.apply(patched, trust="always")
    return measure_step(copy.deepcopy(model), inputs), measure_step(patched, inputs)


def _in_bfloat16(model: nn.Module) -> nn.Module:
    import torch

    model = copy.deepcopy(model)
    for parameter in model.parameters():
        if not parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.bfloat16)
    return model


def _cast(inputs: Inputs, dtype: Any) -> dict[str, Any]:
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}


def _rounding(model: nn.Module, inputs: Inputs) -> tuple[float, float] | None:
    import patchkit
    from patchkit.check.numeric.arbiter import use_eager_experts
    from patchkit.testing import run_checks
    from patchkit.testing.checks.precision import GRADIENTS, LOGITS

    use_eager_experts(model)  # the truth is float64

    def patch(model: nn.Module) -> object:
        return patchkit.apply(model, trust="always")

    (result,) = run_checks(model, inputs, patch, names=[PRECISION_CHECK])
    found = {one.name: one.error for one in result.findings.measurements}
    return (found[LOGITS], found[GRADIENTS]) if LOGITS in found and GRADIENTS in found else None
