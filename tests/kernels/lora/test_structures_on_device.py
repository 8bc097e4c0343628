"""Every structure of the fused functions on the device of ``--device``: values, gradients and dropout masks."""

from __future__ import annotations

import pytest
import torch
from structure_cases import CASES, complaint

from patchkit_kernels.lora import linear


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_structure(case, device):
    assert complaint(case, device) is None


def test_a_wrong_result_is_a_complaint(monkeypatch):
    import structures

    original = linear.lora_projections
    monkeypatch.setattr(structures, "lora_projections", lambda *given: tuple(y * (1 + 1e-4) for y in original(*given)))
    for case in CASES:
        if case.structure == "qkv":
            assert "output 0 differs" in complaint(case), case


def test_a_gradient_on_one_side_is_a_complaint(monkeypatch):
    import structures

    original = linear.lora_projections
    monkeypatch.setattr(structures, "lora_projections", lambda x, *rest: original(x.detach(), *rest))
    assert complaint(CASES[0]) == "x on one side only"
    assert torch.is_grad_enabled()
