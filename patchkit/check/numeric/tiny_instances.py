"""Tiny instances of a block's class, to verify it on the spot: a small model of the same classes, and inputs for it.

A forward's arguments differ from architecture to architecture (rotary embeddings, masks, cache positions, ...), so a
block is never called with guessed ones. The transformers model right around it is built again from its own
configuration with small sizes, and called as everybody calls it: with token ids. Whatever the block is given then is
what its own model gives it.

Where that does not work (a vision tower wants images, an encoder-decoder both of its inputs), the whole model is made
small by ``patchkit.testing.tiny_model_from``, with the inputs that it takes; and then the recipes of
``patchkit.testing.tiny_model`` are tried.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from patchkit.arch.discovery import Found
from patchkit.arch.spec import Architecture
from patchkit.module_tree import named_modules
from patchkit.testing import (
    Inputs,
    add_lora,
    tiny_inputs,
    tiny_inputs_for,
    tiny_model,
    tiny_model_from,
    tiny_models_of,
)
from patchkit.testing.tiny.outcome import first_tensor
from patchkit.testing.tiny_models import VOCAB_SIZE, initialise

_HEAD_DIM = 16
_LAYERS = 2
_BATCH, _LENGTH = 2, 10
_FEWEST_LOGITS = 256


class TinyInstance(NamedTuple):
    """A small model that holds instances of the class in question.

    Attributes:
        model: a PEFT model with adapters that contribute.
        inputs: keyword arguments of its ``forward``.
    """

    model: nn.Module
    inputs: Inputs


class CannotBuildError(Exception):
    """This way does not lead to a tiny instance; the message says why."""


def tiny_instances(model: nn.Module, found: Found, cls: type[nn.Module]) -> Iterator[TinyInstance | str]:
    """Tiny models with instances of a class, the closest to the user's model first, or why one cannot be built.

    Args:
        model: the user's model; only its configuration is read.
        found: a block of it.
        cls: the block's unpatched class.
    """
    ways: list[Callable[[], TinyInstance]] = [partial(_shrunk_host, model, found), partial(_small_model, model, found)]
    ways += [partial(_recipe, name, found.architecture) for name in tiny_models_of(found.architecture.name)]
    for way in ways:
        try:
            instance = way()
            _hold(instance.model, cls)
        except CannotBuildError as error:
            yield str(error)
        except Exception as error:  # upstream's constructors may raise anything for sizes they were not made for
            yield f"{type(error).__name__}: {' '.join(str(error).split())}"
        else:
            yield instance


def _shrunk_host(model: nn.Module, found: Found) -> TinyInstance:
    """The innermost transformers model around a block, with small sizes."""
    host = _host(model, found.name)
    if host is None:
        raise CannotBuildError("no transformers model is around it")
    config = shrunk_config(host.config)
    tiny = type(host)(config)
    initialise(tiny)
    return TinyInstance(_adapted(HiddenStates(tiny), found.architecture), _token_inputs())


def _small_model(model: nn.Module, found: Found) -> TinyInstance:
    """The outermost transformers model around a block, made small, with whatever inputs it takes."""
    hosts = _hosts(model, found.name)
    if not hosts:
        raise CannotBuildError("no transformers model is around it")
    tiny = tiny_model_from(hosts[0].config, head=type(hosts[0]))
    whole, inputs = comparable(tiny, tiny_inputs_for(tiny))
    return TinyInstance(_adapted(whole, found.architecture), inputs)


def comparable(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, Inputs]:
    """A model whose runs the harness can compare, with logits that say something and a loss, and its inputs.

    Args:
        model: without adapters.
        inputs: keyword arguments of its ``forward``.
    """
    with torch.no_grad():
        output = WithoutCache(model)(**inputs)
    logits = first_tensor(output)
    labelled = "labels" in inputs and all(hasattr(output, name) for name in ("logits", "loss"))
    if labelled and logits is not None and logits.numel() >= _FEWEST_LOGITS:
        return (model if _knows_caches(model) else WithoutCache(model)), inputs
    # A few logits, those of a classifier, say nothing of a rounding error: the hidden states below them do.
    below = getattr(model, "base_model", model)
    return FirstOutput(below), {key: inputs[key] for key in inputs if key != "labels"}


def _recipe(name: str, architecture: Architecture) -> TinyInstance:
    model = _adapted(tiny_model(name), architecture)
    return TinyInstance(model, tiny_inputs(name, model))


def _host(model: nn.Module, name: str) -> PreTrainedModel | None:
    hosts = _hosts(model, name)
    return hosts[-1] if hosts else None


def _hosts(model: nn.Module, name: str) -> list[PreTrainedModel]:
    """The transformers models around a module, from the outside in."""
    return [
        module
        for prefix, module in named_modules(model)
        if isinstance(module, PreTrainedModel) and (not prefix or name.startswith(f"{prefix}."))
    ]


def _adapted(model: Any, architecture: Architecture) -> nn.Module:
    names: set[str] = set()
    for block in architecture.blocks:
        inner = block.projections()
        names.update(inner)
    # A scaling that is no power of two, so that leaving it out or applying it twice rounds differently.
    adapted: nn.Module = add_lora(model, target_modules=sorted(names), task_type=None, r=4, lora_alpha=11)
    return adapted.train()


def _hold(model: nn.Module, cls: type[nn.Module]) -> None:
    """Make sure that a model has instances of a class.

    A subclass that somebody gave to the modules of a finished model is given to those of the tiny one, if it adds
    nothing to what the constructor makes.
    """
    if any(type(module) is cls for module in model.modules()):
        return
    bases = [
        module
        for module in model.modules()
        if type(module) in cls.__mro__[1:] and type(module) not in nn.Module.__mro__
    ]
    given = [module for module in bases if cls.__init__ is type(module).__init__]
    if not given:
        raise CannotBuildError(f"{type(model).__name__} of its configuration has no {cls.__name__}")
    for module in given:
        module.__class__ = cls


def shrunk_config(config: Any) -> Any:
    """A copy of a text model's configuration with small sizes: few heads, two layers, a short vocabulary.

    What the sizes do not decide stays: activations, biases, norms, rotary scaling, attention implementation (unless it
    needs a GPU), dropout. The ratio of query to key/value heads stays grouped if it was.
    """
    config = copy.deepcopy(config)
    layers = config.num_hidden_layers
    heads = config.num_attention_heads
    key_value_heads = getattr(config, "num_key_value_heads", None) or heads
    few = min(key_value_heads, 2)
    few_heads = few * min(heads // key_value_heads, 2)
    head_dim = _HEAD_DIM
    if _divides_the_head(config):
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    for name, value in list(vars(config).items()):
        if isinstance(value, (list, tuple)) and len(value) == layers:  # one entry for each layer
            setattr(config, name, value[:_LAYERS])
    sizes = {
        "num_hidden_layers": min(layers, _LAYERS),
        "num_attention_heads": few_heads,
        "num_key_value_heads": few,
        "head_dim": head_dim,
        "hidden_size": few_heads * head_dim,
        "intermediate_size": few_heads * head_dim * 3 // 2,
        "vocab_size": VOCAB_SIZE,
        "pad_token_id": 0,
    }
    for name, size in sizes.items():
        if hasattr(config, name):
            setattr(config, name, size)
    if config._attn_implementation not in ("eager", "sdpa"):
        config._attn_implementation = "eager"
    return config


def _divides_the_head(config: Any) -> bool:
    """Whether rotary embeddings have a list of sizes or factors for parts of a head, which fix its dimension."""
    rotary = (getattr(config, name, None) for name in ("rope_scaling", "rope_parameters"))
    values = (value for one in rotary if isinstance(one, Mapping) for value in one.values())
    return any(isinstance(value, (list, tuple)) for value in values)


def _token_inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCAB_SIZE, (_BATCH, _LENGTH), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


class Around(nn.Module):
    """A model with something done to its inputs or outputs; its own attributes are found on it."""

    def __init__(self, host: nn.Module) -> None:
        super().__init__()
        self.host = host

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            host = self.__dict__.get("_modules", {}).get("host")
            if host is None or name.startswith("__"):  # how it is copied or pickled is no other object's to say
                raise
            return getattr(host, name)


def _knows_caches(model: nn.Module) -> bool:
    """Whether a model takes the argument with which the harness switches a cache off."""
    accepted = inspect.signature(model.forward).parameters
    return "use_cache" in accepted or any(one.kind is one.VAR_KEYWORD for one in accepted.values())


class WithoutCache(Around):
    """A model that may not know the argument with which the harness switches a cache off."""

    def __init__(self, host: nn.Module) -> None:
        super().__init__(host)
        self.knows_caches = _knows_caches(host)  # before it is patched

    def forward(self, **inputs: Any) -> Any:
        """The inputs and the outputs of the model."""
        if not self.knows_caches:
            inputs.pop("use_cache", None)
        return self.host(**inputs)


class FirstOutput(WithoutCache):
    """A model that takes no labels: its first output as logits, and the cross-entropy with arbitrary classes."""

    def forward(self, **inputs: Any) -> SimpleNamespace:
        """The inputs of the model; ``logits`` have the shape of its first tensor."""
        output = first_tensor(super().forward(**inputs))
        if output is None:
            raise CannotBuildError(f"{type(self.host).__name__} gives no tensor")
        logits = output.flatten(0, -2)
        exact = logits if logits.dtype is torch.float64 else logits.float()
        classes = torch.arange(len(exact), device=exact.device) % exact.shape[-1]
        return SimpleNamespace(logits=output, loss=F.cross_entropy(exact, classes))


class HiddenStates(Around):
    """A model without head, with what the harness compares: its hidden states as logits, and a loss.

    The loss is the cross-entropy of the hidden states, taken as logits. A weighted sum would do for gradients, but
    it is near zero, and a relative error of what is near zero says nothing.
    """

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None, **kwargs: Any
    ) -> SimpleNamespace:
        """input_ids, attention_mask, labels: ``[batch, seq]``. Labels count modulo the width of the hidden states."""
        hidden = self.host(input_ids=input_ids, attention_mask=attention_mask, **kwargs)[0]
        if labels is None:
            return SimpleNamespace(logits=hidden, loss=None)
        seen = attention_mask.bool()
        logits = hidden[seen]
        exact = logits if logits.dtype is torch.float64 else logits.float()
        return SimpleNamespace(logits=hidden, loss=F.cross_entropy(exact, labels[seen] % hidden.shape[-1]))
