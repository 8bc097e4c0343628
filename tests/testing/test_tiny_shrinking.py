"""Configurations with small sizes: each kind of field, what is nested, heads that fit each other, rotary parameters."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import pytest
from transformers import LlamaConfig, LlavaNextConfig, PretrainedConfig

from patchkit.testing.tiny.repairs import repairs
from patchkit.testing.tiny.shrinking import USUAL, Variant, as_it_is, shrunk, tower_of
from patchkit.testing.tiny.sizes import FIELDS, LAYER_FIELDS, SIZES, SWITCHES
from patchkit.testing.tiny.tokens import LAST_TEXT_TOKEN, SpecialTokens, names_tokens


class Config(PretrainedConfig):
    """Takes any fields."""

    model_type = "any_for_a_test"

    def __init__(self, **fields: Any) -> None:
        super().__init__()
        for name, value in fields.items():
            setattr(self, name, value)


# ---- fields


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_each_listed_field(name: str) -> None:
    """Large values become small, smaller ones and what is no number stay."""
    size = FIELDS[name]
    expected = getattr(SIZES["text"], size) if isinstance(size, str) else size
    assert vars(shrunk(Config(**{name: 10**6})))[name] == expected
    for stays in (1, True, None, "auto", 0.5):
        assert vars(shrunk(Config(**{name: stays})))[name] is stays
    assert vars(shrunk(Config(**{name: None}), Variant(filled=True)))[name] == expected


@pytest.mark.parametrize("name", sorted(LAYER_FIELDS))
def test_each_number_of_layers(name: str) -> None:
    assert [vars(shrunk(Config(**{name: count})))[name] for count in (1, 2, 30)] == [1, 2, 2]


@pytest.mark.parametrize("name", sorted(SWITCHES))
def test_each_switch(name: str) -> None:
    assert vars(shrunk(Config(**{name: "something"})))[name] == SWITCHES[name]
    assert name not in vars(shrunk(Config()))


ENDINGS = {
    # fields that are listed nowhere, by how they end and what they speak of
    "acme_intermediate_size": 112, "acme_ffn_dim": 112, "acme_hidden_size": 64, "acme_embed_dim": 64, "acme_num_heads": 4,
    "vision_hidden_size": 48, "audio_intermediate_size": 56, "projection_hidden_size": 64, "acme_vocab_size": 128,
    "acme_levels": 10**6,
}  # fmt: skip


@pytest.mark.parametrize("name", ENDINGS)
def test_fields_that_are_not_listed(name: str) -> None:
    assert vars(shrunk(Config(**{name: 10**6})))[name] == ENDINGS[name]


def test_what_is_given_is_not_changed() -> None:
    config = LlavaNextConfig()
    before = copy.deepcopy(config.to_dict())
    shrunk(config)
    assert config.to_dict() == before


# ---- towers


@pytest.mark.parametrize(("name", "fields", "tower"), [
    ("vision_config", {}, "vision"), ("visual", {}, "vision"), ("vit", {}, "vision"), ("audio_config", {}, "audio"),
    ("speech_encoder", {}, "audio"), ("text_config", {}, "text"), ("decoder", {}, "text"),
    ("", {"patch_size": 14}, "vision"), ("", {"num_mel_bins": 80}, "audio"), ("", {"conv_dim": [512]}, "audio"),
    ("", {"patch_size": 14, "vocab_size": 100}, "text"), ("", {}, "text"),
])  # fmt: skip
def test_which_tower_a_configuration_is_of(name: str, fields: dict[str, Any], tower: str) -> None:
    assert tower_of(name, Config(**fields), "text") == tower


@pytest.mark.parametrize("variant", [USUAL, Variant(one_width=True)], ids=["usual", "one width"])
def test_towers_have_sizes_of_their_own(variant: Variant) -> None:
    """Unless one width is asked for."""
    config = shrunk(LlavaNextConfig(), variant)
    widths = config.text_config.hidden_size, config.vision_config.hidden_size
    assert widths == ((64, 64) if variant.one_width else (64, 48))
    assert config.vision_config.image_size % config.vision_config.patch_size == 0


def test_a_missing_part_gets_the_defaults_of_its_class() -> None:
    class Outer(Config):
        sub_configs: ClassVar = {"text_config": LlamaConfig}

    assert shrunk(Outer(text_config=None)).text_config.hidden_size == 64
    assert not hasattr(shrunk(Outer()), "text_config")


# ---- heads


@pytest.mark.parametrize(("fields", "variant", "expected"), [
    ({"num_attention_heads": 32, "num_key_value_heads": 8}, USUAL, (4, 2)),
    ({"num_attention_heads": 32, "num_key_value_heads": 1}, USUAL, (4, 1)),
    ({"num_attention_heads": 32, "num_key_value_heads": None}, USUAL, (4, None)),
    ({"num_attention_heads": 32, "num_key_value_heads": 8}, Variant(all_heads=True), (4, 4)),
    ({"num_attention_heads": 32, "head_dim": 128}, USUAL, (4, 20)),
    ({"num_attention_heads": 32, "head_dim": 128}, Variant(narrow_heads=True), (4, 16)),
    ({"num_attention_heads": 32, "head_dim": 64, "qk_rope_head_dim": 64}, USUAL, (4, 8, 8)),
    ({"num_attention_heads": 32, "head_dim": 192, "qk_rope_head_dim": 64, "qk_head_dim": 192}, USUAL, (4, 20, 8, 20)),
    ({"num_attention_heads": 32, "head_dim": None, "qk_rope_head_dim": None}, USUAL, (4, None, None)),
    # 128 heads of 64 are two times 4096, and 4 heads of 32 two times 64
    ({"num_heads": 128, "head_dim": 64, "expand": 2, "hidden_size": 4096}, USUAL, (4, 32, 2, 64)),
    ({"num_heads": 128, "head_dim": 63, "expand": 2, "hidden_size": 4096}, USUAL, (4, 20, 2, 64)),
])  # fmt: skip
def test_heads_fit_each_other(fields: dict[str, Any], variant: Variant, expected: tuple[int, ...]) -> None:
    small = vars(shrunk(Config(**fields), variant))
    assert tuple(small[name] for name in fields) == expected


ROTARY = {
    "nothing": ({}, {}),
    "no lists": ({"rope_theta": 7.0, "factor": 2.0}, {"rope_theta": 7.0, "factor": 2.0}),
    "sections": ({"mrope_section": [16, 24, 24]}, {"mrope_section": [2, 3, 5]}),
    "factors": ({"long_factor": [1.0] * 64}, {"long_factor": [1.0] * 10}),
    "a share that is odd": ({"partial_rotary_factor": 0.25}, {"partial_rotary_factor": 0.3}),
    "a share that is even": ({"partial_rotary_factor": 0.5}, {"partial_rotary_factor": 0.5}),
    "a share of layers of one kind": (
        {"full_attention": {"partial_rotary_factor": 0.25}, "sliding_attention": {"rope_theta": 7.0}},
        {"full_attention": {"partial_rotary_factor": 0.3}, "sliding_attention": {"rope_theta": 7.0}},
    ),
}


@pytest.mark.parametrize("case", ROTARY)
def test_rotary_parameters(case: str) -> None:
    given, expected = ROTARY[case]
    small = shrunk(Config(head_dim=128, num_attention_heads=32, rope_parameters=given))
    assert small.rope_parameters == expected


def test_the_rotated_part_of_latent_attention_is_as_wide_as_it_says() -> None:
    fields = {"head_dim": 256, "qk_rope_head_dim": 64, "rope_parameters": {"partial_rotary_factor": 0.25}}
    small = shrunk(Config(**fields))
    assert small.head_dim * small.rope_parameters["partial_rotary_factor"] == small.qk_rope_head_dim == 8


def test_variants_of_rotary_parameters() -> None:
    fields = {"head_dim": 128, "num_hidden_layers": 2, "layer_types": ["a", "b"]}
    plain = Config(rope_parameters={"rope_theta": 7.0, "partial_rotary_factor": 0.5}, **fields)
    assert shrunk(plain, Variant(whole_rotary=True)).rope_parameters["partial_rotary_factor"] == 1.0
    assert sum(shrunk(plain, Variant(rotary_sections=True)).rope_parameters["mrope_section"]) == 5
    by_kind = shrunk(plain, Variant(rotary_by_kind=True)).rope_parameters
    assert set(by_kind) == {"a", "b"}
    assert by_kind["a"]["rope_theta"] == 7.0
    empty = shrunk(Config(rope_parameters={}, **fields), Variant(rotary_by_kind=True)).rope_parameters
    assert empty["b"]["rope_type"] == "default"


@pytest.mark.parametrize(
    "variant", [USUAL, Variant(no_cache=True), Variant(decoder=True)], ids=["usual", "no cache", "decoder"]
)
def test_variants_of_switches(variant: Variant) -> None:
    small = shrunk(Config(use_cache=True, is_decoder=False), variant)
    assert (small.use_cache, small.is_decoder) == (not variant.no_cache, variant.decoder)


STAGES = ["stem", *(f"stage{index}" for index in range(1, 13))]


@pytest.mark.parametrize(
    ("indices", "layers", "kept"), [([12], 2, [2]), ([3, 6, 9, 12], 4, [1, 2, 3, 4]), ([2, 5, 12], 3, [1, 2, 3])]
)
def test_a_backbone_gives_as_many_stages_as_before(indices: list[int], layers: int, kept: list[int]) -> None:
    fields = {"_out_indices": indices, "_out_features": [STAGES[index] for index in indices]}
    small = shrunk(Config(num_hidden_layers=12, stage_names=list(STAGES), patch_size=14, image_size=224, **fields))
    assert small.num_hidden_layers == layers
    assert small.stage_names == STAGES[: layers + 1]
    assert (small._out_indices, small._out_features) == (kept, [STAGES[index] for index in kept])


@pytest.mark.parametrize(("variant", "image", "widths"), [
    (USUAL, 16, [8, 16, 40, 64]), (Variant(large_images=True), 64, [8, 16, 40, 64]),
    (Variant(whole_widths=True), 16, [32, 64, 160, 256]),
])  # fmt: skip
def test_variants_of_stages(variant: Variant, image: int, widths: list[int]) -> None:
    small = shrunk(Config(image_size=224, patch_size=4, num_channels=3, hidden_sizes=[32, 64, 160, 256]), variant)
    assert (small.image_size, small.hidden_sizes) == (image, widths)


def test_a_width_that_is_doubled_from_stage_to_stage_begins_small() -> None:
    small = shrunk(
        Config(embed_dim=96, depths=[2, 2, 18, 2], num_layers=4, window_size=7, patch_size=4, num_channels=3)
    )
    assert (small.embed_dim, small.window_size, small.depths) == (24, 2, [2, 2, 2])  # a stage of each depth


def test_as_it_is_but_for_what_is_drawn_or_fetched() -> None:
    config = Config(hidden_size=768, layerdrop=0.1, inner=Config(use_pretrained_backbone=True, intermediate_size=3072))
    own = as_it_is(config)
    assert (own.hidden_size, own.layerdrop, own.inner.intermediate_size) == (768, 0.0, 3072)
    assert (own.inner.use_pretrained_backbone, config.layerdrop) == (False, 0.1)


# ---- layers and tokens


def test_lists_of_layers_are_cut_together() -> None:
    fields = {
        "num_hidden_layers": 24,
        "layer_types": ["a", "a", "a", "b"] * 6,
        "rope_layers": (1, 1, 1, 0) * 6,
        "mlp_only_layers": [0, 3, 20],
        "other": ["a"] * 5,
    }
    small = shrunk(Config(**fields))
    assert small.num_hidden_layers == 4
    assert small.layer_types == ["a", "a", "a", "b"]
    assert small.rope_layers == (1, 1, 1, 0)
    assert small.mlp_only_layers == [0, 3]
    assert small.other == ["a"] * 5


def test_special_tokens_are_different_ones_of_the_short_vocabulary() -> None:
    config = LlavaNextConfig(image_token_id=32000)
    config.text_config.pad_token_id, config.text_config.eos_token_id = 31999, 31998
    small = shrunk(config)
    tokens = [small.image_token_id, small.text_config.pad_token_id, small.text_config.eos_token_id]
    assert tokens[1:] == [0, 2]
    assert LAST_TEXT_TOKEN < tokens[0] < small.text_config.vocab_size


def test_a_token_is_the_same_one_wherever_it_is_named() -> None:
    tokens = SpecialTokens()
    image = tokens.shortened("image_token_id", 151655)
    assert tokens.shortened("image_token_index", 151655) == image
    assert tokens.shortened("video_token_id", 151656) != image
    assert tokens.shortened("eos_token_id", [7, 8]) == [2, 2]
    assert tokens.shortened("visual_token_ids", (151655, -1)) == (image, -1)
    assert tokens.shortened("image_token_id", None) is None


@pytest.mark.parametrize(("name", "is_token"), [
    ("image_token_id", True), ("image_token_index", True), ("visual_indicator_token_ids", True), ("image_patch_id", True),
    ("hidden_size", False), ("image_token_embed_dim", False), ("num_image_tokens", False),
])  # fmt: skip
def test_which_fields_are_tokens(name: str, is_token: bool) -> None:
    assert names_tokens(name) == is_token


# ---- what an error says


ERRORS = {
    "mat1 and mat2 shapes cannot be multiplied (24x48 and 64x80)": {"inner.out=64"},
    "The size of tensor a (9) must match the size of tensor b (48) at dimension 1": {"inner.out=9"},
    "up.weight of shape [1536, 2560] is not tiny": {"breadth=64"},
    "it wants 7 and 9 of them": set(),
    "nothing": set(),
}  # fmt: skip


@pytest.mark.parametrize("message", ERRORS)
def test_sizes_that_an_error_names(message: str) -> None:
    config = Config(breadth=1536, flag=True, inner=Config(out=48))
    found = dict(repairs(config, message))
    assert set(found) == ERRORS[message]
    assert (config.breadth, config.inner.out) == (1536, 48)
    for change, changed in found.items():
        path, _, size = change.partition("=")
        value: Any = changed
        for name in path.split("."):
            value = getattr(value, name)
        assert value == int(size)
