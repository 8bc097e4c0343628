"""A backward is called without autocast, wherever it is called, also where torch does not say whether it is on."""

from __future__ import annotations

import pytest
import torch

from patchkit_kernels.lora import differentiable
from patchkit_kernels.lora.differentiable import without_autocast


@pytest.mark.parametrize("says", [True, False], ids=["torch says", "torch does not say"])
@pytest.mark.parametrize("inside", [True, False], ids=["inside autocast", "outside"])
@pytest.mark.parametrize("missing", [0, 1, 2], ids=["every gradient", "no first", "none"])
def test_a_backward_sees_no_autocast(says, inside, missing, monkeypatch):
    if not says:
        monkeypatch.setattr(differentiable, "_any_autocast", differentiable._some_autocast)
    seen = []

    def backward(ctx, *grads):
        seen.append((ctx, grads, torch.is_autocast_enabled("cpu")))
        return grads

    grads = [None] * missing + [torch.ones(2)] * (2 - missing)
    with torch.autocast("cpu", torch.bfloat16, enabled=inside):
        assert without_autocast(backward)("ctx", *grads) == tuple(grads)
        assert torch.is_autocast_enabled("cpu") == inside
    ((ctx, given, autocast),) = seen
    assert (ctx, given) == ("ctx", tuple(grads))
    assert autocast == (inside and missing == 2), "without a gradient there is nothing to compute"
