"""The gated activations' ops within torch's machinery: opcheck, FakeTensor, torch.compile, checkpointing, no Triton."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gated_activation_cases import ACTIVATIONS, Activation, three
from strided_tensors import uniform
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from patchkit_kernels.ops.triton_support import TRITON_AVAILABLE

each_activation = pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)


@pytest.mark.parametrize("layout", ["contiguous", "halves", "transposed", "empty", "bf16"])
@each_activation
def test_opcheck(activation: Activation, layout: str) -> None:
    tensors = {
        "contiguous": lambda: [uniform(3, 5, seed=seed) for seed in range(3)],
        "halves": lambda: three(3, 5),
        "transposed": lambda: [uniform(5, 3, seed=seed).mT for seed in range(3)],
        "empty": lambda: three(0, 5),
        "bf16": lambda: three(3, 5, dtype=torch.bfloat16),
    }[layout]()
    grad, gate, up = (
        tensor.requires_grad_() if tensor.is_leaf else tensor.detach().requires_grad_() for tensor in tensors
    )
    torch.library.opcheck(activation.op, (gate, up))
    torch.library.opcheck(activation.backward_op, (grad, gate, up))


@each_activation
def test_fake_tensors(activation: Activation) -> None:
    with FakeTensorMode():
        grad, gate, up = (torch.empty(7, 4, dtype=torch.bfloat16, device="cuda").mT for _ in range(3))
        for result in (activation.forward(gate, up), *activation.backward(grad, gate, up)):
            assert (result.shape, result.dtype, result.device.type) == ((4, 7), torch.bfloat16, "cuda")
            assert result.is_contiguous()


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@each_activation
def test_compiles_without_graph_break(activation: Activation, dynamic: bool) -> None:
    torch.compiler.reset()
    names = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        names.extend(str(node.target) for node in graph.graph.nodes)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(
        lambda fused: activation.forward(*(fused * 2).chunk(2, -1)) + 1,
        fullgraph=True,
        dynamic=dynamic,
        backend=backend,
    )
    for rows in (3, 4):
        fused = uniform(rows, 10, seed=rows).float().requires_grad_()
        result = compiled(fused)
        expected = activation.eager(fused[:, :5] * 2) * fused[:, 5:] * 2 + 1
        torch.testing.assert_close(result, expected)
        weights = uniform(rows, 5, seed=9).float()
        gradients = [torch.autograd.grad((hidden * weights).sum(), fused)[0] for hidden in (result, expected)]
        torch.testing.assert_close(*gradients)
    assert f"patchkit.{activation.kernel.name}.default" in names


@each_activation
def test_compiles_with_inductor(activation: Activation) -> None:
    torch.compiler.reset()
    gate, up = (uniform(3, 5, seed=seed).float().requires_grad_() for seed in range(2))
    result = torch.compile(activation.forward, fullgraph=True)(gate, up)
    expected = activation.eager(gate) * up
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(*(torch.autograd.grad(hidden.sum(), (gate, up)) for hidden in (result, expected)))


@each_activation
def test_selective_checkpointing_sees_the_op(activation: Activation) -> None:
    seen = []

    def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        seen.append((context.is_recompute, op))
        return CheckpointPolicy.MUST_SAVE if op is activation.op else CheckpointPolicy.PREFER_RECOMPUTE

    def block(gate: Tensor, up: Tensor) -> Tensor:
        return activation.forward(gate * 2, up).exp()

    grad, gate, up = (tensor.detach().requires_grad_() for tensor in three(3, 5))
    hidden = checkpoint(
        block, gate, up, use_reentrant=False, context_fn=lambda: create_selective_checkpoint_contexts(policy)
    )
    results = torch.autograd.grad(hidden, (gate, up), grad)
    assert (False, activation.op) in seen
    expected = torch.autograd.grad(block(gate, up), (gate, up), grad)
    assert all(torch.equal(result, other) for result, other in zip(results, expected, strict=True))


@each_activation
def test_autocast_leaves_the_dtype_alone(activation: Activation) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        _, gate, up = three(3, 5, dtype=dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert activation.forward(gate, up).dtype == (activation.eager(gate) * up).dtype == dtype


def test_registered_for_cuda_xpu_and_fake_tensors() -> None:
    for name in ACTIVATIONS:
        for op in (f"patchkit::{name}", f"patchkit::{name}_backward"):
            assert torch._C._dispatch_has_kernel_for_dispatch_key(op, "Meta")
            for key in ("CUDA", "XPU"):
                assert torch._C._dispatch_has_kernel_for_dispatch_key(op, key) == TRITON_AVAILABLE


def test_without_triton() -> None:
    """As on macOS and Windows: the modules import, and every device is left to the reference."""
    program = """
import sys
sys.modules["triton"] = None  # makes `import triton` raise ImportError
import torch
from patchkit_kernels.ops.dora_norm import dora_weight_norm
from patchkit_kernels.ops.dropout import masked, pack_mask
from patchkit_kernels.ops.geglu import geglu_erf, geglu_tanh
from patchkit_kernels.ops.swiglu import swiglu, swiglu_reference
from patchkit_kernels.ops.triton_support import TRITON_AVAILABLE

assert not TRITON_AVAILABLE
gate, up = torch.randn(2, 3, 5).requires_grad_()
assert torch.equal(swiglu(gate, up), swiglu_reference(gate, up))
(swiglu(gate, up) + geglu_erf(gate, up) + geglu_tanh(gate, up)).sum().backward()
assert dora_weight_norm(gate, gate[:2], gate[:, :2], 1.0).shape == (3,)
assert torch.equal(masked(up, pack_mask(up > 0), 2.0), up.relu() * 2)
for op in ("swiglu", "dora_weight_norm", "pack_mask", "masked", "masked_"):
    assert not torch._C._dispatch_has_kernel_for_dispatch_key(f"patchkit::{op}", "CUDA")
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
