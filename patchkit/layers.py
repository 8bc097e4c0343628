"""The embedding and the head: layers of an adapter library that are patched where they stand.

A token embedding and an ``lm_head`` are called by themselves and from many places: the model's forward, the multimodal
model around it, whoever asks for ``model.get_input_embeddings()``. So no caller is rewritten. The adapter's own layer
gets a subclass whose ``forward`` computes the fused function where that is equal, and calls upstream's where it is not.
Hooks on the layer run as ever (above all the one that gradient checkpointing puts on the embedding), because
``torch.nn.Module.__call__`` runs them, and the classes of the model around it stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn

from patchkit.adapters.embedding_readers import EMBEDDING_READERS
from patchkit.adapters.protocol import Reason
from patchkit.adapters.readers import READERS, carries_adapter
from patchkit.binding.classes import copying
from patchkit.binding.ownership import replaced_on_instance
from patchkit.binding.patch import PATCH, Patch, patch_of, replaced_since
from patchkit.binding.swap import original_class
from patchkit.describe import NOT_PATCHED, stand_in
from patchkit.module_tree import named_modules
from patchkit.reporting import Row
from patchkit.runtime.blocks import NO_ADAPTER, THEN_CALLED, Watched, is_for_hooks
from patchkit.runtime.checkpointing import as_in_forward, is_saved_by_hooks, watched
from patchkit.runtime.embedding import NO_EMBEDDING_ADAPTER, ReadyEmbedding, call_embedding, choose_embedding
from patchkit.runtime.levels import Ready, adapted, examine, input_of
from patchkit.runtime.precision import AdapterPrecision
from patchkit.upstream.live import read_method
from patchkit_kernels.lora.linear import lora_linear

LayerName = Literal["embedding", "head"]

NOT_LORA: Reason = "it is trained as a whole (modules_to_save): there is no adapter to fuse"


class Layer(NamedTuple):
    """An adapted layer of a model.

    Attributes:
        name: its qualified name in the model.
        module: the module.
        part: what it is.
    """

    name: str
    module: nn.Module
    part: LayerName


class PlannedLayer(NamedTuple):
    """What is to become of a layer: its class, and its row of the report."""

    module: nn.Module
    target: type[nn.Module]
    row: Row


def find_layers(model: nn.Module) -> Iterator[Layer]:
    """Every embedding with an adapter, and every head with one, in the order of ``model.named_modules()``.

    An embedding or head that PEFT wraps in another way (another tuner, ``modules_to_save``) is found too.
    """
    embeddings = set(_asked_for(model, "get_input_embeddings"))
    heads = set(_asked_for(model, "get_output_embeddings"))
    for name, module in named_modules(model):
        if type(module) in EMBEDDING_READERS or (id(module) in embeddings and _is_adapted(module)):
            yield Layer(name, module, "embedding")
        elif id(module) in heads and _is_adapted(module):
            yield Layer(name, module, "head")


def plan_layer(layer: Layer, precision: AdapterPrecision, *, wanted: bool) -> PlannedLayer:
    """Decide on the class of a layer.

    Args:
        layer: the layer.
        precision: in which its adapters are to compute.
        wanted: whether its part was asked for.

    Raises:
        RevertError: the layer is patched, and another class was put on top since.
    """
    module = layer.module
    cls = type(module)
    patch = patch_of(module)
    if patch is not None and wanted and patch.precision == precision and replaced_since(patch) is None:
        return PlannedLayer(module, cls, describe_layer(layer, cls))
    original = cls if patch is None else original_class(module, layer.name)
    target: type[nn.Module] | Reason
    if not wanted:
        target = f"switched off ({layer.part}=False)"
        return PlannedLayer(module, original, _row(layer, target, expected=True))
    target = replaced_on_instance(module) or layer_class(original, layer.part, precision)
    return PlannedLayer(module, original if isinstance(target, str) else target, describe_layer(layer, target))


def describe_layer(layer: Layer, target: type[nn.Module] | Reason | None) -> Row:
    """The row of a layer.

    Args:
        layer: the layer.
        target: the patched class that it has or would get, or why it gets none, or None if none was tried.
    """
    if isinstance(layer.module, ModulesToSaveWrapper):
        return _row(layer, NOT_LORA, expected=True)
    if target is None or isinstance(target, str):
        return _row(layer, NOT_PATCHED if target is None else target)
    patch: Patch = getattr(target, PATCH)
    owner = replaced_since(patch)
    replaced = replaced_on_instance(layer.module) or (owner and f"its forward was replaced by {owner}")
    if replaced is not None:  # by something that came after apply
        return _row(layer, replaced)
    reason = (_embedding_reason if layer.part == "embedding" else _head_reason)(layer.module, patch.precision)
    return _row(layer, reason, expected=reason in (NO_ADAPTER, NO_EMBEDDING_ADAPTER))


def _row(layer: Layer, reason: Reason | None, *, expected: bool = False) -> Row:
    level: Literal["fused", "upstream"] = "fused" if reason is None else "upstream"
    return Row(layer.name, type(layer.module).__name__, layer.part, level, reason or "", expected)


def _embedding_reason(module: nn.Module, precision: AdapterPrecision) -> Reason | None:
    """Why an embedding would not be fused now, or None."""
    base: Any = getattr(module, "base_layer", module)  # PEFT wraps the embedding, loralib's is one
    found = choose_embedding(module, torch.empty(0, dtype=torch.int64, device=base.weight.device), precision)
    return found if isinstance(found, str) else None


def _head_reason(module: nn.Module, precision: AdapterPrecision) -> Reason | None:
    """Why a head would not be fused now for an input of its own dtype, or None."""
    given = input_of(stand_in([module]), precision)
    reading = given if isinstance(given, str) else examine(module, given)
    if isinstance(reading, str):
        return reading
    return None if adapted(reading) else NO_ADAPTER


def _asked_for(model: nn.Module, method: str) -> Iterator[int]:
    """Identities of what the models inside a model name as their input or output embeddings."""
    for _, module in named_modules(model):
        getter = getattr(type(module), method, None)
        if getter is None:
            continue
        try:
            found = getter(module)
        except Exception:  # a backbone has none and says so somehow; what is no model may want arguments, or fail
            continue
        # No isinstance, which would ask the answer for its class: it is only compared with the model's modules.
        yield id(found)


def _is_adapted(module: nn.Module) -> bool:
    return isinstance(module, AuxiliaryTrainingWrapper) or carries_adapter(module)


ANOTHER_CALL: Reason = "it is called with other arguments, or its forward was replaced"

_cache: dict[tuple[object, ...], type[nn.Module]] = {}


def layer_class(cls: type[nn.Module], part: LayerName, precision: AdapterPrecision) -> type[nn.Module] | Reason:
    """The patched subclass of an adapter library's layer class, or why there is none."""
    readers: dict[type[nn.Module], Any] = EMBEDDING_READERS if part == "embedding" else READERS
    if cls not in readers:
        return f"it is a {cls.__module__}.{cls.__qualname__}"
    method = read_method(cls, "forward")
    if isinstance(method, str):
        return method
    key = (cls, method.attribute, part, precision)
    if key not in _cache:
        namespace = {
            "__module__": cls.__module__,
            "__qualname__": cls.__qualname__,
            "__doc__": cls.__doc__,
            "forward": _make_forward(cls, *_FUNCTIONS[part], precision),
            **copying(cls),
            PATCH: Patch(cls, None, frozenset({part}), precision, method.attribute, (), ()),
        }
        _cache[key] = type(cls.__name__, (cls,), namespace)
        readers[_cache[key]] = readers[cls]  # exact types are read, and this one is that library's layer too
    return _cache[key]


