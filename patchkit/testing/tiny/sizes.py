"""Small sizes, and the names by which configurations ask for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from patchkit.testing.tiny_models import VOCAB_SIZE

Tower = Literal["text", "vision", "audio"]
"""What a configuration describes. Each kind of tower has sizes of its own, so that a swapped one is a wrong shape."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of one tower.

    Attributes:
        hidden: of the hidden states.
        intermediate: of an MLP; no power of two.
        expert: of one expert's MLP.
        heads: attention heads.
        key_value_heads: fewer than heads, where the configuration has them.
        head_dim: of one head. Where a text configuration has this field, ``heads * head_dim`` differs from ``hidden``.
    """

    hidden: int
    intermediate: int
    expert: int
    heads: int
    key_value_heads: int
    head_dim: int


SIZES: Mapping[Tower, Sizes] = MappingProxyType(
    {
        "text": Sizes(hidden=64, intermediate=112, expert=40, heads=4, key_value_heads=2, head_dim=20),
        "vision": Sizes(hidden=48, intermediate=80, expert=24, heads=4, key_value_heads=2, head_dim=12),
        "audio": Sizes(hidden=32, intermediate=56, expert=24, heads=4, key_value_heads=2, head_dim=8),
    }
)

LAYERS = 2
"""Layers of a tower, where two show every kind of layer."""

PATCH, IMAGE, LARGE_IMAGE = 4, 16, 64
"""Sides of a patch, of an image, and of one that can be halved many times, in pixels."""


def _each(names: str, size: str | int) -> dict[str, str | int]:
    return dict.fromkeys(names.split(), size)


FIELDS: Mapping[str, str | int] = MappingProxyType(
    _each(
        "attention_hidden_size d_embed d_model dim emb_dim embed_dim embedding_dim embedding_size hidden_dim"
        " hidden_size hidden_size_global input_embedding_size lru_width model_dim n_embd output_embedding_size"
        " upsample_groups width"
        " word_embed_proj_dim",
        "hidden",
    )
    | _each(
        "d_ff d_inner decoder_ffn_dim dense_intermediate_size dff dim_ff encoder_ffn_dim feed_forward_size ffn_dim"
        " ffn_hidden_size intermediate_size intermediate_size_mlp mlp_dim n_inner shared_intermediate_size",
        "intermediate",
    )
    | _each(
        "expert_ffn_hidden_size expert_ffn_size moe_hidden_size moe_intermediate_size moe_latent_size"
        " moe_shared_expert_intermediate_size share_expert_dim shared_expert_intermediate_size"
        " shared_experts_intermediate_size",
        "expert",
    )
    | _each(
        "attention_heads decoder_attention_heads encoder_attention_heads n_head n_heads num_attention_heads"
        " num_decoder_attention_heads num_encoder_attention_heads num_heads num_sliding_attention_heads"
        " swa_num_attention_heads",
        "heads",
    )
    | _each(
        "kv_n_heads n_head_kv num_global_key_value_heads num_key_value_heads num_kv_heads num_query_groups"
        " swa_num_key_value_heads",
        "key_value_heads",
    )
    | _each(
        "attention_head_dim attention_head_size d_head d_kv dim_head head_dim kv_channels query_pre_attn_scalar"
        " swa_head_dim",
        "head_dim",
    )
    # Tokens and positions.
    | _each("decoder_vocab_size vocab_size vocab_size_per_layer_input", VOCAB_SIZE)
    | _each(
        "context_length max_2d_position_embeddings max_position_embeddings max_seq_len max_seq_length"
        " max_target_positions model_max_length n_ctx n_positions seq_len seq_length",
        256,
    )
    # Windows shorter than the inputs, or they would be as if they were not there.
    | _each("attention_window_size keep_window_size local_attention_window_len sliding_window sliding_window_size", 5)
    | _each("attention_chunk_size local_attention", 6)
    # Mixtures of experts: groups of experts, of which some are left out.
    | _each(
        "moe_num_experts n_routed_experts num_experts num_local_experts zero_expert_num",
        4,
    )
    | _each(
        "moe_k moe_top_k moe_topk n_group num_expert_group num_experts_per_tok num_experts_per_token top_k_experts", 2
    )
    | _each("moe_num_shared_experts n_shared_experts num_shared_experts topk_group", 1)
    # Multi-head latent attention.
    | _each("q_lora_rank o_lora_rank", 24)
    | _each("kv_lora_rank", 28)
    | _each("qk_nope_head_dim", 12)
    | _each("qk_rope_head_dim rotary_dim", 8)
    | _each("qk_head_dim v_head_dim", 20)
    | _each("index_head_dim", 16)
    | _each("index_n_heads", 2)
    | _each("index_topk", 6)
    # State space models, convolutions and linear attention: heads of 16 for the hidden states made twice as wide.
    | _each("mamba_d_state mamba_state_size ssm_state_size state_size", 8)
    | _each("linear_key_head_dim linear_head_dim", 8)
    | _each("linear_value_head_dim", 12)
    | _each("linear_num_key_heads", 2)
    | _each("linear_num_heads linear_num_value_heads", 4)
    | _each("mamba_d_head mamba_head_dim mamba_headdim", 16)
    | _each("mamba_n_heads mamba_num_heads n_mamba_heads", 8)
    | _each("mamba_d_ssm", 128)
    | _each("mamba_n_groups mamba_ngroups n_groups", 2)
    | _each("chunk_size mamba_chunk_size", 8)
    | _each("mamba_dt_rank time_step_rank", 6)
    # Layers of one kind among others.
    | _each("first_k_dense_replace num_dense_layers num_kv_shared_layers num_nextn_predict_layers", 1)
    | _each(
        "attn_layer_period cross_attention_frequency cross_layer_interval decoder_sparse_step expert_layer_period"
        " global_attn_every_n_layers layer_group_size sliding_window_pattern",
        2,
    )
    | _each("attn_layer_offset expert_layer_offset moe_layer_start_index", 1)
    # Images.
    | _each("crop_size image_size img_size input_size max_img_size resolution", IMAGE)
    | _each("encoder_stride patch_size", PATCH)
    | _each("num_patches num_position_embeddings", (IMAGE // PATCH) ** 2)
    | _each("max_image_size min_image_size", IMAGE)
    | _each("num_query_tokens resampler_n_latents resampler_num_latents latent_query_num", 6)
    | _each("pos_emb_height pos_emb_width", 8)
    | _each("output_channels post_conv_in_channels post_conv_mid_channels post_conv_out_channels", 16)
    | _each("base_channels latent_channels num_filters", 32)
    | _each("pooling_kernel_size", 2)
    | _each("mm_tokens_per_image", 4)
    | _each("hidden_size_per_layer_input", 12)
    | _each("encoder_hidden_size", SIZES["vision"].hidden)  # what a resampler or a decoder attends to
    # Audio.
    | _each("feature_size input_feat_size n_mel_bins num_mel_bins", 16)
    | _each("max_source_positions", 32)
    | _each("num_codebooks", 2)
    | _each("codebook_size num_embeddings audio_vocab_size", 32)
)
"""What a configuration's field becomes: the name of one of :class:`Sizes`, or a number. Smaller values stay."""

