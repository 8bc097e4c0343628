"""Patched against an unpatched copy, in words for the tests of this folder."""

from __future__ import annotations

import copy

import patchkit
from patchkit.testing import add_lora, compare_runs, run, tiny_inputs, tiny_model


def pair(name="llama", overrides=None, **lora):
    """(reference, patched), both in train mode; the reference was copied before patching."""
    model = add_lora(tiny_model(name, **(overrides or {})), **lora).train()
    reference = copy.deepcopy(model)
    patchkit.apply(model)
    return reference, model


def assert_same(reference, model, name="llama", *, seeds=(0,), tolerance=1e-5, **options):
    """Outputs, loss and every gradient; the same parameters without gradient."""
    inputs = tiny_inputs(name, model)
    for seed in seeds:
        expected, found = (run(m, inputs, seed=seed, input_gradients=True, **options) for m in (reference, model))
        findings = compare_runs(expected, found, tolerance)
        assert findings.passed, (findings.problems, str(findings.worst))


def assert_fused(model):
    """Every block that has an adapter runs fused."""
    report = patchkit.report(model)
    assert report.counts.get("fused")
    assert not [row for row in report.rows if row.level != "fused" and not row.expected], str(report)


def unpatched_copy(model):
    """The same numbers, never patched again: what upstream makes of the model as it is now."""
    reference = copy.deepcopy(model)
    patchkit.revert(reference)
    return reference


def named(model, *suffixes):
    """The modules whose names end so."""
    return [module for name, module in model.named_modules() if name.endswith(suffixes)]
