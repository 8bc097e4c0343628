"""A configuration with small sizes, nested ones included."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard

from patchkit.testing.tiny.layers import is_layer_indices, kept_layers, per_layer, renumbered
from patchkit.testing.tiny.sizes import (
    ENDINGS,
    FIELDS,
    IMAGE,
    LARGE_IMAGE,
    LAYER_FIELDS,
    LAYERS,
    OF_STAGES,
    SIZES,
    SWITCHES,
    TO_TEXT,
    TOWER_WORDS,
    Tower,
)
from patchkit.testing.tiny.tokens import SpecialTokens, names_tokens

_TWO_SIDES = frozenset({"image_size", "patch_size", "img_size", "max_image_size", "window_size", "patch_sizes"})
_SIDES = frozenset({"image_size", "img_size", "crop_size", "input_size", "resolution"})
_LARGE = 10**9
_COUNTED_LAYERS = ("feature_layer", "feature_layers")  # of another tower, from the end where negative
_NEEDED_TOKENS = frozenset(
    {"image_token_id", "image_token_index", "video_token_index"}
)  # processors set them where configurations do not
_SECTIONS = (2, 3, 3)
_ROTARY = ("rope_parameters", "rope_scaling")


@dataclass(frozen=True)
class Variant:
    """What is done otherwise than usual.

    Attributes:
        no_cache: the configuration says not to keep keys and values.
        all_heads: as many key/value heads as heads.
        narrow_heads: the heads of a text model are as wide together as its hidden states.
        whole_rotary: every entry of a head is rotated.
        one_width: every tower has the sizes of a text model.
        decoder: the configuration says that the model is a decoder.
        filled: sizes that are None get a value.
        rotary_by_kind: each kind of layer has rotary parameters of its own.
        rotary_sections: rotary embeddings of text models have sections for time, height and width.
        large_images: images are large enough to be halved several times.
        whole_widths: the widths of stages are as they were.
    """

    no_cache: bool = False
    all_heads: bool = False
    narrow_heads: bool = False
    whole_rotary: bool = False
    one_width: bool = False
    rotary_sections: bool = False
    rotary_by_kind: bool = False
    filled: bool = False
    decoder: bool = False
    large_images: bool = False
    whole_widths: bool = False


USUAL = Variant()


def is_config(value: Any) -> bool:
    """Whether a value is a configuration, of whatever release or package."""
    return hasattr(value, "to_dict") and hasattr(value, "__dict__") and not isinstance(value, type)


def sub_configs(config: Any) -> Iterator[tuple[str, Any]]:
    """The configurations that a configuration holds, by name."""
    for name, value in list(vars(config).items()):
        if is_config(value):
            yield name, value


def all_sub_configs(config: Any) -> Iterator[Any]:
    """The configurations within a configuration, and those within them."""
    for _, inner in sub_configs(config):
        yield inner
        yield from all_sub_configs(inner)


def tower_of(name: str, config: Any, around: Tower) -> Tower:
    """Which tower a sub-configuration describes, by its name or else by what it asks for."""
    for word_source in (name, str(getattr(config, "model_type", ""))):
        for tower, words in TOWER_WORDS:
            if any(word in word_source for word in words):
                return tower
        if "text" in word_source:
            return "text"
    fields = vars(config)
    if "vocab_size" not in fields and {"patch_size", "image_size", "num_channels"} & set(fields):
        return "vision"
    if "vocab_size" not in fields and {"num_mel_bins", "conv_dim", "sampling_rate"} & set(fields):
        return "audio"
    return around


def shrunk(config: Any, variant: Variant = USUAL) -> Any:
    """A copy of a configuration with small sizes, in its sub-configurations too.

    What the sizes do not decide stays: activations, biases, norms, dropout, kinds of rotary embeddings and of layers.

    Args:
        config: any object with attributes; never changed.
        variant: what is done otherwise than usual.
    """
    config = copy.deepcopy(config)
    _complete(config)
    if getattr(config, "_attn_implementation", None) not in (None, "eager", "sdpa"):
        config._attn_implementation = "eager"  # the others need a GPU or a package
    _shrink(config, tower_of("", config, "text"), variant, SpecialTokens())
    return config


def as_it_is(config: Any) -> Any:
    """A copy of a configuration with its own sizes, and nothing in it that is drawn unseeded or fetched."""
    config = copy.deepcopy(config)
    for part in (config, *all_sub_configs(config)):
        for name in vars(part).keys() & SWITCHES.keys() - {"image_grid_pinpoints"}:
            setattr(part, name, SWITCHES[name])
    return config


def _complete(config: Any) -> None:
    """Give sub-configurations that are None their class's defaults, unless the class is chosen by a model type."""
    for name, kind in (getattr(type(config), "sub_configs", None) or {}).items():
        if vars(config).get(name, config) is None and hasattr(kind, "to_dict"):
            setattr(config, name, kind())


