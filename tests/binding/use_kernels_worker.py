"""Process of its own for ``use_kernels=True``: whether transformers uses ``kernels`` is decided when it is imported.

Each release of transformers asks for one minor release of ``kernels``, and not every package index has that. What is
used here (a mapping, ``kernelize``) is older than that, so the check of the version is answered with yes.
"""

from __future__ import annotations

import copy
import warnings

import transformers.utils.import_utils

for module in (transformers.utils.import_utils, transformers.utils):
    module.is_kernels_available = lambda *arguments, **options: True

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

import kernels  # noqa: E402
import patchkit  # noqa: E402
from patchkit.testing import add_lora, compare_runs, run, tiny_inputs, tiny_model  # noqa: E402

calls = 0


class FastSiLU(nn.Module):
    """A kernel layer for the activation, in training only."""

    def forward(self, input):
        global calls
        calls += 1
        return F.silu(input)


class Repository:
    def load(self):
        return FastSiLU


def check(order: str) -> None:
    """Applies both in this order, and compares through changes of mode."""
    global calls
    reference = add_lora(tiny_model("llama")).train()
    model = copy.deepcopy(reference)
    reference.base_model.model.set_use_kernels(True)
    if order == "kernels first":
        model.base_model.model.set_use_kernels(True)
        patchkit.apply(model)
    else:
        patchkit.apply(model)
        model.base_model.model.set_use_kernels(True)
    inputs = tiny_inputs("llama", model)
    for training in (True, False, True):
        model.train(training)
        reference.train(training)
        levels = {row.part: row.level for row in patchkit.report(model).rows}
        assert levels["qkv"] == levels["o"] == "fused", (order, levels)
        expected = run(reference, inputs)
        calls = 0
        findings = compare_runs(expected, run(model, inputs))
        assert findings.passed, (order, training, findings.problems, str(findings.worst))
        if training:
            # The kernel of the activation was asked for, so the MLP is not fused around it.
            assert calls == 2, (order, calls)
            assert levels["mlp"] == "alone", (order, levels)
    patchkit.revert(model)
    assert compare_runs(expected, run(model, inputs)).passed


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    kernels.register_kernel_mapping({"SiLU": {"cpu": {kernels.Mode.TRAINING: Repository()}}})
    for order in ("kernels first", "patchkit first"):
        check(order)
