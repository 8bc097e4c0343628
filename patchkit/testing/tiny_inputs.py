"""Inputs for the tiny models: tokens, labels, and images whose tokens stand where each architecture wants them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from patchkit.testing.parity import IGNORED_LABEL
from patchkit.testing.tiny_models import (
    IMAGE_TOKEN,
    MULTIMODAL_MODELS,
    PAD_TOKEN,
    TINY_MODELS,
    VIDEO_TOKEN,
    VISION_END_TOKEN,
    VISION_START_TOKEN,
)

Padding = Literal["none", "left", "right"]

_FIRST_TEXT_TOKEN = 3  # 0 to 2 are padding, begin and end of sequence
_TEXT_BEFORE_IMAGE = 2


@dataclass(frozen=True)
class _Images:
    """One image per row.

    Attributes:
        tokens: how many image tokens each row holds.
        model_inputs: what the model's ``forward`` takes: ``pixel_values`` and, where sizes may differ, these.
    """

    tokens: Sequence[int]
    model_inputs: dict[str, Tensor] = field(default_factory=dict)


def tiny_inputs(
    name: str,
    model: nn.Module,
    *,
    batch: int = 2,
    length: int = 12,
    seed: int = 1,
    padding: Padding = "none",
    images: bool = True,
) -> dict[str, Tensor]:
    """Keyword arguments for the model's ``forward``, on its device.

    Always ``input_ids``, ``attention_mask`` and ``labels`` (int64, [batch, seq]); for a multimodal model also
    ``pixel_values`` (in the parameters' dtype, entries of order 1) and what its architecture wants beside them. ``seq``
    is ``length`` plus, for a multimodal model, the largest number of image tokens of a row. Padding and image tokens
    have label -100 and image tokens are never padded away.

    Args:
        name: the name the model was made with.
        model: the tiny model, or a PEFT model around it; read for device, dtype and signature.
        batch: rows; each multimodal row has one image.
        length: text tokens of a row, at least 8. Where images differ in size, a row with fewer image tokens has more.
        seed: all values depend on this only.
        padding: which side of the rows is padded. Rows 1, 3, ... are then three text tokens shorter.
        images: ``False`` gives a multimodal model text only.

    Raises:
        ValueError: unknown name, or ``length`` below 8.
    """
    if name not in TINY_MODELS:
        raise ValueError(f"unknown tiny model {name!r}; known: {', '.join(TINY_MODELS)}")
    if length < 8:
        raise ValueError(f"length must be at least 8, found {length}")
    generator = torch.Generator().manual_seed(seed)
    accepted = inspect.signature(_base_model(model).forward).parameters
    shown = _Images([0] * batch)
    if images and name in MULTIMODAL_MODELS:
        shown = _images(_base_model(model).config, batch, generator, any_size="image_sizes" in accepted)
    full = length + max(shown.tokens)
    rows = []
    for row, image_tokens in enumerate(shown.tokens):
        missing = 3 if padding != "none" and row % 2 else 0
        rows.append(_row(image_tokens, full - image_tokens - missing, generator))
    inputs = _padded(rows, full, padding)
    input_ids = inputs["input_ids"]
    ignored = (inputs["attention_mask"] == 0) | (input_ids >= VIDEO_TOKEN)
    inputs["labels"] = input_ids.masked_fill(ignored, IGNORED_LABEL)
    if any(shown.tokens):
        is_image = (input_ids == IMAGE_TOKEN).long()
        if name.startswith("paligemma"):
            # 0 marks the prefix, which is attended to in both directions; training needs it told from the suffix.
            inputs["token_type_ids"] = 1 - (is_image.flip(1).cumsum(1).flip(1) > 0).long()
        elif name == "gemma3_mm":
            inputs["token_type_ids"] = is_image
        elif "mm_token_type_ids" in accepted:
            inputs["mm_token_type_ids"] = is_image
        inputs |= shown.model_inputs
    parameter = next(model.parameters())
    return {
        key: value.to(parameter.device, parameter.dtype if value.is_floating_point() else value.dtype)
        for key, value in inputs.items()
    }


def _base_model(model: nn.Module) -> nn.Module:
    unwrap = getattr(model, "get_base_model", None)  # PEFT
    base: nn.Module = unwrap() if callable(unwrap) else model
    return base


def _row(image_tokens: int, text_tokens: int, generator: torch.Generator) -> list[int]:
    text: list[int] = torch.randint(_FIRST_TEXT_TOKEN, VIDEO_TOKEN - 4, (text_tokens,), generator=generator).tolist()
    if not image_tokens:
        return text
    # The two markers stand in place of two text tokens, so that a row's length does not depend on the architecture.
    image = [VISION_START_TOKEN, *[IMAGE_TOKEN] * image_tokens, VISION_END_TOKEN]
    return text[:_TEXT_BEFORE_IMAGE] + image + text[_TEXT_BEFORE_IMAGE + 2 :]


def _padded(rows: Sequence[Sequence[int]], length: int, padding: Padding) -> dict[str, Tensor]:
    input_ids = torch.full((len(rows), length), PAD_TOKEN)
    attention_mask = torch.zeros(len(rows), length, dtype=torch.int64)
    for index, row in enumerate(rows):
        real = slice(length - len(row), length) if padding == "left" else slice(0, len(row))
        input_ids[index, real] = torch.tensor(row)
        attention_mask[index, real] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def _images(config: Any, batch: int, generator: torch.Generator, *, any_size: bool) -> _Images:
    vision = config.vision_config
    model_type: str = config.model_type
    if model_type.startswith("qwen2"):
        return _qwen_images(vision, batch, generator)
    if vision.model_type == "pixtral" and any_size:
        return _pixtral_images(vision, getattr(config, "spatial_merge_size", 1), batch, generator)
    tokens = (vision.image_size // vision.patch_size) ** 2
    if model_type == "gemma3":
        tokens = config.mm_tokens_per_image
    pixels = torch.randn(batch, 3, vision.image_size, vision.image_size, generator=generator)
    return _Images([tokens] * batch, {"pixel_values": pixels})


def _pixtral_images(vision: Any, merge: int, batch: int, generator: torch.Generator) -> _Images:
    """Images of 4 × 6 and of 4 × 4 patches in turn, padded to the larger one."""
    unit = vision.patch_size
    sizes = torch.tensor([(4 * unit, (6 if row % 2 == 0 else 4) * unit) for row in range(batch)])
    height, width = (int(size) for size in sizes.amax(0))
    pixels = torch.randn(batch, 3, height, width, generator=generator)
    tokens = [int(h // unit // merge) * int(w // unit // merge) for h, w in sizes]
    return _Images(tokens, {"pixel_values": pixels, "image_sizes": sizes})


def _qwen_images(vision: Any, batch: int, generator: torch.Generator) -> _Images:
    """Images of 4 × 6 and of 4 × 4 patches in turn; the processor hands over patches, flattened."""
    grid = torch.tensor([(1, 4, 6 if row % 2 == 0 else 4) for row in range(batch)])
    patches = grid.prod(1)
    patch_values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    pixels = torch.randn(int(patches.sum()), patch_values, generator=generator)
    tokens = [int(count) // vision.spatial_merge_size**2 for count in patches]
    return _Images(tokens, {"pixel_values": pixels, "image_grid_thw": grid})
