"""The test of the test: every fault of the fused functions is caught by the contract.

Loss curves are no substitute. The largest relative difference of the losses of 30 AdamW steps (learning rate 1e-3) of
these tiny models from B = 0, measured with each fault, torch 2.13.0 on a CPU:

* dB without scale 3e-7, dA without scale 2e-6: Adam divides a constant factor out. erf-GELU for tanh-GELU 2e-5. These
  three are below even the tolerance of a curve, 1e-4.
* Further six are below one per cent, which nobody sees in a plot: LoRA term missing from dX of q/k/v 2.4e-3 and of o
  9.6e-3, norm with gradient 3.5e-3, dropout in another order 6.5e-3, a bias without gradient 7.7e-3, and with one adapter
  the second one ignored.
* The other faults are between 1.7e-2 (stale norm) and 0.77 (scale missing), and visible.

The gradients of one step with B that is not zero show every fault that is one of a step.
"""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from fused_mutants import FUSED, MUTANTS, injected, signatures

import patchkit
from patchkit.testing import CHECKS, CURVE_TOLERANCE, add_lora, tiny_inputs, tiny_model

APPLY = functools.partial(patchkit.apply, trust="always")


def made(name, lora_config):
    # A scaling that is no power of two and not one.
    model = add_lora(tiny_model(name), r=4, lora_alpha=11, **lora_config).train()
    return model, tiny_inputs(name, model)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_every_mutant_is_caught(mutant):
    name, lora_config, fault, functions, check = MUTANTS[mutant]
    model, inputs = made(name, lora_config)
    with injected(fault, functions) as calls:
        result = CHECKS[check](model, inputs, APPLY, revert=patchkit.revert)
    assert set(calls) == set(functions), "the fault was not reached"
    assert result.status == "failed", result
    assert "Traceback" not in str(result), result  # it computes something else; it does not merely crash


@pytest.mark.parametrize("lora_config", [{}, {"use_dora": True}, {"lora_bias": True}, {"bias": "all"}], ids=str)
def test_without_a_fault_the_same_checks_pass(lora_config):
    model, inputs = made("llama", lora_config)
    checks = {check for name, config, *_, check in MUTANTS.values() if name == "llama" and config == lora_config}
    with injected(lambda function, x, *arguments: function(x, *arguments)) as calls:
        for check in checks or {"forward_backward"}:
            result = CHECKS[check](model, inputs, APPLY)
            assert result.passed, result
    assert set(calls) == set(FUSED)


def test_the_faults_know_the_functions():
    assert {name: parameters[:3] for name, parameters in signatures().items()} == {
        "lora_linear": ["x", "projection", "precision"],
        "lora_projections": ["x", "projections", "precision"],
        "lora_gated_mlp": ["x", "inputs", "down"],
    }


def curve(model, inputs, steps=30):
    """Losses of AdamW from adapters whose B is zero, as training starts."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name and "bias" not in name:
            torch.nn.init.zeros_(parameter)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    torch.manual_seed(0)
    losses = []
    for _ in range(steps):
        loss = model(**inputs, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@pytest.mark.parametrize("mutant", ["dA without scale", "dB without scale", "erf-GELU for tanh-GELU"])
def test_a_loss_curve_from_zero_misses_what_gradients_show(mutant):
    """Why the contract does not rest on curves."""
    name, lora_config, fault, functions, check = MUTANTS[mutant]
    model, inputs = made(name, lora_config)
    expected = curve(copy.deepcopy(model), inputs)
    patched = copy.deepcopy(model)
    APPLY(patched)
    with injected(fault, functions):
        found = curve(patched, inputs)
    assert expected[-1] < 0.6 * expected[0]  # it does learn
    assert ((found - expected) / expected).abs().max() < CURVE_TOLERANCE
    with injected(fault, functions):
        assert CHECKS[check](model, inputs, APPLY).status == "failed"
