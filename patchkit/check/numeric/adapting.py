"""Adapters on a tiny model of any type: on as many of its linear layers as plain PEFT takes and runs."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from patchkit.check.numeric.tiny_instances import Around, CannotBuildError
from patchkit.testing import add_lora, run
from patchkit.testing.tiny.heads import source_of
from patchkit.testing.tiny.outcome import all_tensors, first_tensor, in_short

if TYPE_CHECKING:
    from patchkit.testing import Inputs
    from patchkit.testing.parity import Run

_REFUSED = ("out_proj", "conv1d")
"""PEFT takes no adapter on layers of these names in some state-space models."""

_TWO_CACHES = "got multiple values for keyword argument 'use_cache'"

_LOWEST = -1e4
"""What a model rules out has a logit below this."""


class Adapted(NamedTuple):
    """A model with adapters that plain PEFT runs.

    Attributes:
        model: with a loss, in train mode, unpatched; it was not run itself.
        outcome: of one run of a copy of it.
        without: which linear layers have no adapter, or what else is unusual, and why; empty if nothing is.
    """

    model: nn.Module
    outcome: Run
    without: str = ""


class _Way(NamedTuple):
    """How adapters are put on a model.

    Attributes:
        targets: as PEFT takes them.
        without: see :class:`Adapted`; empty for the usual way.
        inputs_require_grad: whether what the embedding gives requires a gradient.
    """

    targets: str | list[str]
    without: str = ""
    inputs_require_grad: bool = False


def adapted(model: Any, inputs: Inputs, **lora_config: Any) -> Adapted:
    """Adapters on every linear layer, or, where plain PEFT fails with these, on those that it runs with.

    Args:
        model: a tiny model; left as it is.
        inputs: of its forward. Without labels the loss is that of :class:`AllOutputs`.
        lora_config: fields of :class:`peft.LoraConfig`; by default a rank of 4.

    Raises:
        Exception: plain PEFT fails in every way; the error is that of the usual one.
    """
    whole = model if "labels" in inputs else AllOutputs(model)
    first: Exception | None = None
    for way in _ways(model, whole):
        if way.inputs_require_grad and "does not require grad" not in str(first):
            continue
        try:
            reference = add_lora(
                copy.deepcopy(whole), target_modules=way.targets, task_type=None, **{"r": 4} | lora_config
            ).train()
            if way.inputs_require_grad:
                reference.get_base_model().enable_input_require_grads()
            # Of a copy: some keep what a forward has computed, and cannot be copied any more then.
            outcome = run(copy.deepcopy(reference), inputs, input_gradients=False)
        except Exception as error:  # PEFT and upstream may raise anything
            first = first or error
        else:
            return Adapted(reference, outcome, f"{way.without}: {in_short(first)}" if first is not None else "")
    assert first is not None  # there is a usual way
    raise first


def _ways(model: nn.Module, whole: nn.Module) -> Iterator[_Way]:
    yield _Way("all-linear")
    yield _Way("all-linear", "it wants inputs that require a gradient", inputs_require_grad=True)
    head = _output_embeddings(model)
    layers = {name: module for name, module in linear_layers(whole).items() if module is not head}
    plain = [name for name, module in layers.items() if type(module) in (nn.Linear, Conv1D)]
    for names in (plain, [name for name in plain if not name.endswith(_REFUSED)]):
        if names:
            left = sorted({name.rpartition(".")[2] for name in layers.keys() - set(names)})
            yield _Way(names, f"without adapters on {', '.join(left)}" if left else "its layers are named one by one")


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of a model that PEFT means by ``all-linear``, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))}


def has_linear_layers(model_type: str, head: str) -> bool:
    """Whether a model of the usual size has any; true if nobody can say. No memory is taken for its weights."""
    try:
        source = source_of(model_type, head)
        with torch.device("meta"):
            return bool(linear_layers(source.model_class(source.config_class())))
    except Exception:  # a constructor may raise anything, and some compute with numbers
        return True


def _output_embeddings(model: Any) -> nn.Module | None:
    try:
        found: nn.Module | None = model.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return found


class AllOutputs(Around):
    """A model that takes no labels: its first output as logits, and the cross-entropy of all outputs.

    Each floating-point tensor of the outputs counts with arbitrary classes, so that a layer which reaches any output
    gets a gradient.
    """

    def forward(self, **inputs: Any) -> SimpleNamespace:
        """The inputs of the model; ``logits`` have the shape of its first tensor, ``loss`` has none."""
        if "use_cache" not in inspect.signature(self.host.forward).parameters and not hasattr(self.config, "use_cache"):
            inputs.pop("use_cache", None)  # of a run; what has no cache hands it on to what does not know it
        try:
            outputs = self.host(**inputs)
        except TypeError as error:  # it hands on what it is given, and says itself what is cached
            if _TWO_CACHES not in str(error) or inputs.pop("use_cache", None) is None:
                raise
            outputs = self.host(**inputs)
        logits = first_tensor(outputs)
        if logits is None:
            raise CannotBuildError(f"{type(self.host).__name__} gives no tensor")
        losses = [_cross_entropy(one) for one in all_tensors(outputs) if one.requires_grad and one.numel() > 1]
        return SimpleNamespace(logits=logits, loss=torch.stack(losses).sum() if losses else logits.sum())


def _cross_entropy(tensor: Tensor) -> Tensor:
    """Of the last dimension, or of all entries where that has one entry only; in float64 for such, else in float32."""
    rows = tensor.reshape(-1, tensor.shape[-1]) if tensor.ndim and tensor.shape[-1] > 1 else tensor.reshape(1, -1)
    rows = (rows if rows.dtype is torch.float64 else rows.float()).clamp_min(_LOWEST)
    return F.cross_entropy(rows, torch.arange(len(rows), device=rows.device) % rows.shape[-1])
