"""The ``forward`` of an adapter library's layer that is patched where it stands: embedding, head, any linear layer.

A token embedding and an ``lm_head`` are called by themselves and from many places: the model's forward, the multimodal
model around it, whoever asks for ``model.get_input_embeddings()``. A linear layer that no block holds is called by code
that nobody has looked at. So no caller is rewritten. The adapter's own layer
gets a subclass whose ``forward`` computes the fused function where that is equal, and calls upstream's where it is not.
Hooks on the layer run as ever (above all the one that gradient checkpointing puts on the embedding), because
``torch.nn.Module.__call__`` runs them, and the classes of the model around it stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn

from patchkit.adapters.peft_parameters import read_parameters
from patchkit.adapters.protocol import Reason
from patchkit.adapters.registry import EMBEDDING_READERS, READERS
from patchkit.runtime import fused
from patchkit.runtime.checkpointing import as_in_forward, is_saved_by_hooks, watched
from patchkit.runtime.choice import NO_ADAPTER
from patchkit.runtime.embedding import choose_embedding, compute_embedding
from patchkit.runtime.levels import Ready, adapted, examine, input_of
from patchkit.runtime.parameters import choose_parameters, make_parameters_forward
from patchkit.runtime.precision import AdapterPrecision
from patchkit.runtime.replay import THEN_CALLED, Watched, is_for_hooks

if TYPE_CHECKING:
    from patchkit.arch.spec import Part

ANOTHER_CALL: Reason = "it is called with other arguments, or its forward was replaced"


class LayerKind(NamedTuple):
    """What a layer of one part does at a call.

    Attributes:
        readers: of the classes that it can have.
        choose: from the layer, its input ``[..., features]``, the precision and its reader: what is to be computed
            fused, or why the layer's own ``forward`` must run.
        make_forward: the ``forward`` of the patched subclass of one of these classes, from the class and the precision.
    """

    readers: Mapping[type[nn.Module], Any]
    choose: Callable[[nn.Module, Tensor, AdapterPrecision, Any], Any]
    make_forward: Callable[[type[nn.Module], AdapterPrecision], Callable[..., Any]]

    @classmethod
    def of(
        cls,
        readers: Mapping[type[nn.Module], Any],
        choose: Callable[[nn.Module, Tensor, AdapterPrecision, Any], Any],
        compute: Callable[[Tensor, Any], Tensor],
    ) -> LayerKind:
        """Layers that compute one output from one input, by ``compute`` from the input and what was chosen."""
        return cls(readers, choose, partial(_make_forward, readers, choose, compute))


def choose_linear(module: nn.Module, x: Tensor, precision: AdapterPrecision, reader: Any = None) -> Ready | Reason:
    """The tensors of an adapted projection for the input ``[..., in]``, or why its own ``forward`` must run."""
    given = input_of(x, precision)
    reading = given if isinstance(given, str) else examine(module, given, reader)
    return NO_ADAPTER if isinstance(reading, Ready) and not adapted(reading) else reading


def _compute_linear(x: Tensor, ready: Ready) -> Tensor:
    return fused.lora_linear(x, *ready)


def _make_forward(
    readers: Mapping[type[nn.Module], Any],
    choose: Callable[[nn.Module, Tensor, AdapterPrecision, Any], Any],
    compute: Callable[[Tensor, Any], Tensor],
    cls: type[nn.Module],
    precision: AdapterPrecision,
) -> Callable[..., Any]:
    """A ``forward`` that tries a fused function, and runs the class's own where that is not equal, or was replaced."""
    own, reader = cls.forward, readers[cls]

    def forward(self: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        unknown = args or kwargs or cls.forward is not own
        ready = ANOTHER_CALL if unknown else choose(self, x, precision, reader)

        if is_saved_by_hooks():
            return as_in_forward(self, ready, partial(_run, cls, compute, (self, x, args, kwargs)), _merge)
        return _run(cls, compute, (self, x, args, kwargs), ready)

    return forward


def _run(cls: type[nn.Module], compute: Callable[[Tensor, Any], Tensor], call: tuple[Any, ...], ready: Any) -> Any:
    """One call of a layer at the level that was chosen.

    No function within ``forward``: one that names itself would hold the input until the garbage collector comes.
    """
    module, x, args, kwargs = call
    if isinstance(ready, Watched):
        again = partial(_run, cls, compute, call)
        return watched(partial(again, ANOTHER_CALL), partial(again, ready.then), x.device)
    return cls.forward(module, x, *args, **kwargs) if isinstance(ready, str) else compute(x, ready)


def _merge(then: Any, now: Any) -> Any:
    """What to make of a layer in a recomputation, see :mod:`patchkit.runtime.checkpointing`."""
    if then is None or isinstance(then, str):
        return THEN_CALLED
    return Watched(then) if is_for_hooks(now) else now


LAYER_KINDS: dict[Part, LayerKind] = {
    "embedding": LayerKind.of(EMBEDDING_READERS, choose_embedding, compute_embedding),
    "head": LayerKind.of(READERS, choose_linear, _compute_linear),
    "linear": LayerKind.of(READERS, choose_linear, _compute_linear),
}
_PARAMETERS = LayerKind({ParamWrapper: read_parameters}, choose_parameters, make_parameters_forward)


def layer_kind(cls: type[nn.Module], part: Part) -> LayerKind:
    """What layers of a class do at a call, as this part of a model. What adapts parameters does the same everywhere."""
    return _PARAMETERS if issubclass(cls, ParamWrapper) else LAYER_KINDS[part]
