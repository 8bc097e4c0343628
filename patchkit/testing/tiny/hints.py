"""What no rule finds: values for the configurations of single model types, and inputs, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from patchkit.testing.tiny.given import NOTHING, Given
from patchkit.testing.tiny.sizes import LARGE_IMAGE


class Hint(NamedTuple):
    """Values and inputs that a model type needs.

    Attributes:
        reason: why no rule gives them.
        values: by the path of a field, such as ``attn_config.clip_qkv``; set after sizes are made small.
        arguments: of the configuration's class, where it cannot be made without any.
        inputs: of the forward of a model of this type, beside text, or in place of what text would be.
        instead: what a part of the tiny model stands in for, as the reader of an outcome is told it.
        lacks: why no tiny model is tried: what it would want and nothing here gives.
    """

    reason: str
    values: Mapping[str, Any] = MappingProxyType({})
    arguments: Mapping[str, Any] = MappingProxyType({})
    inputs: Mapping[str, Given] = NOTHING
    instead: str = ""
    lacks: str = ""


_WANTS_TIMM = "its default backbone wants timm"

_RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [8, 12, 16, 24],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}

_CONVNEXT = {"model_type": "convnext", "hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1]}

_FOUR_STAGES = {"backbone_config": _RESNET | {"out_features": ["stage1", "stage2", "stage3", "stage4"]}}
_LAST_STAGE = {"backbone_config": _RESNET | {"out_features": ["stage4"]}}
_LAST_THREE_STAGES = {"backbone_config": _RESNET | {"out_features": ["stage2", "stage3", "stage4"]}, "timm_kwargs": {}}
_NOT_TIMM = "its images are seen by a backbone of transformers in place of timm's"

_LARGE_PIXELS = {"pixel_values": Given(("batch", 3, LARGE_IMAGE, LARGE_IMAGE))}

_PYRAMID_REASON = "the stages of its images end in widths that other parts name"

_PYRAMID = {"encode_proj_layers": [2], "decoder_in_channels": [64, 64, 64], "num_queries": 10}

_HGNET = {
    "encoder_in_channels": [16, 24, 32],
    "backbone_config.embedding_size": 8,
    "backbone_config.hidden_sizes": [8, 16, 24, 32],
    "backbone_config.stem_channels": [3, 8, 8],
    "backbone_config.stage_in_channels": [8, 8, 16, 24],
    "backbone_config.stage_mid_channels": [8, 8, 8, 8],
    "backbone_config.stage_out_channels": [8, 16, 24, 32],
    "backbone_config.stage_num_blocks": [1, 1, 1, 1],
    "backbone_config.stage_numb_of_layers": [1, 1, 1, 1],
}

_STATES_OF_BOTH = {
    "vision_features": Given(("batch", 16, "hidden_size")),
    "text_features": Given(("batch", "length", "hidden_size")),
    "vision_pos_encoding": Given(("batch", 16, "hidden_size")),
}

_OF_GRIDS = Hint(
    "its images are rows of patches, and their sizes are told in patches",
    inputs={"pixel_values": Given((1, 3, 4, 64)), "target_sizes": Given((1, 2), 4)},
)

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

_OF_ANOTHER = "its inputs are keys and values of another model's layers, by the kinds of these layers"

_LISTS = "its inputs are lists of tensors, one for each scale of an image"

_SESSION = "its input is a session, which holds the frames of a video and what was found in them"

_UNSAID_DROPOUT = "its layers read a dropout that its configuration gets within another"

_UNSAID_TOKEN = "its forward reads a token that its configuration lacks"

_DOUBLED = Hint("its filters are doubled six times", {"num_filters": 2})

HINTS: Mapping[str, Hint] = MappingProxyType(
    {
        "align": Hint(
            "factors of the widths and depths of its images",
            {
                "vision_config.width_coefficient": 0.25,
                "vision_config.depth_coefficient": 0.1,
                "vision_config.hidden_dim": 320,
            },
        ),
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
        "bridgetower_vision_model": Hint("its input is called an image", inputs={"image": Given(("batch", 3, 16, 16))}),
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
        "conditional_detr": Hint(_WANTS_TIMM, _LAST_STAGE, instead=_NOT_TIMM),
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
        "d_fine": Hint(_PYRAMID_REASON, _PYRAMID | _HGNET | {"head_dim": 16}, inputs=_LARGE_PIXELS),
        "dab-detr": Hint(_WANTS_TIMM, _LAST_STAGE, instead=_NOT_TIMM),
        "dbrx": Hint(
            "its attention reads a value that its defaults lack",
            {"attn_config.rope_theta": 10000.0, "attn_config.clip_qkv": 8.0},
        ),
        "deepseek_ocr2_text": Hint("its defaults have no kinds of MLPs", {"mlp_layer_types": ["dense", "sparse"]}),
        "deepseek_ocr2_vision": Hint(
            "its first tower ends in the width of the second", {"sam_config.downsample_channels": [8, 48]}
        ),
        "deformable_detr": Hint(_WANTS_TIMM, _FOUR_STAGES, instead=_NOT_TIMM),
        "deimv2": Hint(_PYRAMID_REASON, _PYRAMID | _HGNET | {"head_dim": 16}, inputs=_LARGE_PIXELS),
        "depth_pro": Hint(
            "it sees patches of an image at several scales",
            {"patch_size": 16, "intermediate_hook_ids": [1, 0]},
            inputs=_LARGE_PIXELS,
        ),
        "detr": Hint(_WANTS_TIMM, _LAST_STAGE, instead=_NOT_TIMM),
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
        "dots3_note_vision_encoder": Hint(
            "its adapter is as wide as it; a layer has fewer experts than the others, and no fewer than a token takes",
            {"adapter_in_dim": 48, "per_layer_config": {1: {"num_local_experts": 2}}},
        ),
        "edgetam_video": Hint(_SESSION, lacks=_SESSION),
        "efficientnet": Hint(
            "factors of its widths and depths", {"width_coefficient": 0.25, "depth_coefficient": 0.1, "hidden_dim": 320}
        ),
        "emu3": Hint(_NO_WORDS, {"vocabulary_map": {"<image>": 127}}),
        "emu3_vqgan": Hint("it is as wide as its last stage", {"hidden_size": 32}),
        "ernie4_5_vl_moe_text": Hint(
            "the first two sections of its rotary embeddings are alike",
            {"rope_parameters.mrope_section": [3, 3, 2]},
        ),
        "esm": Hint("its defaults have no vocabulary", {"vocab_size": 100, "pad_token_id": 0, "mask_token_id": 99}),
        "fast_vlm": Hint(
            _WANTS_TIMM, {"vision_config": _RESNET | {"hidden_size": 24}}, inputs=_LARGE_PIXELS, instead=_NOT_TIMM
        ),
        "florence_vision": Hint(
            "its images are called hidden states",
            inputs={"hidden_states": Given(("batch", 3, LARGE_IMAGE, LARGE_IMAGE))},
        ),
        "fun_asr_nano_encoder": Hint(
            "several frames side by side are what it hears",
            inputs={"input_features": Given(("batch", 32, 112)), "input_features_mask": Given(("batch", 32), 1)},
        ),
        "gemma3n": Hint(
            "its default image tower wants timm; tokens of images and of sounds follow those of text",
            {
                "vision_config": _CONVNEXT
                | {"hidden_size": 24, "vocab_size": 10, "vocab_offset": 100, "rms_norm_eps": 1e-6},
                "vision_soft_tokens_per_image": 4,
                "audio_config.vocab_size": 18,
                "audio_config.vocab_offset": 110,
                "audio_soft_tokens_per_image": 4,
            },
            inputs={
                **_LARGE_PIXELS,
                "input_features": Given(("batch", 64, "audio_config.input_feat_size")),
                "input_features_mask": Given(("batch", 64), True),
            },
            instead=_NOT_TIMM,
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
        "grounding-dino": Hint(
            "it keeps as many queries as its images have places, or fewer", {"num_queries": 10}, inputs=_LARGE_PIXELS
        ),
        "informer": Hint(_UNSAID_LENGTH, _SERIES),
        "inkling2_vision": Hint(
            "its pixels are cut into squares of four patches",
            inputs={"pixel_values": Given((("batch", 16), 8, 8, 3)), "image_grid_thw": Given(("batch", 3), (1, 4, 4))},
        ),
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
        "levit": Hint("a patch is what four convolutions make of it", {"patch_size": 16, "image_size": 64}),
        "lfm2_moe": Hint(
            "its defaults have no kinds of layers", {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1}
        ),
        "lilt": Hint("six parts of a box are one hidden state", {"hidden_size": 96}),
        "lw_detr": Hint(
            "its defaults have no scales of its images, which are cut into windows",
            {
                "backbone_config.image_size": 64,
                "projector_scale_factors": [1.0],
                "projector_in_channels": [64],
                "num_feature_levels": 1,
                "num_queries": 10,
                "group_detr": 2,
            },
            inputs=_LARGE_PIXELS,
        ),
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
        "minicpm_ocr_vision": _OF_GRIDS,
        "minicpmv4_6_vision": _OF_GRIDS,
        "minicpmv4_7_vision": _OF_GRIDS,
        "mm-grounding-dino": Hint(
            "it keeps as many queries as its images have places, or fewer", {"num_queries": 10}, inputs=_LARGE_PIXELS
        ),
        "molmo2": Hint(
            "an image token is pooled of four patches, by their places",
            {"adapter_config.hidden_size": 48, "adapter_config.vision_feature_layer": [1, 0]},
            inputs={
                "pixel_values": Given(("batch", "vision_config.num_position_embeddings", 48)),
                "image_token_pooling": Given((("batch", 2), 4), "count"),
                "image_grids": Given(("batch", 4), 1),
            },
        ),
        "molmo2_adapter": Hint(
            "an image token is pooled of four patches, by their places",
            inputs={
                "image_features": Given(("batch", 16, ("hidden_size", 2))),
                "pooled_patches_idx": Given((6, 4), "count"),
            },
        ),
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
        "omdet-turbo": Hint(
            "its default backbone wants timm, and it finds what is told in words",
            _LAST_THREE_STAGES
            | {
                "num_queries": 10,
                "encoder_in_channels": [12, 16, 24],
                "vision_features_channels": [48, 48, 48],
                "class_embed_dim": 64,
                "apply_layernorm_after_vision_backbone": False,
                "disable_custom_kernels": True,
            },
            inputs=_LARGE_PIXELS
            | {
                "classes_input_ids": Given((4, "length"), "tokens"),
                "classes_attention_mask": Given((4, "length"), 1),
                "tasks_input_ids": Given(("batch", "length"), "tokens"),
                "tasks_attention_mask": Given(("batch", "length"), 1),
                "classes_structure": Given(("batch",), 2),
            },
            instead=_NOT_TIMM,
        ),
        "oneformer": Hint(
            "it is told its task in words",
            {"conv_dim": 64, "mask_dim": 64},
            inputs={
                "pixel_values": Given(("batch", 3, LARGE_IMAGE, LARGE_IMAGE)),
                "task_inputs": Given(("batch", "task_seq_len"), "tokens"),
            },
        ),
        "paddleocr_vl_vision": Hint(
            "the patches of its images have rows of their own",
            inputs={
                "pixel_values": Given((1, ("batch", 16), 3, "patch_size", "patch_size")),
                "grid_thw": Given(("batch", 3), (1, 4, 4)),
            },
        ),
        "perceiver": Hint(
            "its latents have sizes of their own, and it answers as many tokens as it has positions",
            {"d_latents": 64, "num_latents": 16, "num_self_attends_per_block": 2, "max_position_embeddings": 12},
        ),
        "perception_lm": Hint(
            _WANTS_TIMM,
            {
                "vision_config": {
                    "model_type": "vit",
                    "hidden_size": 48,
                    "intermediate_size": 80,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 4,
                    "image_size": 16,
                    "patch_size": 4,
                    "model_args": {"embed_dim": 48},
                }
            },
            instead=_NOT_TIMM,
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
            "its layers read a value that its configuration lacks", {"initializer_range": 0.02}
        ),
        "pp_doclayout_v3": Hint(_PYRAMID_REASON, _PYRAMID | _HGNET | {"x4_feat_dim": 8}, inputs=_LARGE_PIXELS),
        "pp_doclayout_v4": Hint(_PYRAMID_REASON, _PYRAMID | _HGNET, inputs=_LARGE_PIXELS),
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
            "its layers read a size that its configuration lacks", {"shared_expert_intermediate_size": 40}
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
        "rt_detr": Hint(_PYRAMID_REASON, _PYRAMID | {"encoder_in_channels": [16, 32, 64]}, inputs=_LARGE_PIXELS),
        "rt_detr_v2": Hint(_PYRAMID_REASON, _PYRAMID | {"encoder_in_channels": [16, 32, 64]}, inputs=_LARGE_PIXELS),
        "sam2": Hint(
            "the stages of its images have numbers of their own, and sizes that other parts name",
            {
                "vision_config.backbone_config.image_size": [64, 64],
                "vision_config.backbone_config.hidden_size": 8,
                "vision_config.backbone_config.blocks_per_stage": [1, 1, 2, 1],
                "vision_config.backbone_config.embed_dim_per_stage": [8, 16, 32, 64],
                "vision_config.backbone_config.window_size_per_stage": [4, 2, 2, 2],
                "vision_config.backbone_config.global_attention_blocks": [3],
                "vision_config.backbone_config.num_query_pool_stages": 3,
                "vision_config.backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
                "vision_config.fpn_hidden_size": 64,
                "prompt_encoder_config.hidden_size": 64,
                "prompt_encoder_config.image_size": 64,
                "prompt_encoder_config.patch_size": 16,
            },
            inputs=_LARGE_PIXELS,
        ),
        "sam2_video": Hint(_SESSION, lacks=_SESSION),
        "sam3_detr_decoder": Hint(
            "it reads the states of an image and of a text",
            inputs=_STATES_OF_BOTH,
        ),
        "sam3_detr_encoder": Hint(_LISTS, lacks=_LISTS),
        "sam3_lite_text_detr_decoder": Hint(
            "it reads the states of an image and of a text",
            inputs=_STATES_OF_BOTH,
        ),
        "sam3_lite_text_detr_encoder": Hint(_LISTS, lacks=_LISTS),
        "sam3_lite_text_mask_decoder": Hint(_LISTS, lacks=_LISTS),
        "sam3_mask_decoder": Hint(_LISTS, lacks=_LISTS),
        "sam3_tracker": Hint(
            "its images, prompts and masks have sizes that other parts name",
            {
                "vision_config.fpn_hidden_size": 64,
                "prompt_encoder_config.hidden_size": 64,
                "prompt_encoder_config.image_size": 16,
                "prompt_encoder_config.patch_size": 4,
                "vision_config.backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
            },
        ),
        "sam3_tracker_video": Hint(_SESSION, lacks=_SESSION),
        "sam3_video": Hint(_SESSION, lacks=_SESSION),
        "sapiens2": Hint(
            "key/value heads of a layer are told by its number", {"num_key_value_heads_per_layer": [4, 2]}
        ),
        "seggpt": Hint(
            "it is shown what to do with an image by another, above it",
            {"image_size": [32, 16]},
            inputs={
                "pixel_values": Given(("batch", 3, 16, 16)),
                "prompt_pixel_values": Given(("batch", 3, 16, 16)),
                "prompt_masks": Given(("batch", 3, 16, 16)),
            },
        ),
        "superglue": Hint(
            "it matches points of two images, and their descriptions are its states",
            {"hidden_size": 64, "keypoint_detector_config.descriptor_decoder_dim": 64},
            inputs={"pixel_values": Given(("batch", 2, 3, LARGE_IMAGE, LARGE_IMAGE))},
        ),
        "t5gemma2_decoder": Hint(
            _UNSAID_DROPOUT, {"dropout_rate": 0.0}, inputs={"encoder_hidden_states": Given(("batch", 7, "hidden_size"))}
        ),
        "t5gemma2_encoder": Hint(_UNSAID_DROPOUT, {"text_config.dropout_rate": 0.0}),
        "t5gemma2_text": Hint(_UNSAID_DROPOUT, {"dropout_rate": 0.0}),
        "table-transformer": Hint(_WANTS_TIMM, _LAST_STAGE, instead=_NOT_TIMM),
        "time_series_transformer": Hint(_UNSAID_LENGTH, _SERIES),
        "timesfm": Hint(
            "it wants to know how often a series was measured",
            inputs={
                "past_values": Given(("batch", "context_length")),
                "past_values_padding": Given(("batch", "context_length"), 0),
                "freq": Given(("batch", 1), 1),
            },
        ),
        "unlimited_ocr_vision": Hint(
            "its first tower ends in the width of the second",
            {"sam_config.downsample_channels": [8, 48]},
            inputs=_LARGE_PIXELS,
        ),
        "unlimited_ocr_vision_encoder": Hint(
            "it reads the states of another tower in place of patches",
            inputs={"patch_embeds": Given(("batch", "hidden_size", 4, 4))},
        ),
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
        "voxtral_realtime": Hint(
            "eight frames of what it hears are added to each token",
            inputs={"input_features": Given(("batch", "audio_config.num_mel_bins", (8, "length")))},
        ),
        "voxtral_realtime_encoder": Hint(
            "a mask of its frames is as long as what is left of them",
            inputs={"input_features": Given(("batch", "num_mel_bins", 64))},
        ),
        "xclip_vision_model": Hint(
            "it sees several frames of a video", inputs={"pixel_values": Given((("batch", "num_frames"), 3, 16, 16))}
        ),
        "xmod": Hint("it has adapters for languages, and wants to know which", {"default_language": "en_XX"}),
        "zamba": Hint(
            "tied layers are there from the second on",
            {"layers_block_type": ["linear_attention", "hybrid"] * 2, "num_hidden_layers": 4},
        ),
        "zoedepth": Hint(
            "a layer has a width of its own, and it is not trained on labels",
            {"bottleneck_features": 64},
            inputs={"pixel_values": Given(("batch", 3, 16, 16))},
        ),
    }
)
"""By model type, sorted; for a sub-configuration of this type too."""
