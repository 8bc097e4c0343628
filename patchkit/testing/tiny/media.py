"""Images and sounds in the forms that models take them, told by the names of the arguments."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from patchkit.testing.tiny.shrinking import sub_configs, tower_of
from patchkit.testing.tiny.sizes import IMAGE, LARGE_IMAGE, PATCH, Tower

Form = dict[str, Tensor]
"""Arguments of a forward that belong together."""


def tower_config(config: Any, tower: Tower) -> Any:
    """The configuration of a tower of a model, or the model's own if the tower is all there is; None without one."""
    found = [(name, inner) for name, inner in _inner(config) if tower_of(name, inner, "text") == tower]
    if found:
        return found[0][1]
    return config if tower_of("", config, "text") == tower else None


def _inner(config: Any) -> Iterator[tuple[str, Any]]:
    for name, inner in sub_configs(config):
        yield name, inner
    for _, inner in sub_configs(config):
        yield from _inner(inner)


_MEL_BINS = ("num_mel_bins", "n_mel_bins", "input_feat_size", "feature_size", "input_feat_per_channel", "mel_bins")


def number(config: Any, *names: str, default: int) -> int:
    """The first of these fields that is a number, or a list that begins with one; else the default."""
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, (list, tuple)) and value:
            value = value[0]
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return default


