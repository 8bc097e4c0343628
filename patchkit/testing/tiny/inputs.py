"""Inputs for a tiny model that nobody has a recipe for: found by asking the model."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from patchkit.errors import TinyModelError
from patchkit.testing.parity import IGNORED_LABEL
from patchkit.testing.random_state import preserved_random_state, seeded
from patchkit.testing.tiny.given import given_form
from patchkit.testing.tiny.hints import HINTS
from patchkit.testing.tiny.media import Form, audio_forms, image_forms
from patchkit.testing.tiny.outcome import first_tensor, in_short
from patchkit.testing.tiny.states import beside_tokens, state_forms
from patchkit.testing.tiny.tokens import FIRST_TEXT_TOKEN, LAST_TEXT_TOKEN, token_fields

_BEFORE_MEDIA = 2
_MOST_CORRECTIONS = 3
_KINDS = ("image", "audio", "state")


def tiny_inputs_for(model: nn.Module, *, batch: int = 2, length: int = 12, seed: int = 1) -> dict[str, Tensor]:
    """Keyword arguments for a model's ``forward``, on its device, found by trying.

    A text model gets ``input_ids``, ``attention_mask`` and ``labels`` (int64, ``[batch, seq]``). A model with a vision
    or an audio tower gets what it wants beside them, with as many tokens in place of an image or a sound as it
    makes of one; where both towers take inputs, both. Labels are left out where the model takes none.

    Args:
        model: a transformers model, or a PEFT model around it. Its state and all random state are left as they were.
        batch: rows.
        length: text tokens of a row; image and audio tokens come on top.
        seed: all values depend on this only.

    Raises:
        TinyModelError: no inputs are found that the model takes.
    """
    found = search_inputs(model, batch=batch, length=length, seed=seed)
    if found.inputs is None:
        raise TinyModelError(f"no inputs for {type(_base_model(model)).__name__}: {found.why}")
    return found.inputs


@dataclass(frozen=True)
class Search:
    """What was found for a model.

    Attributes:
        inputs: of its forward; None if it takes none of those that were tried.
        missing: towers that the model has and these inputs leave out, and ``labels`` if it takes others.
        why: what failed before, in one line.
    """

    inputs: dict[str, Tensor] | None
    missing: tuple[str, ...]
    why: str


def search_inputs(model: nn.Module, *, batch: int = 2, length: int = 12, seed: int = 1) -> Search:
    """As :func:`tiny_inputs_for`, and what was tried in vain."""
    base = _base_model(model)
    reasons: list[str] = []
    unlabelled: list[tuple[Form, dict[str, Tensor]]] = []

    def settled(form: Form) -> dict[str, Tensor] | None:
        try:
            inputs = _settled(base, form, batch, length, seed)
            unlabelled.append((form, inputs))
            return _labelled(base, inputs)
        except Exception as error:  # a forward may raise anything for what it was not made for
            reasons.append(f"{', '.join(form) or 'text'}: {in_short(error)}")
            return None

    with preserved_random_state(base):
        accepted = inspect.signature(base.forward).parameters
        hint = HINTS.get(str(getattr(base.config, "model_type", "")))
        if hint is not None and (form := given_form(hint.inputs, base.config, accepted, batch, length, seed + 4)):
            if (inputs := settled(form)) is not None:
                return Search(inputs, (), _listed(reasons))
            if unlabelled:  # what it takes is written down, and labels of another kind are not among it
                return Search(unlabelled[0][1], (), _listed(reasons))
        forms = {kind: list(_forms_of(kind, base, accepted, batch, seed)) for kind in _KINDS}
        forms = {kind: found for kind, found in forms.items() if found}
        taken: dict[str, tuple[Form, dict[str, Tensor]]] = {}
        for kind, candidates in forms.items():
            for form in candidates:
                if (inputs := settled(form)) is not None:
                    taken[kind] = form, inputs
                    break
        attempts: list[tuple[Form, dict[str, Tensor] | None]] = []
        if len(forms) > 1 and len(taken) != 1:  # both at once; also where neither is taken alone
            pairs = itertools.product(*([taken[kind][0]] if kind in taken else forms[kind][:3] for kind in forms))
            attempts += [({name: value for form in pair for name, value in form.items()}, None) for pair in pairs]
        attempts += list(taken.values())
        if "input_ids" in accepted:
            attempts.append(({}, None))
        for form, known in attempts:
            inputs = known if known is not None else settled(form)
            if inputs is not None:
                missing = tuple(kind for kind in forms if not _is_of(kind, form))
                return Search(inputs, missing, _listed(reasons))
        for form, inputs in unlabelled:  # labels of another kind, such as the boxes of an image
            missing = tuple(kind for kind in forms if not _is_of(kind, form))
            return Search(inputs, ("labels", *missing), _listed(reasons))
    unknown = f"no tokens, images, sounds or states are among the arguments of its forward: {', '.join(accepted)}"
    return Search(None, tuple(forms), _listed(reasons) or unknown)


def _listed(reasons: Sequence[str]) -> str:
    return "; ".join(dict.fromkeys(reasons))


def _forms_of(kind: str, model: Any, accepted: Mapping[str, Any], batch: int, seed: int) -> Iterator[Form]:
    if kind == "state" and ("input_ids" in accepted or "pixel_values" in accepted):
        return iter(())
    make = {"image": image_forms, "audio": audio_forms, "state": state_forms}[kind]
    return make(model.config, accepted, batch, torch.Generator().manual_seed(seed + len(kind)))


def _base_model(model: nn.Module) -> Any:
    unwrap = getattr(model, "get_base_model", None)  # PEFT
    return unwrap() if callable(unwrap) else model


def _settled(model: Any, form: Form, batch: int, length: int, seed: int) -> dict[str, Tensor]:
    """All inputs but labels, with the number of image and audio tokens that the model wants."""
    accepted = inspect.signature(model.forward).parameters
    counts = {kind: _tokens_wanted(model, kind, form, batch) for kind in _KINDS if _is_of(kind, form)}
    for _ in range(_MOST_CORRECTIONS):
        inputs = _with_text(model, accepted, form, counts, batch, length, seed)
        try:
            _run(model, inputs)
        except (ValueError, RuntimeError, IndexError) as error:
            corrected = _corrected(counts, str(error), batch, _width(model))
            if corrected is None or corrected == counts:
                raise
            counts = corrected
        else:
            return inputs
    raise TinyModelError(f"it wants another number of tokens each time, {counts} at last")


def _is_of(kind: str, form: Form) -> bool:
    if kind == "image":
        return any(name.startswith(("pixel", "flattened_patches")) or name.endswith("grid_thw") for name in form)
    if kind == "audio":
        return any(name.startswith(("input_features", "input_values", "audio_")) for name in form)
    return bool(form) and not any(_is_of(other, form) for other in ("image", "audio"))


def _run(model: Any, inputs: Mapping[str, Tensor]) -> Any:
    training = model.training
    try:
        with torch.no_grad(), seeded(0):
            return model(**inputs)
    finally:
        model.train(training)


def _tokens_wanted(model: Any, kind: str, form: Form, batch: int) -> int:
    """How many tokens stand for one image or sound: as many as the tower makes hidden states of it."""
    method = getattr(model, f"get_{kind}_features", None)
    if not callable(method):
        return 1
    names = inspect.signature(method).parameters
    try:
        with torch.no_grad(), seeded(0):
            found = method(**{name: value for name, value in form.items() if name in names})
    except Exception:  # the model itself says it better
        return 1
    features = getattr(found, "pooler_output", None)
    features = found if features is None else features
    rows = sum(tensor.numel() // tensor.shape[-1] for tensor in _tensors(features))
    return max(1, rows // batch)


def _width(model: Any) -> int:
    try:
        return int(model.get_input_embeddings().weight.shape[-1])
    except (AttributeError, NotImplementedError):  # it takes no tokens
        return 1


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _tensors(entry)


def _corrected(counts: Mapping[str, int], message: str, batch: int, width: int) -> dict[str, int] | None:
    """The counts that an error asks for, such as ``tokens: 2, features 32``; None if it is about something else.

    Args:
        counts: that gave the error, for one row.
        message: of the error.
        batch: rows.
        width: of a token's embedding.
    """
    if not counts:
        return None
    found = re.search(r"tokens\D{0,20}(\d+)\D{0,60}features\D{0,20}(\d+)", message)
    if found is None:
        return None
    kind = next((kind for kind in counts if kind in message.lower()), next(iter(counts)))
    if found[1] == found[2]:  # tokens are counted, and of features the entries
        return {**counts, kind: max(1, counts[kind] // width)}
    return {**counts, kind: max(1, int(found[2]) // batch)}


def _with_text(
    model: Any, accepted: Mapping[str, Any], form: Form, counts: Mapping[str, int], batch: int, length: int, seed: int
) -> dict[str, Tensor]:
    parameter = next(model.parameters())
    inputs: dict[str, Tensor] = dict(form)
    if "input_ids" in accepted and not {"input_ids", "inputs_embeds"} & set(form):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randint(FIRST_TEXT_TOKEN, _last_token(model.config), (batch, length), generator=generator)
        media = torch.tensor([_media_tokens(model.config, counts)] * batch, dtype=torch.int64).reshape(batch, -1)
        inputs["input_ids"] = torch.cat([rows[:, :_BEFORE_MEDIA], media, rows[:, _BEFORE_MEDIA:]], dim=1)
        if "attention_mask" in accepted:
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if "image_attention_mask" in form:  # which images each token attends to
            images = form["pixel_values"].shape[1]
            inputs["image_attention_mask"] = torch.ones(*inputs["input_ids"].shape, images, dtype=torch.int64)
        if "bbox" in accepted:  # where on a page each token stands
            corners = torch.tensor([1, 1, 9, 9], device=inputs["input_ids"].device)
            inputs["bbox"] = corners.repeat(*inputs["input_ids"].shape, 1)
        for name in accepted:  # of another tokenizer's text, such as what an image is asked about
            if name.startswith(("qformer_", "protein_")):
                inputs[name] = torch.ones_like(rows) if name.endswith("mask") else rows
        generator = torch.Generator().manual_seed(seed + 3)
        inputs |= beside_tokens(model.config, accepted, inputs["input_ids"], generator)
        image = _media_token(model.config, "image")
        for name in ("mm_token_type_ids", "token_type_ids"):
            if name in accepted and counts and image is not None:
                inputs[name] = (inputs["input_ids"] == image).long()
    if model.config.is_encoder_decoder and "decoder_input_ids" in accepted and "decoder_input_ids" not in form:
        generator = torch.Generator().manual_seed(seed + 2)
        ids = torch.randint(FIRST_TEXT_TOKEN, _last_token(model.config), (batch, length - 2), generator=generator)
        inputs["decoder_input_ids"] = ids
    return {
        name: value.to(parameter.device, parameter.dtype if value.is_floating_point() else value.dtype)
        for name, value in inputs.items()
    }


def _last_token(config: Any) -> int:
    """Text tokens stand below it: all of them, where a vocabulary is shorter than the usual one."""
    size = getattr(config, "vocab_size", None)
    short = isinstance(size, int) and FIRST_TEXT_TOKEN < size < LAST_TEXT_TOKEN
    return size if short and isinstance(size, int) else LAST_TEXT_TOKEN


def _media_tokens(config: Any, counts: Mapping[str, int]) -> list[int]:
    tokens: list[int] = []
    fields = dict(token_fields(config))
    for kind, count in counts.items():
        token = _media_token(config, kind)
        if token is None:
            continue
        starts, ends = _MARKERS[kind]
        tokens += [fields[name] for name in starts if name in fields][:1]
        tokens += [token] * count
        tokens += [fields[name] for name in ends if name in fields][:1]
    return tokens


_MARKERS = {
    "image": (
        ("vision_start_token_id", "image_start_token_id", "boi_token_id", "boi_token_index", "im_start_id"),
        ("vision_end_token_id", "image_end_token_id", "eoi_token_id", "eoi_token_index", "im_end_id"),
    ),
    "audio": (
        ("audio_start_token_id", "boa_token_id", "boa_token_index"),
        ("audio_end_token_id", "eoa_token_id", "eoa_token_index"),
    ),
}


def _media_token(config: Any, kind: str) -> int | None:
    names = [f"{kind}_token_id", f"{kind}_token_index", f"{kind}_patch_id", f"{kind}_pad_token_id"]
    if kind == "image":
        names += ["video_token_index"]
    else:
        names += ["audio_placeholder_token_id", "speech_token_id"]
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    return None


def _labelled(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs with the labels that give a finite loss, if the model takes labels."""
    if "labels" not in inspect.signature(model.forward).parameters or "labels" in inputs:
        return inputs
    reasons = []
    for labels in _labels(model, inputs):
        rest = {name: value for name, value in inputs.items() if name != "decoder_input_ids"}
        for candidate in (rest | {"labels": labels}, inputs | {"labels": labels}):
            try:
                loss = getattr(_run(model, candidate), "loss", None)
            except Exception as error:  # labels of another form
                reasons.append(in_short(error))
                continue
            if isinstance(loss, Tensor) and loss.isfinite().all():
                return candidate
            reasons.append(f"a loss {loss}")
    raise TinyModelError("no labels: " + "; ".join(dict.fromkeys(reasons)))


