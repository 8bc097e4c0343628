"""Models with adapters made of a configuration alone, on the ``meta`` device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

from patchkit.errors import EstimateError
from patchkit.estimation.shapes import OTHER_NAMES, SHAPES


class Adapters(NamedTuple):
    """The adapters that a model gets.

    Attributes:
        rank: r.
        targets: names of layers, or ``all-linear``.
        dropout: the probability.
    """

    rank: int = 16
    targets: str | Sequence[str] = "all-linear"
    dropout: float = 0.0


def configuration_of(name: str | Path) -> Any:
    """The configuration of a shape of :mod:`patchkit.estimation.shapes`, a folder or file, or a name on the hub.

    Raises:
        EstimateError: there is none.
    """
    shape = OTHER_NAMES.get(str(name), str(name))
    if shape in SHAPES:
        config_class, values = SHAPES[shape]
        return getattr(transformers, config_class)(**values)
    try:
        return transformers.AutoConfig.from_pretrained(str(name))
    except Exception as error:
        raise EstimateError(
            f"no configuration is found at {str(name)!r} ({type(error).__name__}: {error}). Give a folder with a "
            f"config.json, that file, a name on the hub, or one of these shapes: {', '.join(SHAPES)}."
        ) from error


def model_of(config: Any, dtype: torch.dtype, adapters: Adapters, *, attention: str = "sdpa") -> PeftModel:
    """A causal language model with LoRA adapters on ``meta``, as PEFT makes it of a model in this dtype.

    Args:
        config: of transformers; changed.
        dtype: of the base. PEFT keeps adapters in float32 over half precision.
        adapters: which it gets.
        attention: an implementation of transformers.

    Raises:
        EstimateError: there is no such model, or no such adapters.
    """
    text = getattr(config, "get_text_config", lambda: config)()
    # Packages for flash attention are not needed to count what they keep, so nothing is asked to load them.
    flash = attention not in ("sdpa", "eager")
    try:
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation="sdpa" if flash else attention
            )
            found = get_peft_model(
                model,
                LoraConfig(
                    r=adapters.rank,
                    lora_alpha=2 * adapters.rank,
                    lora_dropout=adapters.dropout,
                    target_modules=adapters.targets if isinstance(adapters.targets, str) else list(adapters.targets),
                    task_type="CAUSAL_LM",
                ),
            )
    except Exception as error:
        raise EstimateError(
            f"no model with adapters can be made of a {type(config).__name__} ({type(error).__name__}: {error})"
        ) from error
    if flash:
        for one in (model.config, text):
            vars(one)["_attn_implementation_internal"] = attention
    return found
