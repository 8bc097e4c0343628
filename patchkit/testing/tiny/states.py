"""What a forward takes that is neither tokens nor media: hidden states, series of values, states of a robot."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from patchkit.testing.tiny.media import Form, number

_WIDTHS = ("hidden_size", "d_model", "embed_dim", "hidden_dim", "dim", "n_embd", "input_dim")
_OTHERS = ("encoder_hidden_size", "in_channels", "num_mel_bins", "latent_dim", "model_in_dim", "out_hidden_size")
_STATES = (
    "hidden_states",
    "inputs_embeds",
    "input_embeds",
    "query_embeds",
    "audio_inputs",
    "spectrogram",
    "audio_mel",
    "context",
)
_SERIES = "past_values"
_REGIONS = 5
_HISTORY = 32
_FUTURE = 4


def state_forms(
    config: Any, accepted: Mapping[str, inspect.Parameter], batch: int, generator: torch.Generator
) -> Iterator[Form]:
    """Hidden states or series of values, of which the first form that a model takes is right.

    Args:
        config: the model's.
        accepted: the arguments of its forward.
        batch: rows.
        generator: values are drawn from it, with entries of order 1.
    """
    if _SERIES in accepted:
        yield from _series(config, accepted, batch, generator)
        return
    if "returns_to_go" in accepted:
        yield _decisions(config, batch, generator)
        return
    states = next((name for name in _STATES if name in accepted), None)
    if states is None:
        return
    length = number(config, "max_source_positions", "num_positions", default=8)
    for width in dict.fromkeys(vars(config)[name] for name in (*_WIDTHS, *_OTHERS) if name in vars(config)):
        if isinstance(width, int):
            form = {states: torch.randn(batch, length, width, generator=generator)}
            yield form | _required(config, accepted, states, batch, length, generator)


def _required(
    config: Any,
    accepted: Mapping[str, inspect.Parameter],
    states: str,
    batch: int,
    length: int,
    generator: torch.Generator,
) -> Form:
    """What a forward cannot be called without, beside its states."""
    found: Form = {}
    for name, parameter in accepted.items():
        required = parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        attended = states == "query_embeds" and name == "encoder_hidden_states"
        if name == states or not (required or attended):
            continue
        if "mask" in name:
            found[name] = torch.ones(batch, length, dtype=torch.int64)
        elif name.endswith(("hidden_states", "embeds", "features")):
            width = number(config, "encoder_hidden_size", *_WIDTHS, default=64)
            found[name] = torch.randn(batch, length, width, generator=generator)
    return found


def beside_tokens(config: Any, accepted: Mapping[str, Any], ids: Tensor, generator: torch.Generator) -> Form:
    """What goes with tokens: where the states of an image stand among them, and the state of a robot."""
    found: Form = {}
    if "image_embeds_position_mask" in accepted:
        count = number(config, "latent_query_num", default=1)
        found["image_embeds_position_mask"] = (torch.arange(ids.shape[1]) < count + 1).expand_as(ids).clone()
        found["image_embeds_position_mask"][:, 0] = False
    if "visual_feats" in accepted and (width := number(config, "visual_feat_dim", default=0)):
        found["visual_feats"] = torch.randn(ids.shape[0], 5, width, generator=generator)
        found["visual_pos"] = torch.rand(
            ids.shape[0], 5, number(config, "visual_pos_dim", default=4), generator=generator
        )
    if "state" in accepted and (width := number(config, "max_state_dim", default=0)):
        found["state"] = torch.randn(ids.shape[0], width, generator=generator)
    return found


def _decisions(config: Any, batch: int, generator: torch.Generator) -> Form:
    """What was seen, done and gained, step by step."""
    states, actions = number(config, "state_dim", default=8), number(config, "act_dim", default=4)
    widths = {"states": states, "actions": actions, "rewards": 1, "returns_to_go": 1}
    steps = torch.arange(_FUTURE).expand(batch, -1)
    values = {name: torch.randn(batch, _FUTURE, width, generator=generator) for name, width in widths.items()}
    return values | {"timesteps": steps, "attention_mask": torch.ones_like(steps)}


def _series(config: Any, accepted: Mapping[str, Any], batch: int, generator: torch.Generator) -> Iterator[Form]:
    """Past values, with what says when they were; what is to come too, where a model is trained on it."""
    lags = max(getattr(config, "lags_sequence", None) or [0])
    past = number(config, "context_length", default=_HISTORY) + int(lags)
    future = number(config, "prediction_length", default=_FUTURE)
    channels = number(config, "input_size", "num_input_channels", default=1)
    features = number(config, "num_time_features", default=0)

    def values(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    beside: Form = {
        "past_time_features": values(batch, past, features),
        "past_observed_mask": torch.ones(batch, past, *([channels] if channels > 1 else [])),
        "future_values": values(batch, future, *([channels] if channels > 1 else [])),
        "future_time_features": values(batch, future, features),
        "past_values_padding": torch.zeros(batch, past, dtype=torch.int64),
    }
    beside = {name: value for name, value in beside.items() if name in accepted}
    for shape in ((batch, past, channels), (batch, past)):
        yield {"past_values": values(*shape)} | beside
        yield {"past_values": values(*shape)}
