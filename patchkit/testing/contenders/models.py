"""The model of a cell: a stack of decoder layers of its shape, random, with adapters or without."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from patchkit.testing.contenders.cell import Cell
from patchkit.testing.contenders.not_run import NotRunError
from patchkit.testing.lora import TEXT_PROJECTIONS
from patchkit.testing.random_state import seeded
from patchkit.testing.tiny_models import generator_for


def build_model(cell: Cell, *, adapters: bool, device: str | None = None) -> nn.Module:
    """A text model without a head, in training, frozen but for its adapters. Weights depend on their names alone.

    Args:
        cell: see :class:`~patchkit.testing.contenders.cell.Cell`.
        adapters: whether it gets any: the floor has none.
        device: another than the cell's; ``meta`` makes no weights.

    Raises:
        NotRunError: bitsandbytes is asked for and not installed, or transformers does not know the model.
    """
    device = device or cell.device
    values = {**cell.sizes, "num_hidden_layers": max(cell.layers, 1), "vocab_size": 8, "pad_token_id": 0}
    config_class = getattr(transformers, cell.config_class, None)
    if config_class is None:
        raise NotRunError(f"transformers {transformers.__version__} has no {cell.config_class}")
    config = config_class(**values)
    config._attn_implementation = "sdpa"
    dtype, before = cell.dtypes.base, torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device), seeded(0):
            model: nn.Module = transformers.AutoModel.from_config(config)
    finally:
        torch.set_default_dtype(before)
    model.requires_grad_(False)
    if device != "meta":
        _fill(model)
    if cell.nf4:
        _store_in_4_bits(model, cell)
    if adapters:
        model = _adapted(model, cell)
        if device != "meta":
            _fill_adapters(model)
    return model.train()


def _adapted(model: nn.Module, cell: Cell) -> nn.Module:
    options: dict[str, Any] = {"r": cell.rank, "lora_alpha": 2 * cell.rank, "lora_dropout": cell.dropout}
    config = LoraConfig(target_modules=list(TEXT_PROJECTIONS), use_dora=cell.dora, init_lora_weights=False, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: nn.Module = get_peft_model(model, config)
    for name, parameter in found.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(cell.dtypes.lora)
    return found


@torch.no_grad()
def _fill(model: nn.Module) -> None:
    """Matrices of variance 1 / in; what is no matrix stays: norms at one, biases at nothing."""
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.copy_(_noise(parameter, name) * parameter.shape[1] ** -0.5)


@torch.no_grad()
def _fill_adapters(model: nn.Module) -> None:
    """A of variance 1 / in and B of variance 1 / (16 r), so that an adapter adds half of what its layer gives."""
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.copy_(_noise(parameter, name) * parameter.shape[1] ** -0.5)
        elif "lora_B" in name:
            parameter.copy_(_noise(parameter, name) * (parameter.shape[1] * 16) ** -0.5)


def _noise(parameter: Tensor, name: str) -> Tensor:
    """Normal numbers; on an accelerator its own, since those of the host would take seconds a layer."""
    generator = generator_for(name, 0)
    if parameter.device.type != "cpu":
        generator = torch.Generator(parameter.device).manual_seed(generator.initial_seed())
    noise = torch.randn(parameter.shape, generator=generator, device=parameter.device)
    return noise.to(parameter.dtype)


def _store_in_4_bits(model: nn.Module, cell: Cell) -> None:
    try:
        import bitsandbytes.nn as bnb
    except Exception as error:  # it looks for libraries while it is imported
        raise NotRunError(f"bitsandbytes cannot be imported ({type(error).__name__}: {error})") from error
    nn4: Any = bnb
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and name in TEXT_PROJECTIONS:
                layer = nn4.Linear4bit(
                    child.in_features,
                    child.out_features,
                    bias=child.bias is not None,
                    compute_dtype=cell.dtypes.base,
                    quant_type="nf4",
                )
                layer.weight = nn4.Params4bit(child.weight.data.cpu(), requires_grad=False, quant_type="nf4")
                if child.bias is not None:
                    layer.bias = child.bias
                setattr(parent, name, layer.to(cell.device))
    model.is_loaded_in_4bit = True  # type: ignore[assignment]  # PEFT asks for it
