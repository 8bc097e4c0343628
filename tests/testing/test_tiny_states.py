"""Forwards that take neither tokens nor media: hidden states, series, decisions, and what goes beside tokens."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from patchkit.testing import add_lora, tiny_inputs_for, tiny_model_from
from patchkit.testing.tiny.outcome import require_a_step
from patchkit.testing.tiny.states import beside_tokens, state_forms

SAMPLE = {
    # model type and head: what it must get
    ("blip_2_qformer", "base"): {"query_embeds", "encoder_hidden_states"},
    ("decision_transformer", "base"): {"states", "actions", "rewards", "returns_to_go", "timesteps"},
    ("informer", "base"): {"past_values", "past_time_features", "past_observed_mask", "future_values"},
    ("kosmos-2", "image-text"): {"input_ids", "pixel_values", "image_embeds_position_mask", "labels"},
    ("lxmert", "base"): {"input_ids", "visual_feats", "visual_pos"},
    ("patchtst", "base"): {"past_values"},
    ("qwen2_5_vl_vision", "base"): {"hidden_states", "grid_thw"},
    ("time_series_transformer", "base"): {"past_values", "future_time_features"},
    ("videomae", "base"): {"pixel_values"},
    ("vjepa2", "base"): {"pixel_values_videos"},
}


@pytest.mark.parametrize(("model_type", "head"), SAMPLE, ids=map("-".join, SAMPLE))
def test_a_model_of_each_kind(model_type: str, head: str) -> None:
    model = tiny_model_from(model_type, head=head)
    inputs = tiny_inputs_for(model)
    assert SAMPLE[model_type, head] <= set(inputs)
    require_a_step(model, inputs)
    adapted = add_lora(model, target_modules="all-linear", task_type=None).train()
    require_a_step(adapted, inputs)


def forward_of(*names: str, required: tuple[str, ...] = ()) -> Any:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in required]
    return {one.name: one for one in [*parameters, *(inspect.Parameter(name, kind, default=None) for name in names)]}


class Config:
    def __init__(self, **fields: Any) -> None:
        vars(self).update(fields)


def shapes(config: Config, accepted: Any) -> list[dict[str, tuple[int, ...]]]:
    forms = state_forms(config, accepted, 2, torch.Generator())
    return [{name: tuple(value.shape) for name, value in form.items()} for form in forms]


def test_each_width_that_a_configuration_names_is_tried_once() -> None:
    config = Config(hidden_size=12, d_model=12, in_channels=3, embed_dim=None)
    assert shapes(config, forward_of("inputs_embeds")) == [{"inputs_embeds": (2, 8, 12)}, {"inputs_embeds": (2, 8, 3)}]


def test_what_is_required_is_given_and_what_is_not_is_left_out() -> None:
    accepted = forward_of(
        "encoder_hidden_states", required=("hidden_states", "attention_mask", "image_features", "odd")
    )
    (form,) = shapes(Config(hidden_size=12, encoder_hidden_size=7), accepted)[:1]
    assert form == {"hidden_states": (2, 8, 12), "attention_mask": (2, 8), "image_features": (2, 8, 7)}


@pytest.mark.parametrize("accepted", [forward_of("odd"), forward_of()], ids=["another name", "nothing"])
def test_where_nothing_is_known_there_is_no_form(accepted: Any) -> None:
    assert shapes(Config(hidden_size=12), accepted) == []


def test_series_are_as_long_as_their_lags_want() -> None:
    config = Config(context_length=8, lags_sequence=[1, 3], prediction_length=4, num_time_features=2, input_size=1)
    first = shapes(config, forward_of("past_values", "past_time_features", "future_values"))[0]
    assert first == {"past_values": (2, 11, 1), "past_time_features": (2, 11, 2), "future_values": (2, 4)}


def test_beside_tokens() -> None:
    ids = torch.zeros(2, 9, dtype=torch.int64)
    config = Config(latent_query_num=3, max_state_dim=5, visual_feat_dim=6, visual_pos_dim=4)
    accepted = forward_of("image_embeds_position_mask", "state", "visual_feats", "visual_pos")
    found = beside_tokens(config, accepted, ids, torch.Generator())
    assert found["image_embeds_position_mask"].sum(1).tolist() == [3, 3]
    assert not found["image_embeds_position_mask"][:, 0].any()
    assert found["state"].shape == (2, 5)
    assert (found["visual_feats"].shape, found["visual_pos"].shape) == ((2, 5, 6), (2, 5, 4))
    assert beside_tokens(config, forward_of("input_ids"), ids, torch.Generator()) == {}
