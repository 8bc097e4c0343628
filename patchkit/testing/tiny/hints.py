"""What no rule finds: values for the configurations of single model types, and inputs, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from patchkit.testing.tiny.given import Given
from patchkit.testing.tiny.hint import Hint
from patchkit.testing.tiny.hints_of_images import OF_IMAGES

_OF_LENGTHS = Hint(
    "it hears frames of all rows side by side, and is told how many each has",
    inputs={"input_features": Given(("num_mel_bins", ("batch", 32))), "feature_lens": Given(("batch",), 32)},
)

_OF_LAYERS = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1]}

_NO_WORDS = "image tokens are found by their words, which are a tokenizer's"

_OF_SPEECH = "its projector attends to the states of an audio tower"

_SPEECH = {"projector_config.encoder_hidden_size": 32}

_UNSAID_LENGTH = "its defaults do not say how much is to be predicted"

_SERIES = {"prediction_length": 4, "context_length": 8, "lags_sequence": [1, 2, 3]}

_OF_CODES = "its codes are nearest neighbours: of its linear layers, all but one get no gradient"

_OF_ANOTHER = "its inputs are keys and values of another model's layers, by the kinds of these layers"

_UNSAID_DROPOUT = "its layers read a dropout that its configuration gets within another"

_UNSAID_TOKEN = "its forward reads a token that its configuration lacks"

_DOUBLED = Hint("its filters are doubled six times", {"num_filters": 2})

_OTHERS: Mapping[str, Hint] = MappingProxyType(
    {
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
        "clap": Hint(
            "a spectrogram is folded into a square image, and its last stage is as wide as the tower",
            {"audio_config.num_mel_bins": 32, "audio_config.spec_size": 128, "audio_config.hidden_size": 192},
            inputs={"input_features": Given(("batch", 1, 64, 32))},
        ),
        "clvp": Hint(
            "it compares a text with what it hears",
            inputs={"input_features": Given(("batch", "decoder_config.feature_size", 32))},
        ),
        "clvp_encoder": Hint("it rotates 32 entries of a head, or more", {"hidden_size": 64, "num_attention_heads": 2}),
        "csm": Hint(
            "it reads a row of codes for each step, and its filters are doubled from layer to layer",
            {"codec_config.num_filters": 4},
            inputs={
                "input_ids": Given(("batch", "length", "num_codebooks"), "tokens"),
                "labels": Given(("batch", "length", "num_codebooks"), "tokens"),
            },
        ),
        "csm_depth_decoder_model": Hint(
            "it reads as many codes as there are books, after the state of another model",
            {"num_codebooks": 6},
            inputs={
                "input_ids": Given(("batch", "num_codebooks"), "tokens"),
                "backbone_last_hidden_state": Given(("batch", "backbone_hidden_size")),
            },
        ),
        "dbrx": Hint(
            "its attention reads a value that its defaults lack",
            {"attn_config.rope_theta": 10000.0, "attn_config.clip_qkv": 8.0},
        ),
        "deepseek_ocr2_text": Hint("its defaults have no kinds of MLPs", {"mlp_layer_types": ["dense", "sparse"]}),
        "dia": Hint(
            "it writes several channels at once, and their labels are rows of their own",
            {"decoder_config.num_channels": 3, "decoder_config.cross_head_dim": 20},
            inputs={
                "decoder_input_ids": Given(("batch", "length", "decoder_config.num_channels"), "tokens"),
                "labels": Given((("batch", "decoder_config.num_channels"), "length"), "tokens"),
            },
        ),
        "dia_decoder": Hint(
            "it reads several channels at once, and the states of a text",
            {"num_channels": 3, "cross_head_dim": 20},
            inputs={
                "input_ids": Given(("batch", "length", "num_channels"), "tokens"),
                "encoder_hidden_states": Given(("batch", 7, "cross_hidden_size")),
            },
        ),
        "dots3_note_audio_encoder": Hint(
            "it is told how many samples its frames are of, and how wide what is made of them",
            {"conv_output_size": 64, "adapter_input_size": 32},
            inputs={
                "input_features": Given(("batch", "feature_size", 64)),
                "chunk_sample_lengths": Given(("batch",), 64 * 160),
            },
        ),
        "emu3": Hint(_NO_WORDS, {"vocabulary_map": {"<image>": 127}}),
        "ernie4_5_vl_moe_text": Hint(
            "the first two sections of its rotary embeddings are alike",
            {"rope_parameters.mrope_section": [3, 3, 2]},
        ),
        "esm": Hint("its defaults have no vocabulary", {"vocab_size": 100, "pad_token_id": 0, "mask_token_id": 99}),
        "fun_asr_nano_encoder": Hint(
            "several frames side by side are what it hears",
            inputs={"input_features": Given(("batch", 32, 112)), "input_features_mask": Given(("batch", 32), 1)},
        ),
        "gemma3n_audio": Hint(
            "its mask is true where nothing is heard",
            inputs={
                "audio_mel": Given(("batch", 64, "input_feat_size")),
                "audio_mel_mask": Given(("batch", 64), False),
            },
        ),
        "gemma4_assistant": Hint(_OF_ANOTHER, lacks=_OF_ANOTHER),
        "gemma4_unified_assistant": Hint(_OF_ANOTHER, lacks=_OF_ANOTHER),
        "granite_speech": Hint(_OF_SPEECH, _SPEECH),
        "granite_speech_plus": Hint(_OF_SPEECH, _SPEECH),
        "informer": Hint(_UNSAID_LENGTH, _SERIES),
        "jev": Hint(
            "it reads one prompt, and answers its questions",
            inputs={
                "input_ids": Given((1, "length"), "tokens"),
                "marks": Given((1, 2), (3, 7)),
                "num_options": Given((1, 2), 2),
                "question_type_ids": Given((1, 2), 0),
            },
        ),
        "kyutai_speech_to_text": Hint(
            "it reads a text token and a row of codes for each step, and its filters are doubled from layer to layer",
            {"codec_config.num_filters": 4},
            inputs={
                "input_ids": Given(("batch", "length", 3), "tokens"),
                "labels": Given(("batch", "length"), "tokens"),
            },
        ),
        "layoutlmv3": Hint(
            "four coordinates and two sides of a box are one hidden state", {"coordinate_size": 12, "shape_size": 8}
        ),
        "lfm2_moe": Hint(
            "its defaults have no kinds of layers", {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1}
        ),
        "lilt": Hint("six parts of a box are one hidden state", {"hidden_size": 96}),
        "mimi": Hint(
            "its filters are doubled from layer to layer",
            {"num_filters": 4, "codebook_dim": 16, "vector_quantization_hidden_dimension": 16},
        ),
        "mimi_decoder": Hint(
            "what it decodes is called latents",
            {"num_filters": 4},
            inputs={"latents": Given(("batch", "hidden_size", 6))},
        ),
        "mimi_encoder": Hint("its filters are doubled from layer to layer", {"num_filters": 4}),
        "moonshine": Hint(
            "as many key/value heads as heads",
            {"encoder_num_key_value_heads": 4, "decoder_num_key_value_heads": 4},
        ),
        "moonshine_streaming": Hint(
            "its decoder reads a number of heads that its configuration lacks", {"num_key_value_heads": 4}
        ),
        "muse_glimmer_assistant": Hint(
            "it reads noise, and the states of several layers of another model",
            inputs={
                "noise_embeds": Given(("batch", "block_size", "hidden_size")),
                "context_hidden_states": Given(("batch", 5, (2, "hidden_size"))),
                "attention_mask": Given(("batch", 21), 1),
            },
        ),
        "muse_spark": Hint(
            "a token of sound is as many samples as its patches have together",
            inputs={
                "pixel_values": Given((("batch", 16), 96)),
                "image_grid_thw": Given(("batch", 3), (1, 4, 4)),
                "input_values": Given(("batch", (3, "audio_config.samples_per_token"))),
            },
        ),
        "muse_spark_audio": Hint(
            "a layer has a width and a depth of its own, and a token is as many samples as its patches have together",
            _OF_LAYERS | {"patch_sizes": [8, 4, 3, 2]},
            inputs={"input_values": Given(("batch", (3, "samples_per_token")))},
        ),
        "pe_audio": Hint(
            "it compares a text with what it hears", inputs={"input_values": Given(("batch", 1, 5 * 1920))}
        ),
        "pe_audio_encoder": Hint(
            "the filters of its codec are doubled four times, up to its states",
            {"dac_config.encoder_hidden_size": 2, "dac_config.decoder_hidden_size": 32, "dac_config.hidden_size": 32},
            inputs={"input_values": Given(("batch", 1, 5 * 1920))},
        ),
        "perceiver": Hint(
            "its latents have sizes of their own, and it answers as many tokens as it has positions",
            {"d_latents": 64, "num_latents": 16, "num_self_attends_per_block": 2, "max_position_embeddings": 12},
        ),
        "phi4_multimodal_audio": Hint(
            "its convolutions halve what it hears three times",
            {
                "nemo_conv_channels": 16,
                "nemo_final_size": 2,
                "depthwise_separable_out_channel": 32,
                "ext_pw_out_channel": 32,
            },
            inputs={"hidden_states": Given(("batch", 64, "input_size")), "mask": Given(("batch", 64), True)},
        ),
        "pix2struct_text_model": Hint(
            "its layers read a value that its configuration lacks, and a head is a share of its states",
            {"initializer_range": 0.02, "d_kv": 16},
        ),
        "pocket_tts_audio_tokenizer_decoder": Hint(
            "what it decodes is called latents", inputs={"latents": Given(("batch", "hidden_size", 6))}
        ),
        "qwen2_5_omni_audio_encoder": _OF_LENGTHS,
        "qwen2_5_omni_thinker": Hint(_UNSAID_TOKEN, {"vision_start_token_id": 126}),
        "qwen2_audio": Hint("its loss reads a label that its configuration lacks", {"ignore_index": -100}),
        "qwen3_asr_encoder": Hint(
            "its windows divide the length of what it hears, and the last one is not full",
            {"n_window": 16},
            inputs={
                "input_features": Given(("batch", "num_mel_bins", 32)),
                "input_features_mask": Given(("batch", 32), (1,) * 31 + (0,)),
            },
        ),
        "qwen3_omni_moe_audio_encoder": _OF_LENGTHS,
        "qwen3_omni_moe_talker_code_predictor": Hint(
            "it reads states, and no tokens", inputs={"inputs_embeds": Given(("batch", 7, "hidden_size"))}
        ),
        "qwen3_omni_moe_talker_text": Hint(
            "its layers read a size that its configuration lacks, and it reads states, and no tokens",
            {"shared_expert_intermediate_size": 40},
            inputs={"inputs_embeds": Given(("batch", 7, "hidden_size"))},
        ),
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
        "t5gemma2_decoder": Hint(
            _UNSAID_DROPOUT, {"dropout_rate": 0.0}, inputs={"encoder_hidden_states": Given(("batch", 7, "hidden_size"))}
        ),
        "t5gemma2_encoder": Hint(_UNSAID_DROPOUT, {"text_config.dropout_rate": 0.0}),
        "t5gemma2_text": Hint(_UNSAID_DROPOUT, {"dropout_rate": 0.0}),
        "time_series_transformer": Hint(_UNSAID_LENGTH, _SERIES),
        "timesfm": Hint(
            "it wants to know how often a series was measured",
            inputs={
                "past_values": Given(("batch", "context_length")),
                "past_values_padding": Given(("batch", "context_length"), 0),
                "freq": Given(("batch", 1), 1),
            },
        ),
        "vibevoice_acoustic_tokenizer": _DOUBLED,
        "vibevoice_acoustic_tokenizer_decoder": _DOUBLED,
        "vibevoice_acoustic_tokenizer_encoder": _DOUBLED,
        "voxtral_realtime": Hint(
            "eight frames of what it hears are added to each token",
            inputs={"input_features": Given(("batch", "audio_config.num_mel_bins", (8, "length")))},
        ),
        "voxtral_realtime_encoder": Hint(
            "a mask of its frames is as long as what is left of them",
            inputs={"input_features": Given(("batch", "num_mel_bins", 64))},
        ),
        "xcodec": Hint(_OF_CODES, lacks=_OF_CODES),
        "xmod": Hint("it has adapters for languages, and wants to know which", {"default_language": "en_XX"}),
        "zamba": Hint(
            "tied layers are there from the second on",
            {"layers_block_type": ["linear_attention", "hybrid"] * 2, "num_hidden_layers": 4},
        ),
    }
)

HINTS: Mapping[str, Hint] = MappingProxyType(dict(sorted({**_OTHERS, **OF_IMAGES}.items())))
"""By model type, sorted; for a sub-configuration of this type too."""