def _shrink(config: Any, tower: Tower, variant: Variant, tokens: SpecialTokens) -> None:
    if variant.one_width:
        tower = "text"
    for name, inner in sub_configs(config):
        _shrink(inner, tower_of(name, inner, tower), variant, tokens)
    old = {name: value for name, value in vars(config).items() if not is_config(value)}
    new: dict[str, Any] = {}
    count = max([value for name, value in old.items() if name in LAYER_FIELDS and _is_number(value)], default=0)
    lists = per_layer(old, count) if count > 1 else {}
    kept = kept_layers(count, lists.values(), LAYERS) if count else list(range(LAYERS))
    for name, value in old.items():
        bare = name.lstrip("_")
        if value is None and bare in _NEEDED_TOKENS:
            new[name] = tokens.shortened(bare, _LARGE)
        elif value is None and variant.filled and bare in FIELDS:
            new[name] = _small(bare, _LARGE, tower)
        elif bare in SWITCHES:
            new[name] = SWITCHES[bare]
        elif names_tokens(bare):
            new[name] = tokens.shortened(bare, value)
        elif name in lists:
            entries = [value[index] for index in kept]
            most = LAYERS if "depth" in bare else _LARGE
            small = (min(_small(bare, entry, tower), most) if _is_number(entry) else entry for entry in entries)
            new[name] = type(value)(small)
        elif bare in LAYER_FIELDS and _is_number(value):
            new[name] = min(value, len(kept))
        elif count and is_layer_indices(bare, value, count):
            new[name] = type(value)(renumbered(value, kept))
        elif bare.endswith(_COUNTED_LAYERS) and isinstance(value, (list, tuple)) and all(map(_is_number, value)):
            new[name] = type(value)(min(max(entry, -LAYERS), LAYERS) for entry in value)
        elif _is_number(value):
            new[name] = _small(bare, value, tower)
        elif bare in _TWO_SIDES and isinstance(value, (list, tuple)) and all(map(_is_number, value)):
            new[name] = type(value)(_small(bare, side, tower) for side in value)
        elif isinstance(value, (list, tuple)) and len(value) > 1 and all(map(_is_number, value)):
            new[name] = type(value)(value if variant.whole_widths else _small_sequence(bare, value))
    if tower != "text" and {"embed_dim", "hidden_size"} <= set(old):
        new["hidden_size"] = SIZES["text"].hidden  # that which it gives to the text model
    if tower != "text" and "depths" in old:
        new |= {name: min(old[name], size) for name, size in OF_STAGES.items() if _is_number(old.get(name))}
    _arrange_heads(old, new, tower, variant)
    if variant.large_images:
        new |= {name: _enlarged(value) for name, value in new.items() if name in _SIDES}
    _arrange_stages(old, new)
    if variant.decoder and "is_decoder" in old:
        new["is_decoder"] = True
    if variant.no_cache and "use_cache" in old:
        new["use_cache"] = False
    for name, value in new.items():
        if old[name] != value or type(old[name]) is not type(value):
            setattr(config, name, value)
    overrides = getattr(old.get("_heterogeneity_spec"), "per_layer_overrides", None)
    if overrides:
        config.per_layer_config = _overrides(overrides, old, vars(config), kept)
    for name in _ROTARY:
        if isinstance(old.get(name), Mapping):
            rotary = dict(old[name])
            if variant.rotary_sections and tower == "text":
                rotary.setdefault("mrope_section", list(_SECTIONS))
            rotary = _rotary(rotary, _rotated(old), _rotated(vars(config)), variant)
            kinds = dict.fromkeys(new.get("layer_types") or ())
            if variant.rotary_by_kind and kinds and not set(kinds) & set(rotary):
                rotary = {kind: {"rope_type": "default", "rope_theta": 10000.0} | rotary for kind in kinds}
            setattr(config, name, rotary)


def _overrides(
    overrides: Mapping[int, Mapping[str, Any]], old: Mapping[str, Any], new: Mapping[str, Any], kept: Sequence[int]
) -> dict[int, dict[str, Any]]:
    """What single layers have otherwise: in the same ratio to what the others have."""

    def small(name: str, value: Any) -> Any:
        if not _is_number(value) or not _is_number(new.get(name)):
            return value
        return max(1, round(new[name] * value / old[name]))

    return {
        kept.index(index): {name: small(name, value) for name, value in layer.items()}
        for index, layer in overrides.items()
        if index in kept
    }


