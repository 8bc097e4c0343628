"""A product that is added in place: what it computes, and that a compiler makes no new tensor of it."""

from __future__ import annotations

import pytest
import torch
from projection_cases import make, tensors
from structures import LORA
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.library import opcheck

from patchkit_kernels.lora.linear import lora_projections
from patchkit_kernels.lora.projection import Precision
from patchkit_kernels.ops.addmm import addmm_

OP = torch.ops.patchkit.addmm_.default


def three(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    total, left, right = (torch.randn(shape, generator=generator).to(dtype) for shape in ((5, 7), (5, 3), (3, 7)))
    return total, left, right


@pytest.mark.parametrize("call", [addmm_, OP], ids=["function", "op"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_is_written_over_the_total(call, dtype):
    total, left, right = three(dtype)
    expected = torch.addmm(total, left, right, alpha=0.7)
    result = call(total, left, right, 0.7)
    assert result is (total if call is addmm_ else None)
    assert torch.equal(total, expected)


def test_opcheck():
    opcheck(OP, (*three(), 0.7))


@pytest.mark.parametrize("shapes", [((5, 7), (5, 3), (3, 6)), ((5, 7), (4, 3), (3, 7)), ((5, 7), (5, 3), (2, 7))])
def test_fake_tensors_that_do_not_fit(shapes):
    with FakeTensorMode(), pytest.raises(ValueError, match=r"but got \[5, 7\], "):
        OP(*[torch.ones(shape) for shape in shapes], 1.0)


@pytest.mark.parametrize("adapters", [1, 2])
def test_compiled_projections_add_to_no_copy(adapters):
    """An ``addmm`` of a whole matrix would be handed a copy of it; those whose first argument is not read remain."""
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph.graph)
        return graph

    torch.compiler.reset()
    made = [make(16, 12, 4, seed=i, extras=(LORA,) * adapters, bias=True) for i in range(2)]
    x = torch.randn(8, 16, dtype=torch.float64, requires_grad=True)
    precision = Precision(*[torch.float64] * 4)
    compiled = torch.compile(
        lambda x: lora_projections(x, made, precision), fullgraph=True, backend=aot_autograd(fw_compiler=keep)
    )
    results = []
    for function in (compiled, lambda x: lora_projections(x, made, precision)):
        outputs = function(x)
        results.append([*outputs, *torch.autograd.grad(sum(y.sum() for y in outputs), [x, *tensors(made)])])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)
    nodes = [node for graph in graphs for node in graph.nodes]
    assert len(graphs) == 2
    # Of each adapter in forward; of the second W in backward, and of the A's.
    assert sum(OP in node.args or node.target is OP for node in nodes) == 2 * adapters + 2
    whole = [node for node in nodes if node.target is torch.ops.aten.addmm.default and node.kwargs.get("beta") != 0]
    assert [node for node in whole if node.args[0].meta["val"].dim() == 2] == []
    torch.compiler.reset()
