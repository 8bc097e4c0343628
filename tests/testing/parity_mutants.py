"""Patches that stay equal, and patches with one fault each, for testing the harness itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import nn

Forward = Callable[..., torch.Tensor]


def layers(model, suffix=""):
    """LoRA layers whose name ends so, in order."""
    return [m for name, m in model.named_modules() if isinstance(m, LoraLayer) and name.endswith(suffix)]


def swap_forward(module, forward):
    """Gives the module a subclass with ``forward(self, upstream, x)``: picklable names, instance untouched."""
    cls = type(module)
    if cls.__dict__.get("mutated"):
        return

    def patched(self, x, *args, **kwargs):
        return forward(self, lambda y: cls.forward(self, y, *args, **kwargs), x)

    body = {"forward": patched, "mutated": True, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
    body["__reduce_ex__"] = lambda self, protocol: (_restore, (cls, forward, self.__dict__))
    module.__class__ = type(cls.__name__, (cls,), body)


def _restore(cls, forward, state):
    module = cls.__new__(cls)
    module.__dict__.update(state)
    swap_forward(module, forward)
    return module


def restore(model):
    """Undoes :func:`swap_forward`."""
    for module in model.modules():
        if type(module).__dict__.get("mutated"):
            module.__class__ = type(module).__mro__[1]


def everywhere(forward, suffix=""):
    def patch(model):
        for module in layers(model, suffix):
            swap_forward(module, forward)

    return patch


# --- equal patches -------------------------------------------------------------------------------------------------


def plain(layer):
    return layer.merged or layer.disable_adapters


def _hooked(layer):
    return any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks for module in layer.modules()
    )


def reordered(self, upstream, x):
    """The same function in another order of summation: float32 rounding differs everywhere."""
    if plain(self) or _hooked(self) or "adapter_names" in upstream.__code__.co_names:
        return upstream(x)
    third, weight = x.shape[-1] // 3, self.base_layer.weight
    out = F.linear(x[..., :third], weight[:, :third])
    out = out + F.linear(x[..., third:], weight[:, third:], self.base_layer.bias)
    for name in self.active_adapters:
        if name in self.lora_A:
            h = F.linear(self.lora_dropout[name](x) * (self.scaling[name] / 3), self.lora_A[name].weight)
            out = out + F.linear(h, self.lora_B[name].weight * 3)
    return out


def fused(self, upstream, x):
    """One product adds the adapter's output into the base's: as few roundings as a fused kernel has."""
    out = self.base_layer(x)
    flat = out.reshape(-1, out.shape[-1])
    h = F.linear(x, self.lora_A["default"].weight).reshape(-1, self.r["default"])
    scaled = self.lora_B["default"].weight.t() * self.scaling["default"]
    return torch.addmm(flat, h.to(flat.dtype), scaled.to(flat.dtype)).view_as(out)


# --- faulty forwards -----------------------------------------------------------------------------------------------


def scaled_adapter(self, upstream, x):
    self.scaling = {name: value * 1.01 for name, value in self.scaling.items()}
    out = upstream(x)
    self.scaling = {name: value / 1.01 for name, value in self.scaling.items()}
    return out


def extra_dropout(self, upstream, x):
    return F.dropout(upstream(x), 0.01, self.training)


def in_eval_only(self, upstream, x):
    return upstream(x) * (1 if self.training else 1.001)


def without_grad_only(self, upstream, x):
    return upstream(x) * (1 if torch.is_grad_enabled() else 1.001)


def under_checkpointing_only(self, upstream, x):
    packed = torch._C._autograd._top_saved_tensors_default_hooks(False) is not None
    return upstream(x) * (1.001 if packed else 1)


def on_single_tokens(self, upstream, x):
    return upstream(x) * (1.001 if x.shape[-2] == 1 else 1)


def on_long_rows(self, upstream, x):
    return upstream(x) * (1.001 if x.shape[-2] > 12 else 1)


def on_three_dimensions_only(self, upstream, x):
    _batch, _tokens, _hidden = x.shape
    return upstream(x)


def ignores_disabling(self, upstream, x):
    disabled, self._disable_adapters = self._disable_adapters, False
    out = upstream(x)
    self._disable_adapters = disabled
    return out


def applies_merged_twice(self, upstream, x):
    out = upstream(x)
    if self.merged:
        out = out + self.lora_B["default"](self.lora_A["default"](x)) * self.scaling["default"]
    return out


def first_adapter_only(self, upstream, x):
    active, self._active_adapter = self._active_adapter, ["default"]
    out = upstream(x)
    self._active_adapter = active
    return out


def drops_adapter_names(self, upstream, x):
    return type(self).__mro__[1].forward(self, x)


def bypasses_hooks(self, upstream, x):
    if plain(self) or self.lora_A.keys() != {"default"}:
        return upstream(x)
    out = F.linear(x, self.base_layer.weight, self.base_layer.bias)
    h = F.linear(x, self.lora_A["default"].weight)
    return out + F.linear(h, self.lora_B["default"].weight) * self.scaling["default"]


def keeps_stale_product(self, upstream, x):
    if not hasattr(self, "stale"):
        object.__setattr__(self, "stale", self.lora_B["default"].weight.detach().clone())
    B = self.lora_B["default"].weight
    stale = B + (self.stale - B).detach()
    h = F.linear(x, self.lora_A["default"].weight)
    return self.base_layer(x) + F.linear(h, stale) * self.scaling["default"]


class _OverwritesSaved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.clone())
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        result = 2 * x * gradient
        x.data.zero_()
        return result


def overwrites_saved(self, upstream, x):
    out = upstream(x)
    square = _OverwritesSaved.apply(out)
    return out + (square - (out * out))


def breaks_the_graph(self, upstream, x):
    torch._dynamo.graph_break()
    return upstream(x)


def rounds_once_more(bits):
    """Truncates the output to so many bits of mantissa: what a careless kernel does to an intermediate."""

    def forward(self, upstream, x):
        out = upstream(x)
        step = torch.exp2(torch.floor(torch.log2(out.detach().float().abs().clamp_min(1e-6))) - bits)
        return out + (torch.round(out.detach().float() / step) * step - out.detach()).to(out.dtype)

    return forward


def returns_float32(self, upstream, x):
    return upstream(x).float().to(torch.float32)


# --- faulty patches ------------------------------------------------------------------------------------------------


def swaps_k_and_v(model):
    for module in model.modules():
        if hasattr(module, "k_proj"):
            module.k_proj, module.v_proj = module.v_proj, module.k_proj


def erf_gelu(model):
    for module in model.modules():
        if hasattr(module, "act_fn"):
            module.act_fn = nn.GELU()


def drops_bias(model):
    for layer in layers(model, "q_proj"):
        layer.base_layer.bias = None


def zeroes_gradient_of_lora_a(model):
    layers(model, "gate_proj")[0].lora_A["default"].weight.register_hook(torch.zeros_like)


def freezes_one_parameter(model):
    layers(model, "o_proj")[0].lora_B["default"].weight.requires_grad_(False)


def trains_one_parameter_more(model):
    layers(model, "o_proj")[0].base_layer.weight.requires_grad_(True)


def shares_dropout_mask(model):
    kept = {}
    for q, k in zip(layers(model, "q_proj"), layers(model, "k_proj"), strict=True):
        q.register_forward_pre_hook(lambda *_: kept.update(state=torch.get_rng_state()))
        k.register_forward_pre_hook(lambda *_: torch.set_rng_state(kept["state"]))


def wrong_gradient_scale(model):
    for layer in layers(model):
        layer.lora_A["default"].weight.register_hook(lambda gradient: gradient * 0.9)
        layer.lora_B["default"].weight.register_hook(lambda gradient: gradient.sign() * gradient.abs().mean())


def closes_over_the_module(model):
    for module in layers(model, "q_proj"):
        module.forward = lambda *args, module=module, **kwargs: type(module).forward(module, *args, **kwargs)


def patches_every_call(model):
    for module in layers(model, "q_proj"):
        module.__class__ = type(type(module).__name__, (type(module),), {})


def renames_class(model):
    for module in layers(model, "q_proj"):
        module.__class__ = type("Patched" + type(module).__name__, (type(module),), {})


def replaces_parameters(model):
    for module in layers(model, "q_proj"):
        module.base_layer.weight = nn.Parameter(module.base_layer.weight.detach().clone(), requires_grad=False)


def does_nothing(model):
    pass


def crashes(model):
    raise RuntimeError("the patch crashes")