def image_forms(config: Any, accepted: Mapping[str, Any], batch: int, generator: torch.Generator) -> Iterator[Form]:
    """Images of which the first form that a model takes is right.

    Args:
        config: the model's.
        accepted: the arguments of its forward.
        batch: rows, with one image each.
        generator: pixels are drawn from it, with entries of order 1.
    """
    patches = next((name for name in ("pixel_values", "hidden_states") if name in accepted), "")
    names = {"pixel_values", "flattened_patches", "pixel_values_videos", "grid_thw"}
    if not names & set(accepted):
        return
    vision = tower_config(config, "vision") or config
    channels = number(vision, "num_channels", "in_channels", "in_chans", default=3)
    patch = number(vision, "patch_size", default=PATCH)
    side = number(vision, "image_size", "img_size", "crop_size", default=number(config, "image_size", default=IMAGE))
    frames = number(vision, "temporal_patch_size", "patch_temporal", default=1)
    grid = max(1, side // patch)
    # What many processors hand over beside pixels, for square images of grid x grid patches.
    whole = torch.tensor([[side, side]] * batch)
    beside: Form = {
        "image_sizes": whole,
        "image_attention_mask": torch.ones(batch, grid * grid, dtype=torch.int64),
        "image_merge_sizes": torch.ones(batch, dtype=torch.int64),
        "merge_sizes": torch.ones(batch, dtype=torch.int64),
        "aspect_ratio_ids": torch.ones(batch, 1, dtype=torch.int64),
        "aspect_ratio_mask": torch.ones(batch, 1, 1, dtype=torch.int64),
    }
    beside = {name: value for name, value in beside.items() if name in accepted}

    def pixels(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    flat = channels * patch * patch
    if "flattened_patches" in accepted:  # each after its row and its column, from 1 on
        places = torch.cartesian_prod(torch.arange(1, grid + 1), torch.arange(1, grid + 1)).expand(batch, -1, -1)
        yield {"flattened_patches": torch.cat([places, pixels(batch, grid * grid, flat)], dim=-1)}
    if "pixel_values_videos" in accepted and "pixel_values" not in accepted:
        shown = number(config, "num_frames", "frames_per_clip", default=number(vision, "num_frames", default=4))
        yield {"pixel_values_videos": pixels(batch, shown, channels, side, side)}
    thw = torch.tensor([[1, grid, grid]] * batch)
    for name in ("image_grid_thw", "grid_thw", "image_grid_hws", "image_grid_hw"):
        if name in accepted:
            sizes = thw if name.endswith("thw") else thw[:, 1:]
            merging = {part: value for part, value in beside.items() if part.endswith("merge_sizes")}
            for values in (flat * frames, flat):
                yield merging | {patches: pixels(batch * grid * grid, values), name: sizes}
            yield {patches: pixels(batch * grid * grid, channels, patch, patch), name: sizes}
    if "pixel_values" not in accepted:
        return
    for name in ("image_position_ids", "pixel_position_ids", "pixel_values_position_ids"):
        if name in accepted:
            rows = torch.stack(torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="xy"), -1)
            positions = rows.reshape(1, grid * grid, 2).expand(batch, -1, -1).clone()
            yield {"pixel_values": pixels(batch, grid * grid, flat), name: positions}
    if "spatial_shapes" in accepted:
        yield {
            "pixel_values": pixels(batch, grid * grid, flat),
            "pixel_attention_mask": torch.ones(batch, grid * grid, dtype=torch.int64),
            "spatial_shapes": torch.tensor([[grid, grid]] * batch),
        }
    if "aspect_ratio_ids" in accepted:
        tiles = number(vision, "max_num_tiles", default=1)
        yield beside | {
            "pixel_values": pixels(batch, 1, tiles, channels, side, side),
            "aspect_ratio_mask": torch.ones(batch, 1, tiles, dtype=torch.int64),
        }
    yield {"pixel_values": pixels(batch, channels, side, side)}
    if beside:
        yield beside | {"pixel_values": pixels(batch, channels, side, side)}
    shown = number(vision, "num_frames", "frames_per_clip", default=1)
    for several in dict.fromkeys((shown, 1, 2, 3, 5)):
        shown_of = {"pixel_attention_mask": torch.ones(batch, several, dtype=torch.bool)}
        several_beside = beside | {name: value for name, value in shown_of.items() if name in accepted}
        yield several_beside | {"pixel_values": pixels(batch, several, channels, side, side)}
    yield beside | {"pixel_values": pixels(batch * grid * grid, flat)}
    yield beside | {"pixel_values": pixels(batch, grid * grid, flat)}
    if side < LARGE_IMAGE:  # some have no size, and halve what they get
        yield {"pixel_values": pixels(batch, channels, LARGE_IMAGE, LARGE_IMAGE)}


def audio_forms(config: Any, accepted: Mapping[str, Any], batch: int, generator: torch.Generator) -> Iterator[Form]:
    """Sounds of which the first form that a model takes is right; arguments as of :func:`image_forms`."""
    audio = tower_config(config, "audio") or config
    features = next((name for name in ("input_features", "audio_features", "audio_values") if name in accepted), None)
    masks = [
        name
        for name in ("feature_attention_mask", "input_features_mask", "audio_attention_mask", "audio_mask")
        if name in accepted
    ]
    mels = number(audio, *_MEL_BINS, default=128)
    frames = 2 * number(audio, "max_source_positions", default=32)
    if features:
        shapes: tuple[tuple[int, ...], ...] = ((batch, mels, frames), (batch, frames, mels), (batch, 1, mels, frames))
        for shape in shapes:
            values = torch.randn(*shape, generator=generator)
            mask = torch.ones(batch, frames, dtype=torch.int64)
            if "attention_mask" in accepted and "input_ids" not in accepted and not masks:
                yield {features: values, "attention_mask": mask}
            if masks:
                yield {features: values} | dict.fromkeys(masks, mask)
                yield {features: values} | dict.fromkeys(masks, mask.bool())
            yield {features: values}
    if "input_values" in accepted:
        samples = 10 * _stride(audio)
        length = number(audio, "max_length", default=frames)
        for shape in ((batch, samples), (batch, 1, samples), (batch, length, mels)):
            yield {"input_values": torch.randn(*shape, generator=generator)}


def _stride(audio: Any) -> int:
    strides = getattr(audio, "conv_stride", None) or getattr(audio, "upsampling_ratios", None) or (320,)
    return math.prod(strides) if isinstance(strides, (list, tuple)) else 320