def _is_number(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _small(name: str, value: int, tower: Tower) -> int:
    size = FIELDS.get(name)
    if size is None:
        size = next((size for ending, size in ENDINGS if name.endswith(ending)), None)
        if any(part in name for part in TO_TEXT) and (size == "hidden" or value >= 128):
            return min(value, SIZES["text"].hidden)
        if size is None:
            return value
        for other, words in TOWER_WORDS:
            if any(word in name for word in words):
                tower = other
    if isinstance(size, str):
        size = int(getattr(SIZES[tower], size))
    return min(value, size)


def _small_sequence(name: str, value: Sequence[int]) -> list[int]:
    """Widths or depths of stages, at most."""
    if "depth" in name or name.startswith(("num_blocks", "layers")):
        return [min(entry, 1) for entry in value]
    if name.endswith("multiplier"):
        return [1] * len(value)
    smallest = min(value)
    if smallest >= 32 and max(value) >= 256:  # widths keep their ratios
        unit = 8 if "dim" in name or "size" in name or "channel" in name else smallest
        return [max(1, entry * unit // smallest) for entry in value]
    return list(value)


def _enlarged(value: Any) -> Any:
    """The side of an image, or both, in large."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(_enlarged, value))
    return LARGE_IMAGE if value == IMAGE else value


def _arrange_stages(old: Mapping[str, Any], new: dict[str, Any]) -> None:
    """The last stages of a backbone are its outputs, as many as before, and it has layers for them."""
    names, indices = old.get("stage_names"), old.get("_out_indices")
    layers = next((name for name in sorted(LAYER_FIELDS) if _is_number(old.get(name))), None)
    if not names or not indices or layers is None or len(names) != old[layers] + 1:
        return
    new[layers] = max(new[layers], len(indices))
    new["stage_names"] = list(names[: new[layers] + 1])
    new["_out_indices"] = type(indices)(range(new[layers] + 1 - len(indices), new[layers] + 1))
    new["_out_features"] = new["stage_names"][-len(indices) :]


def _arrange_heads(old: Mapping[str, Any], new: dict[str, Any], tower: Tower, variant: Variant) -> None:
    """Heads that are compatible with each other."""
    sizes = SIZES[tower]
    for name in new:
        kind = FIELDS.get(name)
        if kind == "key_value_heads" and variant.all_heads and _is_number(new[name]):
            new[name] = new.get("num_attention_heads", sizes.heads)
        if kind == "head_dim" and (variant.narrow_heads or tower != "text") and _is_number(new[name]):
            new[name] = min(old[name], sizes.hidden // sizes.heads)
    # Heads that share the hidden states of a state space model, made wider, still do.
    wide = ("num_heads", "head_dim", "expand", "hidden_size")
    if all(_is_number(old.get(name)) for name in wide):
        heads, _, expand, hidden = (new[name] for name in wide)
        if old["num_heads"] * old["head_dim"] == old["expand"] * old["hidden_size"]:
            new["head_dim"] = expand * hidden // heads
    # Multi-head latent attention calls the rotated part of a head its dimension.
    for part in ("qk_rope_head_dim", "qk_head_dim"):
        if _is_number(old.get(part)) and old[part] == old.get("head_dim"):
            new["head_dim"] = new[part]


class _Rotated(NamedTuple):
    """The width of a head, and of the part that multi-head latent attention rotates; 0 for what is not told."""

    head: int
    part: int


def _rotated(values: Mapping[str, Any]) -> _Rotated:
    part = values.get("qk_rope_head_dim")
    part = int(part) if _is_number(part) else 0
    if _is_number(values.get("head_dim")):
        return _Rotated(int(values["head_dim"]), part)
    hidden, heads = values.get("hidden_size"), values.get("num_attention_heads")
    head = int(hidden) // int(heads) if hidden and heads and _is_number(hidden) and _is_number(heads) else 0
    return _Rotated(part or head, part)


def _rotary(parameters: Mapping[str, Any], old: _Rotated, new: _Rotated, variant: Variant) -> dict[str, Any]:
    """Rotary parameters for smaller heads: an even share of them, and lists of sections and factors of that length."""
    small = dict(parameters)
    factor = small.get("partial_rotary_factor")
    if factor and variant.whole_rotary:
        factor = small["partial_rotary_factor"] = 1.0
    elif factor and new.head:
        width = new.part if old.part and int(old.head * factor) == old.part else int(new.head * factor)
        width += width % 2
        if width != int(new.head * factor):
            factor = small["partial_rotary_factor"] = width / new.head
    half = int(new.head * (factor or 1.0)) // 2
    for name, value in parameters.items():
        if isinstance(value, Mapping):
            small[name] = _rotary(value, old, new, variant)
        elif half and name.endswith("section") and isinstance(value, (list, tuple)):
            whole = sum(value)
            shares = [max(1, half * share // whole) for share in value]
            shares[-1] += half - sum(shares)
            small[name] = shares
        elif half and name.endswith("_factor") and isinstance(value, (list, tuple)):
            small[name] = list(value[:half])
    return small
