"""Training and evaluation in float32: outputs, losses and every gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from patchkit.arch.registry import blocks_by_class
from patchkit.arch.spec import Block
from patchkit.testing.checks.base import InapplicableError, require_method, scenario
from patchkit.testing.parity import (
    CURVE_TOLERANCE,
    IGNORED_LABEL,
    Inputs,
    Run,
    clear_gradients,
    collect_gradients,
    relative_error,
    run,
)
from patchkit.testing.random_state import seed_generators

_STEPS = 50
_LEARNING_RATE = 1e-3
_PADDING = 4
_DROPOUT = (0.1, 0.2, 0.3)


@scenario("forward_backward", "logits, loss, parameter and input gradients in train mode, dropout included")
def forward_backward(model: nn.Module, inputs: Inputs) -> Iterator[tuple[str, Run]]:
    """One step in train mode."""
    yield "train", run(model.train(), inputs, input_gradients=True)


@scenario("eval", "logits, loss and gradients in eval mode")
def evaluation(model: nn.Module, inputs: Inputs) -> Iterator[tuple[str, Run]]:
    """One step in eval mode; gradients are asked for too, as attribution methods do."""
    yield "eval", run(model.eval(), inputs, input_gradients=True)


@scenario("no_grad", "logits and loss under no_grad and inference_mode")
def no_grad(model: nn.Module, inputs: Inputs) -> Iterator[tuple[str, Run]]:
    """Forward only."""
    with torch.no_grad():
        yield "no_grad", run(model.eval(), inputs, backward=False)
        yield "no_grad, train mode", run(model.train(), inputs, backward=False)
    with torch.inference_mode():
        yield "inference_mode", run(model.eval(), inputs, backward=False)


@scenario("repeated_backward", "two backwards of one forward, and accumulation over two forwards")
def repeated_backward(model: nn.Module, inputs: Inputs) -> Iterator[tuple[str, Run]]:
    """A backward must not overwrite what it saved, and must add to ``.grad``."""
    clear_gradients(model.train())
    seed_generators(0, model)
    outputs = model(**inputs, use_cache=False)
    loss: Tensor = outputs.loss
    for stage, retain_graph in (("first", True), ("second", True), ("accumulated", False)):
        if stage == "second":
            clear_gradients(model)
        loss.backward(retain_graph=retain_graph)  # type: ignore[no-untyped-call]
        gradients, without_gradient = collect_gradients(model)
        kept = {name: gradient.clone() for name, gradient in gradients.items()}
        yield stage, Run({"loss": loss.detach()}, kept, without_gradient)
    clear_gradients(model)


@scenario("ragged_padding", "rows padded on the left by different amounts")
def ragged_padding(model: nn.Module, inputs: Inputs) -> Iterator[tuple[str, Run]]:
    """Row i of n gets 4 (i + 1) / n padding tokens on the left, and the rest on the right."""
    yield "padded", run(model.train(), pad(inputs, _PADDING, ragged=True), input_gradients=True)


@scenario("training_curve", "the losses of 50 AdamW steps", tolerance=CURVE_TOLERANCE)
def training_curve(model: nn.Module, inputs: Inputs) -> Iterator[tuple[str, Run]]:
    """Each step on the same batch; dropout, where there is any, is drawn anew."""
    parameters = [parameter for parameter in model.train().parameters() if parameter.requires_grad]
    if not parameters:
        raise InapplicableError("no trainable parameter")
    optimizer = torch.optim.AdamW(parameters, lr=_LEARNING_RATE)
    seed_generators(0, model)
    for step in range(_STEPS):
        loss: Tensor = model(**inputs, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        yield f"step {step}", Run({"loss": loss.detach()})


@scenario("weight_updates", "after optimizers that bump no version, and edits of .data", tolerance=CURVE_TOLERANCE)
def weight_updates(model: nn.Module, inputs: Inputs) -> Iterator[tuple[str, Run]]:
    """Nothing derived from a weight may outlive a change of it, however it was made."""
    trainable = [parameter for parameter in model.train().parameters() if parameter.requires_grad]
    if not trainable:
        raise InapplicableError("no trainable parameter")
    for implementation in ("fused", "foreach", "loop"):
        # A large epsilon, because Adam's first steps are otherwise the signs of gradients, noise included.
        optimizer = torch.optim.AdamW(
            trainable, lr=_LEARNING_RATE, eps=1e-3, fused=implementation == "fused", foreach=implementation == "foreach"
        )
        for step in range(2):
            seed_generators(step, model)
            optimizer.zero_grad()
            model(**inputs, use_cache=False).loss.backward()
            optimizer.step()
        yield f"AdamW {implementation}", run(model, inputs)
    for parameter in trainable:
        parameter.data = parameter.data * 1.1
    yield "trainable .data replaced", run(model, inputs)
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.ndim > 1:
            parameter.data.mul_(1.05)
    yield "every .data changed in place", run(model, inputs)


@scenario("dropout", "lora_dropout with a seed: the same masks, also under recomputation; none in eval mode")
def dropout(model: nn.Module, inputs: Inputs) -> Iterator[tuple[str, Run]]:
    """Every adapter gets a dropout, each projection another share, so that a mask drawn for another one shows."""
    layers = [module for module in model.train().modules() if isinstance(module, LoraLayer)]
    for index, layer in enumerate(layers):
        for adapter in layer.lora_dropout:
            layer.lora_dropout[adapter] = nn.Dropout(_DROPOUT[index % len(_DROPOUT)]).train()
    first, second = (run(model, inputs, input_gradients=True, seed=seed) for seed in (0, 1))
    if relative_error(second.outputs["logits"], first.outputs["logits"]) == 0:
        raise InapplicableError("dropout makes no difference: no adapter draws any")
    yield "seed 0", first
    yield "seed 1", second
    yield "eval", run(model.eval(), inputs)
    if getattr(model, "supports_gradient_checkpointing", False):
        yield from _checkpointed(model, inputs, use_reentrant=False)


def _checkpointed(model: nn.Module, inputs: Inputs, *, use_reentrant: bool) -> Iterator[tuple[str, Run]]:
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise InapplicableError(f"{type(model).__name__} does not support gradient checkpointing")
    # The reentrant form sees a gradient only if an input of the checkpointed layer requires one.
    require_method(model, "enable_input_require_grads", "a transformers model")()
    enable = require_method(model, "gradient_checkpointing_enable", "a transformers model")
    enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    yield "checkpointed", run(model.train(), inputs)


@scenario("checkpointing_reentrant", "gradient checkpointing with use_reentrant=True")
def checkpointing_reentrant(model: nn.Module, inputs: Inputs) -> Iterator[tuple[str, Run]]:
    """Enabled after patching, as the Trainer does."""
    yield from _checkpointed(model, inputs, use_reentrant=True)


@scenario("checkpointing_non_reentrant", "gradient checkpointing with use_reentrant=False")
def checkpointing_non_reentrant(model: nn.Module, inputs: Inputs) -> Iterator[tuple[str, Run]]:
    """Enabled after patching, as the Trainer does."""
    yield from _checkpointed(model, inputs, use_reentrant=False)


@scenario("mlp_input_shapes", "each gated MLP alone on 2-D, empty and non-contiguous inputs")
def mlp_input_shapes(model: nn.Module, inputs: Inputs) -> Iterator[tuple[str, Run]]:
    """Mixture-of-experts code calls MLPs on [tokens, hidden], and may route no token to one."""
    found = False
    for name, module, block in _gated_mlps(model.train()):
        found = True
        width = getattr(module, block.projections("mlp")[0]).in_features
        for stage, hidden_states in _block_inputs(width, next(module.parameters())).items():
            yield f"{name}, {stage}", _run_block(module, hidden_states)
    if not found:
        raise InapplicableError("no gated MLP of a registered architecture")


def _gated_mlps(model: nn.Module) -> Iterator[tuple[str, nn.Module, Block]]:
    known = blocks_by_class()
    for name, module in model.named_modules():
        # By base classes too: a patched module is an instance of a subclass.
        for cls in type(module).__mro__:
            _, block = known.get((cls.__module__, cls.__name__), (None, None))
            if block is not None and "mlp" in block.parts:
                yield name, module, block
                break


def _block_inputs(width: int, like: Tensor) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(like.device, like.dtype)

    return {
        "[7, hidden]": draw(7, width),
        "[hidden]": draw(width),
        "[2, 2, 3, hidden]": draw(2, 2, 3, width),
        "[0, hidden]": draw(0, width),
        "not contiguous": draw(3, width, 5).transpose(1, 2),
    }


def _run_block(module: nn.Module, hidden_states: Tensor) -> Run:
    clear_gradients(module)
    hidden_states = hidden_states.detach().requires_grad_()
    seed_generators(0, module)
    output: Tensor = module(hidden_states)
    # Transposed memory: kernels may not count on a contiguous gradient.
    gradient = torch.linspace(-1, 1, output.numel(), device=output.device).reshape(output.shape[::-1]).to(output.dtype)
    output.backward(gradient.permute(*reversed(range(output.ndim))))  # type: ignore[no-untyped-call]
    gradients, without_gradient = collect_gradients(module)
    if hidden_states.grad is not None:
        gradients["input"] = hidden_states.grad
    clear_gradients(module)
    return Run({"output": output.detach()}, gradients, without_gradient)


def pad(inputs: Inputs, columns: int, *, ragged: bool = False) -> dict[str, Any]:
    """The inputs with padding columns added, masked out and without labels.

    Args:
        inputs: with ``input_ids`` [batch, seq]; an attention mask is added if there is none.
        columns: how many columns are added, on the left.
        ragged: give each row another share of them, the rest on its right.

    Raises:
        InapplicableError: there are no ``input_ids``.
    """
    input_ids = inputs.get("input_ids")
    if not isinstance(input_ids, Tensor):
        raise InapplicableError("inputs without input_ids cannot be padded")
    batch, length = input_ids.shape
    padded = dict(inputs)
    padded.setdefault("attention_mask", torch.ones_like(input_ids))
    for key, value in padded.items():
        if isinstance(value, Tensor) and value.shape == input_ids.shape:
            wide = value.new_full((batch, length + columns), IGNORED_LABEL if key == "labels" else 0)
            for row in range(batch):
                left = math.ceil(columns * (row + 1) / batch) if ragged else columns
                wide[row, left : left + length] = value[row]
            padded[key] = wide
    return padded
