"""What users do to models: each action is done to the patched model and to its untouched copy alike.

An action gets the model and a number that says where, and may return how to undo it. It finds modules by name, so that
both models are changed at the same place.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from peft import LoraConfig
from peft.tuners import lora
from torch import nn
from transformers.activations import ACT2CLS

from patchkit.testing import randomise_adapter

Undo = Callable[[], object]


class Action(NamedTuple):
    """Something that a user does to one model."""

    name: str
    do: Callable[[nn.Module, int], Undo | None]


PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PLACES = (
    *PROJECTIONS,
    *(f"{name}.base_layer" for name in PROJECTIONS),
    *(f"{name}.lora_A.default" for name in PROJECTIONS),
    *(f"{name}.lora_B.default" for name in PROJECTIONS),
    *(f"{name}.lora_dropout.default" for name in PROJECTIONS),
    "act_fn",
    "mlp",
    "self_attn",
    "input_layernorm",
    "embed_tokens",
    "lm_head",
)


def modules_named(model: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    return [module for path, module in model.named_modules() if path.endswith(tuple(f".{name}" for name in names))]


def pick(model: nn.Module, names: Sequence[str], where: int) -> nn.Module:
    found = modules_named(model, names)
    return found[where % len(found)]


def _first_scaled(output: Any, factor: float) -> Any:
    if isinstance(output, tuple):
        return (output[0] * factor, *output[1:])
    return output * factor if isinstance(output, torch.Tensor) else output


# ---- hooks


def hook_forward(model: nn.Module, where: int) -> Undo:
    return pick(model, PLACES, where).register_forward_hook(lambda m, args, out: _first_scaled(out, 1.5)).remove


def hook_watches(model: nn.Module, where: int) -> Undo:
    return pick(model, PLACES, where).register_forward_hook(lambda *_: None, always_call=True).remove


def hook_forward_pre(model: nn.Module, where: int) -> Undo:
    def change(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        scales = args and isinstance(args[0], torch.Tensor) and args[0].is_floating_point()
        return (args[0] * 0.75, *args[1:]) if scales else None

    return pick(model, PLACES, where).register_forward_pre_hook(change).remove


def hook_backward(model: nn.Module, where: int) -> Undo:
    def change(module: nn.Module, into: tuple[Any, ...], out: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(None if grad is None else 2 * grad for grad in into)

    return pick(model, PROJECTIONS, where).register_full_backward_hook(change).remove


def hook_backward_pre(model: nn.Module, where: int) -> Undo:
    def change(module: nn.Module, out: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(None if grad is None else 0.5 * grad for grad in out)

    return pick(model, PLACES[: 4 * len(PROJECTIONS)], where).register_full_backward_pre_hook(change).remove


def hook_parameter(model: nn.Module, where: int) -> Undo | None:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return trained[where % len(trained)].register_hook(lambda grad: 3 * grad).remove if trained else None


# ---- replacing


def replace_forward(model: nn.Module, where: int) -> Undo:
    """On the instance."""
    module = pick(model, PLACES, where)
    before = module.forward
    module.forward = functools.wraps(before)(lambda *args, **kwargs: _first_scaled(before(*args, **kwargs), 1.25))

    def undo() -> None:
        module.__dict__.pop("forward", None)

    return undo


# Its class is called PytorchGELUTanh before transformers 5.
GELU_TANH = ACT2CLS["gelu_pytorch_tanh"]


def replace_activation(model: nn.Module, where: int) -> None:
    makers = (nn.SiLU, nn.Tanh, nn.RReLU, nn.GELU, GELU_TANH, lambda: nn.Sequential(nn.SiLU(), nn.Dropout(0.3)))
    for module in modules_named(model, ["mlp"]):
        module.act_fn = makers[where % len(makers)]()


def replace_projection(model: nn.Module, where: int) -> None:
    """By a layer without adapter and of another bias."""
    layers = [module for module in model.modules() if any(name in module._modules for name in PROJECTIONS)]
    layer = layers[where % len(layers)]
    names = [name for name in PROJECTIONS if name in layer._modules]
    name = names[where % len(names)]
    old = layer._modules[name]
    new = nn.Linear(old.in_features, old.out_features, dtype=old.weight.dtype)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(where)
        for parameter in new.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * old.in_features**-0.5)
    setattr(layer, name, new)


def share_projection(model: nn.Module, where: int) -> None:
    """One module under two names."""
    layers = [module for module in model.modules() if {"k_proj", "v_proj"} <= module._modules.keys()]
    layer = layers[where % len(layers)]
    layer.v_proj = layer.k_proj


def shadow_projection(model: nn.Module, where: int) -> Undo | None:
    """An attribute of the instance, which Python finds before a submodule."""
    layers = [module for module in model.modules() if {"q_proj", "o_proj"} <= module._modules.keys()]
    layer, name = layers[where % len(layers)], ("q_proj", "k_proj", "v_proj", "o_proj")[where % 4]
    if name in layer.__dict__:
        return None
    projection = layer._modules[name]
    layer.__dict__[name] = lambda x: 0.5 * projection(x)
    return lambda: layer.__dict__.pop(name, None)


# ---- numbers


def edit_data(model: nn.Module, where: int) -> None:
    parameters = list(model.parameters())
    parameters[where % len(parameters)].data.mul_(1.3)


def edit_in_place(model: nn.Module, where: int) -> None:
    parameters = list(model.parameters())
    with torch.no_grad():
        parameters[where % len(parameters)].mul_(0.8)


def freeze(model: nn.Module, where: int) -> None:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if len(trained) > 1:
        trained[where % len(trained)].requires_grad_(False)


def unfreeze(model: nn.Module, where: int) -> None:
    parameters = list(model.parameters())
    parameters[where % len(parameters)].requires_grad_(True)


def train_biases(model: nn.Module, where: int) -> None:
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.requires_grad_(where % 2 == 0)


def step(model: nn.Module, where: int) -> None:
    """An update that does not depend on gradients, the same on both sides to the last bit."""
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            if parameter.requires_grad:
                parameter.add_(
                    torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)), alpha=0.01
                )


def load_state(model: nn.Module, where: int) -> None:
    model.load_state_dict({name: tensor * 1.01 for name, tensor in model.state_dict().items()})


# ---- modes


def toggle_training(model: nn.Module, where: int) -> None:
    if where % 3 == 0:
        module = pick(model, PLACES, where)
        module.train(not module.training)
    else:
        model.train(where % 3 == 1)


def set_dropout(model: nn.Module, where: int) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and ".lora_dropout." in name:
            module.p = (0.0, 0.2, 0.5, 1.0)[where % 4]


def checkpoint(model: nn.Module, where: int) -> None:
    if where % 3 == 2:
        model.gradient_checkpointing_disable()
    else:
        model.gradient_checkpointing_enable({"use_reentrant": bool(where % 3)})


# ---- adapters


def merge(model: nn.Module, where: int) -> None:
    model.merge_adapter()


def unmerge(model: nn.Module, where: int) -> None:
    model.unmerge_adapter()


def disable_adapters(model: nn.Module, where: int) -> None:
    model.base_model.disable_adapter_layers()


def enable_adapters(model: nn.Module, where: int) -> None:
    model.base_model.enable_adapter_layers()


def add_adapter(model: nn.Module, where: int) -> None:
    targets = (["q_proj", "v_proj"], ["gate_proj", "down_proj"], ["o_proj"], list(PROJECTIONS))[where % 4]
    dropout, name = (0.0, 0.3)[where // 4 % 2], f"other{where % 4}"
    with torch.random.fork_rng(devices=[]):
        config = LoraConfig(r=2, lora_alpha=3, target_modules=targets, lora_dropout=dropout, use_dora=where % 5 == 0)
        model.add_adapter(name, config)
    randomise_adapter(model, name, seed=where)


def set_adapters(model: nn.Module, where: int) -> None:
    names = list(model.peft_config)
    chosen = [name for i, name in enumerate(names) if where >> i & 1] or names[:1]
    model.base_model.set_adapter(chosen)


def delete_adapter(model: nn.Module, where: int) -> None:
    names = [name for name in model.peft_config if name != "default"]
    if names:
        model.delete_adapter(names[where % len(names)])


def set_scaling(model: nn.Module, where: int) -> None:
    layers = [module for module in model.modules() if isinstance(module, lora.LoraLayer)]
    layer = layers[where % len(layers)]
    for name in layer.scaling:
        layer.scaling[name] = (0.7, -1, 0.0, 3.5)[where % 4]


def move_bias(model: nn.Module, where: int) -> None:
    """A bias where there was none."""
    layer = pick(model, [f"{name}.base_layer" for name in PROJECTIONS], where)
    if layer.bias is None:
        generator = torch.Generator().manual_seed(where)
        bias = torch.randn(layer.out_features, generator=generator)
        layer.bias = nn.Parameter(bias.to(layer.weight.dtype))


ACTIONS = (
    Action("hook forward", hook_forward),
    Action("hook that watches", hook_watches),
    Action("hook forward_pre", hook_forward_pre),
    Action("hook backward", hook_backward),
    Action("hook backward_pre", hook_backward_pre),
    Action("hook a parameter", hook_parameter),
    Action("replace forward on the instance", replace_forward),
    Action("replace the activation", replace_activation),
    Action("replace a projection", replace_projection),
    Action("share a projection", share_projection),
    Action("shadow a projection", shadow_projection),
    Action("edit .data", edit_data),
    Action("edit in place", edit_in_place),
    Action("freeze", freeze),
    Action("unfreeze", unfreeze),
    Action("train biases", train_biases),
    Action("step", step),
    Action("load_state_dict", load_state),
    Action("train or eval", toggle_training),
    Action("set dropout", set_dropout),
    Action("checkpointing", checkpoint),
    Action("merge", merge),
    Action("unmerge", unmerge),
    Action("disable adapters", disable_adapters),
    Action("enable adapters", enable_adapters),
    Action("add an adapter", add_adapter),
    Action("set adapters", set_adapters),
    Action("delete an adapter", delete_adapter),
    Action("set scaling", set_scaling),
    Action("give a bias", move_bias),
)

BETWEEN = tuple(
    action
    for action in ACTIONS
    if action.name.startswith(("hook", "edit in place", "edit .data", "replace forward", "train or eval", "freeze"))
)
"""What may also happen between forward and backward."""


# ---- classes and functions of libraries, which both models share


class Replacement(NamedTuple):
    """A function of a class or module that a user replaces for all of the process."""

    owner: Any
    attribute: str

    def __str__(self) -> str:
        return f"{self.owner.__name__}.{self.attribute}"

    def make(self, factor: float) -> Undo:
        """Put a wrapper there that scales what it returns. The undoing puts back exactly what stood there."""
        own = self.attribute in vars(self.owner)
        before = getattr(self.owner, self.attribute)

        @functools.wraps(before)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return _first_scaled(before(*args, **kwargs), factor)

        setattr(self.owner, self.attribute, wrapper)

        def undo() -> None:
            if own:
                setattr(self.owner, self.attribute, before)
            else:
                delattr(self.owner, self.attribute)

        return undo


REPLACEMENTS = (
    Replacement(nn.Linear, "forward"),
    Replacement(lora.Linear, "forward"),
    Replacement(lora.Linear, "__call__"),
    Replacement(nn.Linear, "__call__"),
    Replacement(nn.Dropout, "forward"),
    Replacement(nn.Identity, "forward"),
    Replacement(nn.SiLU, "forward"),
    Replacement(lora.Embedding, "forward"),
    Replacement(lora.dora.DoraLinearLayer, "forward"),
    Replacement(lora.layer.LoraLayer, "_cast_input_dtype"),
    Replacement(F, "linear"),
    Replacement(F, "silu"),
    Replacement(F, "dropout"),
)
