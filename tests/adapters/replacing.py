"""Tiny models whose projections are layers of another adapter library, with the same weights and adapters that contribute."""

from __future__ import annotations

import torch

from patchkit.testing import TEXT_PROJECTIONS, compare_runs, run, tiny_inputs, tiny_model
from patchkit.testing.tiny_models import generator_for


def replaced(architecture, make, targets=TEXT_PROJECTIONS, **overrides):
    """A frozen tiny model in training mode, ``make(linear)`` in place of each projection of these names."""
    model = tiny_model(architecture, **overrides).requires_grad_(False)
    for name, linear in list(model.named_modules()):
        parent, _, last = name.rpartition(".")
        if last in targets:
            layer = make(linear)
            fill(layer, linear, name)
            setattr(model.get_submodule(parent), last, layer)
    return model.train()


@torch.no_grad()
def fill(layer, linear, name):
    """The base weights of ``linear``; A x of order 1, and an adapter that gives about half of what the base does."""
    layer.weight.copy_(linear.weight.t() if getattr(layer, "fan_in_fan_out", False) else linear.weight)
    layer.weight.requires_grad_(False)
    if linear.bias is not None:
        layer.bias.copy_(linear.bias)
        layer.bias.requires_grad_(False)
    scaling = layer.alpha / layer.rank if hasattr(layer, "alpha") else getattr(layer, "scaling", 0.0)
    for part, parameter in layer.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator_for(f"{name}.{part}", 0))
        if part.lower().startswith("lora_a"):
            parameter.copy_(noise * parameter.shape[1] ** -0.5)
        elif part.lower().startswith("lora_b"):
            parameter.copy_(noise * 0.5 / scaling * parameter.shape[1] ** -0.5)
    if hasattr(layer, "magnitude"):
        layer.initialize_dora_magnitude()
        layer.magnitude.mul_(1 + 0.1 * torch.randn(layer.magnitude.shape, generator=generator_for(name, 1)))


def assert_same(reference, model, architecture="llama", seeds=(0, 1), **options):
    """Outputs and every gradient to 1e-5, the same seeds for dropout, the same parameters without gradient."""
    inputs = tiny_inputs(architecture, model)
    for seed in seeds:
        expected, found = (
            run(either, inputs, seed=seed, **{"input_gradients": True} | options) for either in (reference, model)
        )
        findings = compare_runs(expected, found)
        assert findings.passed, (findings.problems, str(findings.worst))


def reasons(report):
    """What the report says of blocks that are not fused."""
    return {row.reason for row in report.rows if row.reason}
