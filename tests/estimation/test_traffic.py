"""The work of single operations: FLOPs, and bytes that a kernel moves at least."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import patchkit_kernels.ops.activations  # noqa: F401  (registers the ops)
from patchkit.estimation.traffic import Traffic, Work


def work_of(function):
    with Traffic() as traffic:
        function()
    return dict(traffic.work)


X = torch.randn(5, 7)
W = torch.randn(7, 3)
Y = torch.randn(5, 3)
HALF = X.bfloat16(), W.bfloat16(), Y.bfloat16()


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda: X @ W, Work("float32 product", 2 * 5 * 7 * 3, 4 * (35 + 21 + 15))),
        (lambda: HALF[0] @ HALF[1], Work("half product", 2 * 5 * 7 * 3, 2 * (35 + 21 + 15))),
        (lambda: torch.addmm(Y, X, W), Work("float32 product", 210, 4 * (35 + 21 + 15 + 15))),
        (lambda: torch.addmm(Y, X, W, beta=0), Work("float32 product", 210, 4 * (35 + 21 + 15))),
        (lambda: X * 2, Work("pointwise", 0, 4 * 70)),
        (lambda: X.add_(1), Work("pointwise", 0, 4 * 70)),
        (lambda: X.bfloat16(), Work("pointwise", 0, 35 * 6)),
    ],
)
def test_an_operation(function, expected):
    assert work_of(function) == {expected: 1}


def test_what_is_expanded_counts_what_is_stored():
    scalar = torch.ones(1)
    assert work_of(lambda: X + scalar.expand(5, 7)) == {Work("pointwise", 0, 4 * (35 + 1 + 35)): 1}


def test_a_result_that_is_given_is_written_and_not_read():
    given = Y.clone()
    assert work_of(lambda: torch.mm(X, W, out=given)) == {Work("float32 product", 210, 4 * (35 + 21 + 15)): 1}
    assert work_of(lambda: given.copy_(Y)) == {Work("pointwise", 0, 4 * 30): 1}
    assert work_of(lambda: given.fill_(1)) == {Work("pointwise", 0, 4 * 15): 1}


def test_views_and_allocations_are_no_work():
    assert work_of(lambda: (X.t(), X[1:], X.reshape(7, 5), torch.empty(4))) == {}


def test_an_op_of_ours_is_one_operation():
    gate, up = torch.randn(4, 8), torch.randn(4, 8)
    op = torch.ops.patchkit.swiglu
    assert work_of(lambda: op(gate, up)) == {Work("pointwise", 0, 4 * 3 * 32): 1}


def test_totals():
    weight = W.clone().requires_grad_()
    with Traffic() as traffic:
        F.linear(X, weight.t()).sum().backward()
    assert traffic.flops == 2 * 210  # forward, and the gradient of the weight
    assert traffic.operations == sum(traffic.work.values()) >= 3
    assert traffic.bytes == sum(work.bytes * times for work, times in traffic.work.items())
