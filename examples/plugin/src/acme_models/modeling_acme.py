"""Acme's model: grouped-query attention with a norm on the values, and a gated MLP, with names of their own."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from acme_models.configuration_acme import AcmeConfig


class AcmeNorm(nn.Module):
    """Root mean square norm over the last dimension, computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x, and what is returned: ``[..., size]``."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class AcmeAttention(nn.Module):
    """Grouped-query attention with rotary embeddings."""

    def __init__(self, config: AcmeConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.groups = config.num_attention_heads // config.num_key_value_heads
        shared = config.num_key_value_heads * self.head_dim
        self.wq = nn.Linear(config.hidden_size, config.hidden_size, bias=True)
        self.wk = nn.Linear(config.hidden_size, shared, bias=False)
        self.wv = nn.Linear(config.hidden_size, shared, bias=False)
        self.wo = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.value_norm = AcmeNorm(self.head_dim, config.norm_eps)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor, cache: DynamicCache | None) -> Tensor:
        """x ``[batch, seq, hidden]``, mask ``[batch, 1, seq, keys]``, true where a query sees a key."""
        batch, length, _ = x.shape
        query = self.wq(x).view(batch, length, -1, self.head_dim).transpose(1, 2)
        key = self.wk(x).view(batch, length, -1, self.head_dim).transpose(1, 2)
        value = self.value_norm(self.wv(x).view(batch, length, -1, self.head_dim)).transpose(1, 2)
        query, key = rotated(query, *rotary), rotated(key, *rotary)
        if cache is not None:
            key, value = cache.update(key, value, self.layer)
        key = key.repeat_interleave(self.groups, dim=1)
        value = value.repeat_interleave(self.groups, dim=1)
        states = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        attended: Tensor = self.wo(states.transpose(1, 2).reshape(batch, length, -1))
        return attended


class AcmeFeedForward(nn.Module):
    """A gated MLP."""

    def __init__(self, config: AcmeConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x, and what is returned: ``[batch, seq, hidden]``."""
        mixed: Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return mixed


class AcmeLayer(nn.Module):
    """Attention and MLP, each behind a norm."""

    def __init__(self, config: AcmeConfig, layer: int) -> None:
        super().__init__()
        self.attention = AcmeAttention(config, layer)
        self.feed_forward = AcmeFeedForward(config)
        self.attention_norm = AcmeNorm(config.hidden_size, config.norm_eps)
        self.feed_forward_norm = AcmeNorm(config.hidden_size, config.norm_eps)
        self.multiplier = config.residual_multiplier

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], mask: Tensor, cache: DynamicCache | None) -> Tensor:
        """See :meth:`AcmeAttention.forward`."""
        x = x + self.multiplier * self.attention(self.attention_norm(x), rotary, mask, cache)
        mixed: Tensor = x + self.multiplier * self.feed_forward(self.feed_forward_norm(x))
        return mixed


class AcmePreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """What transformers needs to know."""

    config_class = AcmeConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ("AcmeLayer",)


class AcmeModel(AcmePreTrainedModel):
    """The layers, without a head."""

    def __init__(self, config: AcmeConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(AcmeLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = AcmeNorm(config.hidden_size, config.norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """input_ids, attention_mask ``[batch, seq]``; the hidden states are ``[batch, seq, hidden]``."""
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if past_key_values is None and use_cache:
            past_key_values = DynamicCache()
        before = past_key_values.get_seq_length() if past_key_values is not None else 0
        positions = torch.arange(before, before + x.shape[1], device=x.device)
        mask = (positions[:, None] >= torch.arange(before + x.shape[1], device=x.device))[None, None]
        if attention_mask is not None:
            padded = attention_mask.bool()[:, None, None] & mask
            mask = padded | ~padded.any(-1, keepdim=True)  # what stands at padding sees all: no row is empty
        rotary = self.rotary(positions[None] if position_ids is None else position_ids, x.dtype)
        for layer in self.layers:
            if self.gradient_checkpointing and self.training:
                x = self._gradient_checkpointing_func(layer.__call__, x, rotary, mask, past_key_values)
            else:
                x = layer(x, rotary, mask, past_key_values)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(x), past_key_values=past_key_values)

    def rotary(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``[batch, 1, seq, head_dim]`` for positions ``[batch, seq]``."""
        width = self.config.hidden_size // self.config.num_attention_heads
        steps = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32)
        angles = positions[:, None, :, None].float() * self.config.rope_theta ** (-steps / width)
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos().to(dtype), angles.sin().to(dtype)


class AcmeForCausalLM(AcmePreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """The layers with a head for the next token."""

    def __init__(self, config: AcmeConfig) -> None:
        super().__init__(config)
        self.model = AcmeModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self, input_ids: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any
    ) -> CausalLMOutputWithPast:
        """labels ``[batch, seq]``, -100 where there is none; the logits are ``[batch, seq, vocab]``."""
        outputs = self.model(input_ids=input_ids, **kwargs)
        logits = self.lm_head(outputs.last_hidden_state)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=outputs.past_key_values)


def rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """x ``[batch, heads, seq, head_dim]`` turned by the angles of its positions."""
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-second, first], dim=-1) * sine
