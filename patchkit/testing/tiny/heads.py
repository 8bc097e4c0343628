"""From what a person names, a model type, a configuration or a class, to a configuration and a model class."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import transformers
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from patchkit.errors import NoModelError, TinyModelError
from patchkit.testing.tiny.shrinking import sub_configs

HEADS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "causal": ("MODEL_FOR_CAUSAL_LM_MAPPING",),
        "image-text": ("MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",),
        "seq2seq": ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING",),
        "encoder": ("MODEL_FOR_MASKED_LM_MAPPING",),
        "speech-seq2seq": ("MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING",),
        "ctc": ("MODEL_FOR_CTC_MAPPING",),
        "vision": ("MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",),
        "multimodal": ("MODEL_FOR_MULTIMODAL_LM_MAPPING",),
        "base": ("MODEL_MAPPING",),
        "task": (
            "MODEL_FOR_PRETRAINING_MAPPING",
            "MODEL_FOR_OBJECT_DETECTION_MAPPING",
            "MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING",
            "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING",
            "MODEL_FOR_DEPTH_ESTIMATION_MAPPING",
            "MODEL_FOR_IMAGE_MATTING_MAPPING",
            "MODEL_FOR_KEYPOINT_DETECTION_MAPPING",
            "MODEL_FOR_KEYPOINT_MATCHING_MAPPING",
            "MODEL_FOR_POSE_ESTIMATION_MAPPING",
            "MODEL_FOR_TABLE_RECOGNITION_MAPPING",
            "MODEL_FOR_DECISION_MAPPING",
            "MODEL_FOR_BACKBONE_MAPPING",
        ),
        "part": (),
    }
)
"""What a model ends in, and the mappings of transformers that have such models, by configuration class.

``part`` has the types that are in none of these mappings. Most are parts of others, and are built as the class of
their modelling file that takes their configuration.
"""


def types_with(head: str) -> list[str]:
    """The model types of the transformers that is imported that have a model with this head, sorted.

    Args:
        head: a key of :data:`HEADS`.
    """
    if head == "part":
        return sorted(set(CONFIG_MAPPING_NAMES).difference(*(types_with(other) for other in HEADS if other != "part")))
    names = (getattr(modeling_auto, f"{mapping}_NAMES", {}) for mapping in HEADS[head])
    return sorted({name for found in names for name in found})


class Source(NamedTuple):
    """Where a tiny model starts.

    Attributes:
        config_class: of the model; None where a configuration is given.
        config: the user's own; None for the defaults of the class.
        model_class: takes this configuration.
    """

    config_class: type[Any]
    config: Any
    model_class: type[PreTrainedModel]


def source_of(given: Any, head: str | type[PreTrainedModel] | None) -> Source:
    """The configuration and the model class that are meant.

    Args:
        given: a model type of transformers, a configuration, its class, or a model class, which knows its own.
        head: one of :data:`HEADS`, or the model class; None for the first that has a model of this configuration.

    Raises:
        TinyModelError: nothing of this kind is known, or there is no model with this head.
    """
    if isinstance(given, type) and issubclass(given, PreTrainedModel):
        head, given = given, getattr(given, "config_class", None)
    if isinstance(given, str):
        given = _class_of_type(given)
    config = None if isinstance(given, type) else given
    config_class = given if isinstance(given, type) else type(given)
    if not hasattr(config_class, "to_dict") or not hasattr(config_class, "model_type"):
        raise TinyModelError(
            f"no configuration: {given!r}; pass a model type, a configuration, its class, or a model class"
        )
    model_class = _model_class(config_class, head)
    try:
        wanted = getattr(model_class, "config_class", None)
    except ImportError as error:  # it stands for a class that wants another package
        raise TinyModelError(" ".join(str(error).split())) from error
    if isinstance(wanted, type) and not issubclass(config_class, wanted):
        # The text model of a multimodal configuration takes a part of it.
        if config is not None:
            config = next((inner for _, inner in sub_configs(config) if isinstance(inner, wanted)), config)
        if wanted in getattr(config_class, "sub_configs", {}).values():
            config_class = wanted
    return Source(config_class, config, model_class)


def _class_of_type(model_type: str) -> type[Any]:
    try:
        found: type[Any] = CONFIG_MAPPING[model_type]
    except KeyError:
        raise TinyModelError(
            f"transformers has no model type {model_type!r}; pass the class of its configuration or of the model"
        ) from None
    return found


def _model_class(config_class: type[Any], head: str | type[PreTrainedModel] | None) -> type[PreTrainedModel]:
    if isinstance(head, type):
        return head
    if head is not None and head not in HEADS:
        raise TinyModelError(f"unknown head {head!r}; known: {', '.join(HEADS)}, or a model class")
    for name in (head,) if head else HEADS:
        for mapping in HEADS[name]:
            for found in _in_mapping(mapping, config_class):
                return found
        if name == "part" and (own := _class_of_part(config_class)) is not None:
            return own
    if head == "part":
        raise NoModelError(f"no class takes {config_class.__name__}, which describes a part of other models")
    wanted = f"with head {head!r}" if head else "in any mapping"
    raise TinyModelError(f"{config_class.__name__} has no model {wanted}; pass the model class as head")


def _in_mapping(mapping: str, config_class: type[Any]) -> Iterator[type[PreTrainedModel]]:
    classes = getattr(modeling_auto, mapping, None)
    try:
        found = classes[config_class] if classes is not None and config_class in classes else ()
    except (ValueError, ImportError):  # it names a class that does not exist, or that wants another package
        found = ()
    yield from found if isinstance(found, (list, tuple)) else (found,)
    # A configuration that has two model types is looked up by the last one, which may not be the one that is mapped.
    name = getattr(modeling_auto, f"{mapping}_NAMES", {}).get(getattr(config_class, "model_type", ""))
    for one in name if isinstance(name, (list, tuple)) else (name,):
        cls = getattr(transformers, one, None) if one else None
        if (
            isinstance(cls, type)
            and issubclass(cls, PreTrainedModel)
            and getattr(cls, "config_class", None) is config_class
        ):
            yield cls


def _class_of_part(config_class: type[Any]) -> type[PreTrainedModel] | None:
    """The last class of the modelling files that takes this configuration; one that is called a model before others."""
    package, _, file = config_class.__module__.rpartition(".")
    if not file.startswith("configuration_"):
        return None
    names = [f"{package}.{one.name}" for one in pkgutil.iter_modules(importlib.import_module(package).__path__)]
    found: list[type[PreTrainedModel]] = [
        one
        for name in names
        if name.rpartition(".")[2].startswith("modeling_")
        for one in vars(importlib.import_module(name)).values()
        if isinstance(one, type) and issubclass(one, PreTrainedModel) and one.__module__ == name
    ]
    own = [
        one
        for one in found
        if getattr(one, "config_class", None) is config_class and one.forward is not nn.Module.forward
    ]
    return max(reversed(own), key=lambda one: one.__name__.endswith("Model"), default=None)