OF_STAGES: Mapping[str, int] = MappingProxyType({"embed_dim": 24, "patch_embeds_hidden_size": 24, "window_size": 2})
"""The width of the first of several stages, which is doubled from stage to stage, and windows for what is halved."""

LAYER_FIELDS = frozenset(
    {
        "conf_num_hidden_layers",
        "decoder_layers",
        "depth",
        "encoder_layers",
        "layers",
        "n_layer",
        "n_layers",
        "num_blocks",
        "num_decoder_layers",
        "num_encoder_layers",
        "num_hidden_layers",
        "num_layers",
        "num_layers_per_stack",
        "resampler_depth",
        "vision_layers",
    }
)
"""Fields that are a number of layers."""

ENDINGS: tuple[tuple[str, str | int], ...] = (
    ("group_vocab", 64),
    ("vocab_size", VOCAB_SIZE),
    ("intermediate_size", "intermediate"),
    ("ffn_dim", "intermediate"),
    ("hidden_size", "hidden"),
    ("hidden_dim", "hidden"),
    ("embed_dim", "hidden"),
    ("attention_heads", "heads"),
    ("key_value_heads", "key_value_heads"),
    ("num_heads", "heads"),
)
"""What a field that is not listed by its name becomes, by how it ends."""

TO_TEXT = ("adapter_out", "out_hidden", "output_dim", "projection", "projector", "text_hidden")
"""Parts of the names of a tower's fields that are as wide as the hidden states of the text model it feeds."""

TOWER_WORDS: tuple[tuple[Tower, tuple[str, ...]], ...] = (
    ("vision", ("vision", "vit", "image", "visual", "pixel")),
    ("audio", ("audio", "speech", "sound", "mel", "acoustic")),
)
"""Words of a sub-configuration's or a field's name that say which tower it is about."""

SWITCHES: Mapping[str, Any] = MappingProxyType(
    {
        # Two tiles side by side or one above the other.
        "image_grid_pinpoints": [[IMAGE, 2 * IMAGE], [2 * IMAGE, IMAGE]],
        # Drawn by NumPy, whose generator no comparison seeds; and what a draw leaves out gets no gradient.
        "apply_spec_augment": False,
        "layerdrop": 0.0,
        "encoder_layerdrop": 0.0,
        "decoder_layerdrop": 0.0,
        "mask_time_prob": 0.0,
        "mask_feature_prob": 0.0,
        # Would be fetched.
        "use_pretrained_backbone": False,
    }
)
"""Fields that get a value whatever they had."""