def _labels(model: Any, inputs: Mapping[str, Tensor]) -> Iterator[Tensor]:
    """Labels in the forms that heads want: of each token, of a decoder's tokens, of a whole row."""
    ids = inputs.get("decoder_input_ids", inputs.get("input_ids"))
    if ids is not None:
        media = [token for kind in _KINDS if (token := _media_token(model.config, kind)) is not None]
        special = torch.isin(ids, torch.tensor(media, dtype=ids.dtype, device=ids.device))
        yield ids.masked_fill(special | (ids > LAST_TEXT_TOKEN), IGNORED_LABEL)
        books = getattr(model.config, "num_codebooks", None)
        if (
            isinstance(books, int) and ids.shape[0] % books == 0
        ):  # a row for each codebook, and labels beside each other
            yield ids.reshape(-1, books, ids.shape[1]).transpose(1, 2)
    logits = first_tensor(_run(model, inputs))
    if logits is None:
        return
    batch, classes = logits.shape[0], logits.shape[-1]
    yield torch.arange(1, batch + 1, device=logits.device) % classes
    if logits.ndim == 3 and classes > 4:  # connectionist temporal classification: fewer labels than frames
        yield torch.arange(1, 1 + 3 * batch, device=logits.device).reshape(batch, 3) % (classes - 1) + 1
