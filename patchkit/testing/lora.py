"""LoRA adapters that contribute: PEFT starts B at zero, and what is zero cannot be wrong."""

from __future__ import annotations

from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from patchkit.testing.random_state import seeded
from patchkit.testing.tiny_models import generator_for

TEXT_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The seven projections of a decoder layer."""

# PEFT matches the whole module path. Vision towers use some of these names too (CLIP q_proj, all of Pixtral's).
_TEXT_TOWER_ONLY = rf"(?!.*(?:vision|visual)).*\.(?:{'|'.join(TEXT_PROJECTIONS)})"

# Root mean square of an adapter's output relative to that of its base layer, for inputs of order 1.
_CONTRIBUTION = 0.5


def add_lora(model: PreTrainedModel, *, seed: int = 0, **lora_config: Any) -> PeftModel:
    """Wrap the model with LoRA adapters whose contribution is half of the base layer's.

    Args:
        model: changed in place, as ``get_peft_model`` does. Global random state is left as it was.
        seed: the adapter weights depend on this and on the parameters' names only.
        lora_config: any field of :class:`peft.LoraConfig`. Defaults: ``r=4``, ``lora_alpha=8``, no dropout,
            ``task_type="CAUSAL_LM"`` and, as ``target_modules``, :data:`TEXT_PROJECTIONS` of the text tower only. Name
            targets yourself (``"all-linear"``, ``["q_proj"]``) to reach a vision tower.

    Returns:
        The PEFT model, in the same mode and with adapter weights on the same device as the base layers.
    """
    config: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": _TEXT_TOWER_ONLY,
        "task_type": "CAUSAL_LM",
        "init_lora_weights": False,
    }
    training = model.training
    with seeded(seed):
        peft_model: PeftModel = get_peft_model(model, LoraConfig(**config | lora_config))
    randomise_adapter(peft_model, seed=seed)
    return peft_model.train(training)


@torch.no_grad()
def randomise_adapter(model: nn.Module, adapter: str = "default", *, seed: int = 0) -> None:
    """Draw the weights of one adapter anew, such that it contributes.

    A is [r, in] with entries of variance 1/in, so that A x is of order 1; B is [out, r] with entries such that
    scaling · B A x is about half of what the base layer gives. A bias of B gets entries of order 0.3; a DoRA magnitude
    moves by a tenth.
    """
    for layer_name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer) or adapter not in layer.r:
            continue
        rank, scaling = layer.r[adapter], layer.scaling[adapter]
        for name, parameter in layer.named_parameters():
            if adapter not in name.split("."):
                continue
            noise = torch.randn(parameter.shape, generator=generator_for(f"{layer_name}.{name}", seed))
            noise = noise.to(parameter.device, parameter.dtype)
            if name.startswith("lora_magnitude_vector"):
                parameter.mul_(1 + 0.1 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            elif name.startswith("lora_A"):
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            elif name.startswith("lora_embedding_A"):
                parameter.copy_(noise)
            elif name.startswith(("lora_B", "lora_embedding_B")):
                parameter.copy_(noise * _CONTRIBUTION / (scaling * rank**0.5))
