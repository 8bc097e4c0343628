"""Experts of every kind that transformers' decorator knows, with adapters on their stacked weights."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import peft
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig
from torch import nn

import patchkit
from patchkit.testing import add_lora, randomise_adapter

moe = pytest.importorskip("transformers.integrations.moe", reason="transformers before 5 has no experts of its own")

HIDDEN, INNER, EXPERTS, TOP_K = 16, 8, 4, 2
IMPLEMENTATIONS = ("eager", "batched_mm", "grouped_mm")


class Experts(nn.Module):
    """The eager form of all kinds; what the decorator sets on an instance says which it is."""

    gated, biased, transposed, normed = True, False, False, False

    def __init__(self, config):
        super().__init__()
        self.num_experts, self.act_fn = EXPERTS, nn.SiLU()
        inner = 2 * INNER if self.gated else INNER
        name = "gate_up_proj" if self.gated else "up_proj"
        for key, out, width in ((name, inner, HIDDEN), ("down_proj", HIDDEN, INNER)):
            shape = (width, out) if self.transposed else (out, width)
            self.register_parameter(key, nn.Parameter(torch.randn(EXPERTS, *shape) * width**-0.5))
            if self.biased:
                self.register_parameter(f"{key}_bias", nn.Parameter(torch.randn(EXPERTS, out) * 0.3))
        if self.normed:
            self.post_expert_norm = nn.LayerNorm(HIDDEN)

    def up(self, state, index):
        if self.transposed:
            return state @ self.gate_up_proj[index]
        if self.gated:
            return F.linear(state, self.gate_up_proj[index])
        return F.linear(state, self.up_proj[index])

    def down(self, state, index):
        if self.transposed:
            return torch.matmul(state, self.down_proj[index])
        return F.linear(state, self.down_proj[index])

    def forward(self, hidden_states, top_k_index, top_k_weights):
        final = torch.zeros_like(hidden_states)
        for index in top_k_index.unique():
            token, position = torch.where(top_k_index == index)
            state = self.up(hidden_states[token], index)
            if self.biased:
                state = state + self.gate_up_proj_bias[index]
            state = self._apply_gate(state) if self.gated else self.act_fn(state)
            state = self.down(state, index)
            if self.biased:
                state = state + self.down_proj_bias[index]
            if self.normed:
                state = self.post_expert_norm(state)
            final.index_add_(0, token, state * top_k_weights[token, position, None])
        return final


class Clamped(Experts):
    """As gpt_oss: gate and up in turns, a clamp, a gate of its own."""

    biased, transposed = True, True

    def _apply_gate(self, gate_up):
        gate, up = gate_up[..., ::2], gate_up[..., 1::2]
        gate, up = gate.clamp(max=1.5), up.clamp(min=-1.5, max=1.5)
        return (up + 1) * gate * torch.sigmoid(gate * 1.7)


class Transposed(Experts):
    """Stacks ``[experts, in, out]``."""

    transposed = True


class Biased(Experts):
    """With a bias for each expert."""

    biased = True


class Ungated(Experts):
    """Without a gate."""

    gated = False


class Normed(Experts):
    """With a norm after each expert."""

    normed = True


class Plain(Experts):
    """As nearly all."""


KINDS: dict[str, type[Experts]] = {
    "plain": moe.use_experts_implementation(Plain),
    "transposed": moe.use_experts_implementation(Transposed, is_transposed=True),
    "biased": moe.use_experts_implementation(Biased, has_bias=True),
    "clamped": moe.use_experts_implementation(Clamped, is_transposed=True, has_bias=True, is_concatenated=False),
    "ungated": moe.use_experts_implementation(Ungated, has_gate=False),
    "normed": moe.use_experts_implementation(Normed, has_post_expert_norm=True),
}


class Layer(nn.Module):
    """Experts in a module."""

    def __init__(self, kind, implementation="eager"):
        super().__init__()
        self.experts = KINDS[kind](SimpleNamespace(_experts_implementation=implementation))

    def forward(self, x, index, weights):
        return self.experts(x, index, weights)


def parameters_of(kind):
    """The names of the stacks, the first projection's first."""
    return ["up_proj" if kind == "ungated" else "gate_up_proj", "down_proj"]


def adapted(kind="plain", implementation="eager", *, names=None, dtype=torch.float64, seed=0, **config):
    """A layer with adapters on the parameters of these names, all unless told otherwise."""
    torch.manual_seed(seed)
    layer = Layer(kind, implementation)
    names = parameters_of(kind) if names is None else names
    options = {"target_modules": [], "target_parameters": [f"experts.{name}" for name in names], "task_type": None}
    return add_lora(layer, seed=seed, **(options | {"r": 2} | config)).to(dtype)


def inputs(dtype=torch.float64, *, tokens=7, seed=1, hit=EXPERTS):
    """Hidden states, chosen experts (the first ``hit``) and routing weights."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, HIDDEN, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    order = torch.rand(tokens, hit, generator=generator).argsort(1)[:, :TOP_K]
    weights = torch.rand(tokens, TOP_K, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return x, order, weights


def results(model, given=None):
    """Output and every gradient, by name; parameters without one have none upstream either."""
    x, index, weights = inputs(next(model.parameters()).dtype) if given is None else given
    x, weights = x.detach().requires_grad_(x.requires_grad), weights.detach().requires_grad_(weights.requires_grad)
    model.zero_grad()
    y = model(x, index, weights)
    if y.requires_grad:
        (y * torch.linspace(-1.0, 1.0, y.numel(), dtype=y.dtype).reshape(y.shape)).sum().backward()
    found = {"y": y.detach(), "x": x.grad, "weights": weights.grad}
    found |= {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def assert_equal(wanted, found, tolerance=1e-12):
    """The same tensors, dtypes and numbers."""
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        assert (found[name] - tensor).norm() <= tolerance * tensor.norm(), name


def with_second(model, kind):
    """The layer with a second adapter, both active."""
    parameters = [f"experts.{name}" for name in parameters_of(kind)]
    config = LoraConfig(target_modules=[], target_parameters=parameters, r=3, init_lora_weights=False)
    dtype = next(model.parameters()).dtype
    try:
        model.add_adapter("second", config)
    except ValueError as error:
        pytest.skip(f"PEFT {peft.__version__} takes one adapter on parameters: {error}")
    randomise_adapter(model, "second", seed=5)
    model.base_model.set_adapter(["default", "second"])
    return model.to(dtype)


def patched(model):
    """A patched copy."""
    ours = copy.deepcopy(model)
    report = patchkit.apply(ours)
    return ours, report
