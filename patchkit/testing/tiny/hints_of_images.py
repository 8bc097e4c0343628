"""Hints for model types that see: detectors, image towers and their parts, and models around such a tower."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from patchkit.testing.tiny.given import Given
from patchkit.testing.tiny.hint import Hint
from patchkit.testing.tiny.sizes import LARGE_IMAGE

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

_LISTS = "its inputs are lists of tensors, one for each scale of an image"

_SESSION = "its input is a session, which holds the frames of a video and what was found in them"

OF_IMAGES: Mapping[str, Hint] = MappingProxyType(
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
        "bridgetower_vision_model": Hint("its input is called an image", inputs={"image": Given(("batch", 3, 16, 16))}),
        "conditional_detr": Hint(_WANTS_TIMM, _LAST_STAGE, instead=_NOT_TIMM),
        "d_fine": Hint(_PYRAMID_REASON, _PYRAMID | _HGNET | {"head_dim": 16}, inputs=_LARGE_PIXELS),
        "dab-detr": Hint(_WANTS_TIMM, _LAST_STAGE, instead=_NOT_TIMM),
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
        "dots3_note_vision_encoder": Hint(
            "its adapter is as wide as it; a layer has fewer experts than the others, and no fewer than a token takes",
            {"adapter_in_dim": 48, "per_layer_config": {1: {"num_local_experts": 2}}},
        ),
        "edgetam_video": Hint(_SESSION, lacks=_SESSION),
        "efficientnet": Hint(
            "factors of its widths and depths", {"width_coefficient": 0.25, "depth_coefficient": 0.1, "hidden_dim": 320}
        ),
        "emu3_vqgan": Hint("it is as wide as its last stage", {"hidden_size": 32}),
        "fast_vlm": Hint(
            _WANTS_TIMM, {"vision_config": _RESNET | {"hidden_size": 24}}, inputs=_LARGE_PIXELS, instead=_NOT_TIMM
        ),
        "florence_vision": Hint(
            "its images are called hidden states",
            inputs={"hidden_states": Given(("batch", 3, LARGE_IMAGE, LARGE_IMAGE))},
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
        "granite4_vision": Hint(
            "its defaults have no layers that exchange states",
            {
                "deepstack_layer_map": [(-1, 0)],
                "spatial_target_layers": [0, 0, 1, 1],
                "downsample_rate": "1/2",
                "qformer_config.num_attention_heads": 4,
            },
        ),
        "grounding-dino": Hint(
            "it keeps as many queries as its images have places, or fewer", {"num_queries": 10}, inputs=_LARGE_PIXELS
        ),
        "inkling2_vision": Hint(
            "its pixels are cut into squares of four patches",
            inputs={"pixel_values": Given((("batch", 16), 8, 8, 3)), "image_grid_thw": Given(("batch", 3), (1, 4, 4))},
        ),
        "levit": Hint("a patch is what four convolutions make of it", {"patch_size": 16, "image_size": 64}),
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
        "pp_doclayout_v3": Hint(_PYRAMID_REASON, _PYRAMID | _HGNET | {"x4_feat_dim": 8}, inputs=_LARGE_PIXELS),
        "pp_doclayout_v4": Hint(_PYRAMID_REASON, _PYRAMID | _HGNET, inputs=_LARGE_PIXELS),
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
        "table-transformer": Hint(_WANTS_TIMM, _LAST_STAGE, instead=_NOT_TIMM),
        "unlimited_ocr_vision": Hint(
            "its first tower ends in the width of the second",
            {"sam_config.downsample_channels": [8, 48]},
            inputs=_LARGE_PIXELS,
        ),
        "unlimited_ocr_vision_encoder": Hint(
            "it reads the states of another tower in place of patches",
            inputs={"patch_embeds": Given(("batch", "hidden_size", 4, 4))},
        ),
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
        "xclip_vision_model": Hint(
            "it sees several frames of a video", inputs={"pixel_values": Given((("batch", "num_frames"), 3, 16, 16))}
        ),
        "zoedepth": Hint(
            "a layer has a width of its own, and it is not trained on labels",
            {"bottleneck_features": 64},
            inputs={"pixel_values": Given(("batch", 3, 16, 16))},
        ),
    }
)
"""By model type, sorted."""
