"""Ways to use a model, and everything that its user can observe of one: numbers, draws, and the error if there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from patchkit.testing import Run
from patchkit.testing.parity import clear_gradients, collect_gradients

Between = Callable[[], object]
"""What the user does between forward and backward."""


class Failed(NamedTuple):
    """A use that raised. The types are compared; the message is for the reader of a failure."""

    kind: str
    message: str


class Seen(NamedTuple):
    """What one use showed: its numbers or its error, and the state in which it left the random generator."""

    outcome: Run | Failed
    draws: bytes


class Use(NamedTuple):
    """A way to use a model.

    Attributes:
        name: for the reader.
        play: yields from the model and its inputs what there is to see, calling ``between`` once forward is done.
        around: a context around forward and backward.
        tolerance: largest relative error in float64, where rounding does not matter; None where numbers are rounded
            to another dtype on the way, and only shapes, dtypes and the set of gradients are compared.
    """

    name: str
    play: Callable[[nn.Module, Mapping[str, Any], Between], Run]
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    tolerance: float | None = 1e-6


def observe(use: Use, model: nn.Module, inputs: Mapping[str, Any], between: Between, seed: int = 0) -> Seen:
    """One use of one model, from a given random state."""
    clear_gradients(model)
    torch.manual_seed(seed)
    outcome: Run | Failed
    try:
        with use.around():
            outcome = use.play(model, inputs, between)
    except Exception as error:
        outcome = Failed(type(error).__name__, str(error))
    draws = torch.get_rng_state().numpy().tobytes()
    clear_gradients(model)
    return Seen(outcome, draws)


def _forward(model: nn.Module, inputs: Mapping[str, Any], between: Between) -> Any:
    outputs = model(**inputs, use_cache=False)
    between()
    return outputs


def _seen(model: nn.Module, outputs: Any) -> Run:
    gradients, without = collect_gradients(model)
    gradients = {name: tensor.clone() for name, tensor in gradients.items()}
    return Run({"logits": outputs.logits.detach().clone(), "loss": outputs.loss.detach().clone()}, gradients, without)


def train(model: nn.Module, inputs: Mapping[str, Any], between: Between) -> Run:
    outputs = _forward(model, inputs, between)
    outputs.loss.backward()
    return _seen(model, outputs)


def train_on_embeddings(model: nn.Module, inputs: Mapping[str, Any], between: Between) -> Run:
    """Inputs that need a gradient themselves: soft prompts, adversarial training."""
    ids = inputs["input_ids"]
    width = model.get_input_embeddings().weight.shape[1]
    embeds = torch.randn(*ids.shape, width, generator=torch.Generator().manual_seed(2))
    embeds = embeds.to(model.get_input_embeddings().weight.dtype).requires_grad_()
    given = {key: value for key, value in inputs.items() if key != "input_ids"} | {"inputs_embeds": embeds}
    outputs = _forward(model, given, between)
    outputs.loss.backward()
    found = _seen(model, outputs)
    grad = {} if embeds.grad is None else {"embeds": embeds.grad}
    return Run(found.outputs, {**found.gradients, **grad}, found.without_gradient)


def backward_twice(model: nn.Module, inputs: Mapping[str, Any], between: Between) -> Run:
    outputs = _forward(model, inputs, between)
    outputs.loss.backward(retain_graph=True)
    outputs.loss.backward()
    return _seen(model, outputs)


def second_order(model: nn.Module, inputs: Mapping[str, Any], between: Between) -> Run:
    """A gradient penalty."""
    outputs = _forward(model, inputs, between)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    first = torch.autograd.grad(outputs.loss, trained, create_graph=True, allow_unused=True)
    sum(grad.square().sum() for grad in first if grad is not None).backward()
    return _seen(model, outputs)


def two_batches(model: nn.Module, inputs: Mapping[str, Any], between: Between) -> Run:
    """Gradient accumulation over two graphs that live at the same time."""
    first = model(**inputs, use_cache=False)
    second = _forward(model, inputs, between)
    (first.loss + 2 * second.loss).backward()
    return _seen(model, second)


def without_gradients(model: nn.Module, inputs: Mapping[str, Any], between: Between) -> Run:
    return _seen(model, _forward(model, inputs, between))


def generate(model: nn.Module, inputs: Mapping[str, Any], between: Between) -> Run:
    with torch.no_grad():
        tokens = model.generate(input_ids=inputs["input_ids"], max_new_tokens=4, do_sample=False)
    between()
    return Run({"tokens": tokens})


def captured(model: nn.Module, inputs: Mapping[str, Any], between: Between) -> Run:
    """Hidden states and attentions that the model collects on its way."""
    outputs = model(**inputs, use_cache=False, output_hidden_states=True)
    between()
    outputs.loss.backward()
    found = _seen(model, outputs)
    states = {f"state {i}": state.detach() for i, state in enumerate(outputs.hidden_states)}
    return Run({**found.outputs, **states}, found.gradients, found.without_gradient)


def called_by_functional_call(model: nn.Module, inputs: Mapping[str, Any], between: Between) -> Run:
    """Other weights than the model's own, for one call."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    given = {name: (1.1 * parameter.detach()).requires_grad_() for name, parameter in trained.items()}
    outputs = torch.func.functional_call(model, given, kwargs={**inputs, "use_cache": False})
    between()
    outputs.loss.backward()
    gradients = {name: tensor.grad for name, tensor in given.items() if tensor.grad is not None}
    return Run({"logits": outputs.logits.detach(), "loss": outputs.loss.detach()}, gradients)


def backward_under_autocast(model: nn.Module, inputs: Mapping[str, Any], between: Between) -> Run:
    outputs = _forward(model, inputs, between)
    with torch.autocast("cpu", torch.bfloat16):
        outputs.loss.backward()
    return _seen(model, outputs)


class Heavier(TorchFunctionMode):
    """A user's mode that changes what every linear layer computes."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        return 1.25 * result if function is F.linear else result


@contextmanager
def _on_cpu() -> Iterator[None]:
    with torch.autograd.graph.save_on_cpu():
        yield


USES = (
    Use("train", train),
    Use("train on embeddings", train_on_embeddings),
    Use("backward twice", backward_twice),
    Use("second order", second_order),
    Use("two batches", two_batches),
    Use("no_grad", without_gradients, torch.no_grad),
    Use("inference mode", without_gradients, torch.inference_mode),
    Use("generate", generate),
    Use("hidden states", captured),
    Use("functional_call", called_by_functional_call),
    Use("function mode", train, Heavier),
    Use("device mode", train, lambda: torch.device("cpu")),
    Use("save_on_cpu", train, _on_cpu),
    Use("anomaly mode", train, lambda: torch.autograd.detect_anomaly(check_nan=False)),
    # float64 is left alone by autocast, but for what casts its inputs itself
    Use("autocast", train, lambda: torch.autocast("cpu", torch.bfloat16), None),
    Use("backward under autocast", backward_under_autocast, nullcontext, None),
)
