"""Attention without data: which masks there are is known beforehand, since nothing is padded.

transformers looks at the values of a mask to leave it out, and cannot look at a mask without values. So masks and
attention are computed by functions that are registered for this purpose: they are those of transformers, and leave out
the mask that transformers leaves out where all tokens count.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor, nn

# No name holds "flash", by which transformers knows those packages and packs what they are given.
_MASKED, _UNMASKED = "patchkit_counted", "patchkit_counted_unmasked"


def count_attention(model: nn.Module) -> bool:
    """Let the configurations of a model name functions that can be counted, in place.

    ``sdpa`` keeps the masks that it needs. The flash attention packages and flex attention need no mask of
    ``[tokens, tokens]``, and keep queries, keys, values, output and one number for each query, as ``sdpa`` without a
    mask does: by that they are counted. Any other implementation is left as it is.

    Returns:
        Whether the model is to be given a mask of its tokens; so it is unless this release of transformers lets
        nobody register a function for masks.
    """
    if not _register():
        return False
    for module in model.modules():
        config = vars(module).get("config")
        name = getattr(config, "_attn_implementation", None)
        if isinstance(name, str):
            counted = _MASKED if name == "sdpa" else _UNMASKED if "flash" in name or "flex" in name else None
            if counted is not None:
                vars(config)["_attn_implementation_internal"] = counted
    return True


@cache
def _register() -> bool:
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.integrations.sdpa_attention import sdpa_attention_forward
        from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    except ImportError:  # transformers before 4.53
        return False
    masks = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"]

    def attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
        # What dropout zeroes within attention is drawn again in backward by the kernels of a device, and not kept.
        return sdpa_attention_forward(module, query, key, value, mask, **{**options, "dropout": 0.0})

    def mask_of(*args: Any, **options: Any) -> Any:
        return None if _is_left_out(options) else masks(*args, **options)

    def no_mask(*args: Any, **options: Any) -> None:
        return None

    for name, function in ((_MASKED, mask_of), (_UNMASKED, no_mask)):
        AttentionInterface.register(name, attention)
        AttentionMaskInterface.register(name, function)
    return True


def _is_left_out(options: dict[str, Any]) -> bool:
    """Whether every token sees all, or all before it: what ``_ignore_causal_mask_sdpa`` and its like ask of values."""
    window, length = options.get("local_size"), options.get("kv_length")
    if options.get("allow_is_bidirectional_skip", False):
        return window is None
    causal = options.get("allow_is_causal_skip", True)
    return bool(causal and (window is None or (length is not None and length < window)))
