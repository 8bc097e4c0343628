"""The configuration of Acme's model."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class AcmeConfig(PretrainedConfig):  # type: ignore[misc]
    """Sizes and constants.

    Args:
        vocab_size: tokens.
        hidden_size: width of the hidden states.
        intermediate_size: width between the projections of the MLP.
        num_hidden_layers: layers.
        num_attention_heads: query heads.
        num_key_value_heads: key and value heads, each shared by several query heads.
        rope_theta: base of the rotary frequencies.
        norm_eps: added to the mean square before its root.
        residual_multiplier: what each branch is multiplied by before it is added.
        kwargs: of transformers.
    """

    model_type = "acme"

    def __init__(
        self,
        vocab_size: int = 32000,
        hidden_size: int = 1024,
        intermediate_size: int = 2816,
        num_hidden_layers: int = 16,
        num_attention_heads: int = 16,
        num_key_value_heads: int = 4,
        rope_theta: float = 10000.0,
        norm_eps: float = 1e-6,
        residual_multiplier: float = 0.7,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.rope_theta = rope_theta
        self.norm_eps = norm_eps
        self.residual_multiplier = residual_multiplier
        super().__init__(**kwargs)
