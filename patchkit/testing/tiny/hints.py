"""What no rule finds: values for the configurations of single model types, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class Hint(NamedTuple):
    """Values that a model type needs.

    Attributes:
        reason: why no rule gives them.
        values: by the path of a field, such as ``attn_config.clip_qkv``; set after sizes are made small.
    """

    reason: str
    values: Mapping[str, Any]


_NO_WORDS = "image tokens are found by their words, which are a tokenizer's"

_OF_SPEECH = "its projector attends to the states of an audio tower"

_SPEECH = {"projector_config.encoder_hidden_size": 32}

_UNSAID_LENGTH = "its defaults do not say how much is to be predicted"

_SERIES = {"prediction_length": 4, "context_length": 8, "lags_sequence": [1, 2, 3]}

_UNSAID_TOKEN = "its forward reads a token that its configuration lacks"

_DOUBLED = Hint("its filters are doubled six times", {"num_filters": 2})

HINTS: Mapping[str, Hint] = MappingProxyType(
    {
        "aria": Hint(
            "a table says how many states are made of so many patches",
            {"projector_patch_to_query_dict": {16: 4}, "max_value_projector_patch_to_query_dict": 4},
        ),
        "autoformer": Hint(_UNSAID_LENGTH, {**_SERIES, "label_length": 4}),
        "blt": Hint(
            "its global model is as wide as several states of the local ones together",
            {
                "encoder_config.hidden_size_global": 128,
                "decoder_config.hidden_size_global": 128,
                "global_config.hidden_size": 128,
                "global_config.head_dim": 32,
                "encoder_config.head_dim": 16,
                "decoder_config.head_dim": 16,
                "patcher_config.head_dim": 16,
            },
        ),
        "bros": Hint(
            "its sizes follow from the hidden one when it is made, and not later",
            {"dim_bbox_sinusoid_emb_2d": 16, "dim_bbox_sinusoid_emb_1d": 2, "dim_bbox_projection": 16},
        ),
        "chameleon": Hint(_NO_WORDS, {"vocabulary_map": {"<image>": 127}}),
        "dbrx": Hint(
            "its attention reads a value that its defaults lack",
            {"attn_config.rope_theta": 10000.0, "attn_config.clip_qkv": 8.0},
        ),
        "deepseek_ocr2_text": Hint("its defaults have no kinds of MLPs", {"mlp_layer_types": ["dense", "sparse"]}),
        "dots3_note_vision_encoder": Hint(
            "its adapter is as wide as it; a layer has fewer experts than the others, and no fewer than a token takes",
            {"adapter_in_dim": 48, "per_layer_config": {1: {"num_local_experts": 2}}},
        ),
        "efficientnet": Hint(
            "factors of its widths and depths", {"width_coefficient": 0.25, "depth_coefficient": 0.1, "hidden_dim": 320}
        ),
        "emu3": Hint(_NO_WORDS, {"vocabulary_map": {"<image>": 127}}),
        "emu3_vqgan": Hint("it is as wide as its last stage", {"hidden_size": 32}),
        "ernie4_5_vl_moe_text": Hint(
            "the first two sections of its rotary embeddings are alike",
            {"rope_parameters.mrope_section": [3, 3, 2]},
        ),
        "granite4_vision": Hint(
            "its defaults have no layers that exchange states",
            {
                "deepstack_layer_map": [(-1, 0)],
                "spatial_target_layers": [0, 0, 1, 1],
                "downsample_rate": "1/2",
                "qformer_config.num_attention_heads": 4,
            },
        ),
        "granite_speech": Hint(_OF_SPEECH, _SPEECH),
        "granite_speech_plus": Hint(_OF_SPEECH, _SPEECH),
        "informer": Hint(_UNSAID_LENGTH, _SERIES),
        "layoutlmv3": Hint(
            "four coordinates and two sides of a box are one hidden state", {"coordinate_size": 12, "shape_size": 8}
        ),
        "levit": Hint("a patch is what four convolutions make of it", {"patch_size": 16, "image_size": 64}),
        "lfm2_moe": Hint(
            "its defaults have no kinds of layers", {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1}
        ),
        "lilt": Hint("six parts of a box are one hidden state", {"hidden_size": 96}),
        "moonshine": Hint(
            "as many key/value heads as heads",
            {"encoder_num_key_value_heads": 4, "decoder_num_key_value_heads": 4},
        ),
        "perceiver": Hint(
            "its latents have sizes of their own, and it answers as many tokens as it has positions",
            {"d_latents": 64, "num_latents": 16, "num_self_attends_per_block": 2, "max_position_embeddings": 12},
        ),
        "qwen2_5_omni_thinker": Hint(_UNSAID_TOKEN, {"vision_start_token_id": 126}),
        "qwen2_audio": Hint("its loss reads a label that its configuration lacks", {"ignore_index": -100}),
        "qwen3_asr_encoder": Hint("its windows divide the length of what it hears", {"n_window": 16}),
        "qwen3_omni_moe_thinker": Hint(_UNSAID_TOKEN, {"vision_start_token_id": 126}),
        "qwen4_exp_text": Hint(
            "its defaults have no sizes of an indexer, and kinds of layers that need them",
            {
                "indexer_n_heads": 2,
                "indexer_kv_heads": 1,
                "indexer_head_dim": 16,
                "indexer_budget": 4,
                "indexer_compress_ratio": 2,
            },
        ),
        "reformer": Hint(
            "axial positions are factors of the length, which varies; it seeds what it draws by the clock",
            {
                "axial_pos_embds": False,
                "hash_seed": 0,
                "hidden_dropout_prob": 0.0,
                "local_attention_probs_dropout_prob": 0.0,
            },
        ),
        "time_series_transformer": Hint(_UNSAID_LENGTH, _SERIES),
        "vibevoice_acoustic_tokenizer": _DOUBLED,
        "vibevoice_acoustic_tokenizer_decoder": _DOUBLED,
        "vibevoice_acoustic_tokenizer_encoder": _DOUBLED,
        "vitmatte": Hint(
            "its defaults are tuples, and it adds them to lists",
            {
                "convstream_hidden_sizes": [16, 24, 32],
                "fusion_hidden_sizes": [32, 24, 16, 8],
                "backbone_config.patch_size": 16,
                "backbone_config.image_size": 64,
            },
        ),
        "vitpose_backbone": Hint("its patches are padded", {"patch_size": [16, 16], "image_size": [64, 64]}),
        "xmod": Hint("it has adapters for languages, and wants to know which", {"default_language": "en_XX"}),
        "zamba": Hint(
            "tied layers are there from the second on",
            {"layers_block_type": ["linear_attention", "hybrid"] * 2, "num_hidden_layers": 4},
        ),
    }
)
"""By model type, sorted; for a sub-configuration of this type too."""