def _make_forward(
    cls: type[nn.Module],
    choose: Callable[[nn.Module, Tensor, AdapterPrecision], Any],
    compute: Callable[[Tensor, Any], Tensor],
    precision: AdapterPrecision,
) -> Callable[..., Any]:
    """A ``forward`` that tries a fused function, and runs the class's own where that is not equal, or was replaced."""
    own = cls.forward

    def forward(self: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        unknown = args or kwargs or cls.forward is not own
        ready = ANOTHER_CALL if unknown else choose(self, x, precision)

        def run(ready: Any) -> Any:
            if isinstance(ready, Watched):
                return watched(partial(run, ANOTHER_CALL), partial(run, ready.then), x.device)
            return cls.forward(self, x, *args, **kwargs) if isinstance(ready, str) else compute(x, ready)

        return as_in_forward(self, ready, run, _merge) if is_saved_by_hooks() else run(ready)

    return forward


def _merge(then: Any, now: Any) -> Any:
    """What to make of a layer in a recomputation, see :mod:`patchkit.runtime.checkpointing`."""
    if then is None or isinstance(then, str):
        return THEN_CALLED
    return Watched(then) if is_for_hooks(now) else now


def _choose_head(self: nn.Module, x: Tensor, precision: AdapterPrecision) -> Ready | Reason:
    given = input_of(x, precision)
    reading = given if isinstance(given, str) else examine(self, given)
    return NO_ADAPTER if isinstance(reading, Ready) and not adapted(reading) else reading


def _compute_embedding(ids: Tensor, ready: ReadyEmbedding) -> Tensor:
    return call_embedding(ready, ids)


def _compute_head(x: Tensor, ready: Ready) -> Tensor:
    return lora_linear(x, *ready)


_FUNCTIONS: dict[LayerName, tuple[Callable[..., Any], Callable[..., Tensor]]] = {
    "embedding": (choose_embedding, _compute_embedding),
    "head": (_choose_head, _compute_head),
}
