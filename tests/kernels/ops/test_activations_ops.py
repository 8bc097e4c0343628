"""The activations' ops, plain and gated, within torch's machinery: opcheck, FakeTensor, torch.compile, checkpointing, no Triton."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from activation_cases import ACTIVATIONS, Activation, tensors_for
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
        "halves": lambda: tensors_for(activation, 3, 5),
        "transposed": lambda: [uniform(5, 3, seed=seed).mT for seed in range(3)],
        "empty": lambda: tensors_for(activation, 0, 5),
        "bf16": lambda: tensors_for(activation, 3, 5, dtype=torch.bfloat16),
    }[layout]()
    grad, *inputs = [
        tensor.requires_grad_() if tensor.is_leaf else tensor.detach().requires_grad_()
        for tensor in tensors[: 1 + len(activation.kernel.inputs)]
    ]
    torch.library.opcheck(activation.op, tuple(inputs))
    torch.library.opcheck(activation.backward_op, (grad, *inputs))


@each_activation
def test_fake_tensors(activation: Activation) -> None:
    with FakeTensorMode():
        count = len(activation.kernel.inputs)
        grad, *inputs = [torch.empty(7, 4, dtype=torch.bfloat16, device="cuda").mT for _ in range(1 + count)]
        for result in (activation.forward(*inputs), *activation.backward(grad, *inputs)):
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

    count = len(activation.kernel.inputs)
    compiled = torch.compile(
        lambda fused: activation.kernel.forward(*(fused * 2).chunk(2, -1)[:count]) + 1,
        fullgraph=True,
        dynamic=dynamic,
        backend=backend,
    )
    for rows in (3, 4):
        fused = uniform(rows, 10, seed=rows).float().requires_grad_()
        result = compiled(fused)
        expected = activation.of(activation.eager, *(fused * 2).chunk(2, -1)[:count]) + 1
        torch.testing.assert_close(result, expected)
        weights = uniform(rows, 5, seed=9).float()
        gradients = [torch.autograd.grad((hidden * weights).sum(), fused)[0] for hidden in (result, expected)]
        torch.testing.assert_close(*gradients)
    assert f"patchkit.{activation.kernel.name}.default" in names


@each_activation
def test_compiles_with_inductor(activation: Activation) -> None:
    torch.compiler.reset()
    count = len(activation.kernel.inputs)
    inputs = [uniform(3, 5, seed=seed).float().requires_grad_() for seed in range(count)]
    result = torch.compile(lambda *tensors: activation.kernel.forward(*tensors), fullgraph=True)(*inputs)
    expected = activation.of(activation.eager, *inputs)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(*(torch.autograd.grad(hidden.sum(), inputs) for hidden in (result, expected)))


@each_activation
def test_selective_checkpointing_sees_the_op(activation: Activation) -> None:
    seen = []

    def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        seen.append((context.is_recompute, op))
        return CheckpointPolicy.MUST_SAVE if op is activation.op else CheckpointPolicy.PREFER_RECOMPUTE

    def block(first: Tensor, *others: Tensor) -> Tensor:
        return activation.forward(first * 2, *others).exp()

    grad, *inputs = [tensor.detach().requires_grad_() for tensor in tensors_for(activation, 3, 5)]
    hidden = checkpoint(
        block, *inputs, use_reentrant=False, context_fn=lambda: create_selective_checkpoint_contexts(policy)
    )
    results = torch.autograd.grad(hidden, inputs, grad)
    assert (False, activation.op) in seen
    expected = torch.autograd.grad(block(*inputs), inputs, grad)
    assert all(torch.equal(result, other) for result, other in zip(results, expected, strict=True))


@each_activation
def test_autocast_leaves_the_dtype_alone(activation: Activation) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        _, *inputs = tensors_for(activation, 3, 5, dtype=dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert activation.forward(*inputs).dtype == activation.of(activation.eager, *inputs).dtype == dtype


def test_registered_for_cuda_xpu_and_fake_tensors() -> None:
    for name in ACTIVATIONS:
        for op in (f"patchkit::{name}", f"patchkit::{name}_backward", f"patchkit::{name}_backward_recompute"):
            assert torch._C._dispatch_has_kernel_for_dispatch_key(op, "Meta")
            for key in ("CUDA", "XPU"):
                assert torch._C._dispatch_has_kernel_for_dispatch_key(op, key) == TRITON_AVAILABLE


def test_without_triton() -> None:
    """As on macOS and Windows: the modules import, and every device is left to the reference."""
    program = """
import sys
sys.modules["triton"] = None  # makes `import triton` raise ImportError
import torch
from patchkit_kernels.ops.activations import GATED, PLAIN
from patchkit_kernels.ops.dora_norm import dora_weight_norm
from patchkit_kernels.ops.dropout import masked, pack_mask
from patchkit_kernels.ops.triton_support import TRITON_AVAILABLE

assert not TRITON_AVAILABLE
gate, up = torch.randn(2, 3, 5).requires_grad_()
for ops in GATED.values():
    assert torch.equal(ops.forward(gate, up), ops.reference(gate, up))
    ops.forward(gate, up).sum().backward()
for ops in PLAIN.values():
    assert torch.equal(ops.forward(gate), ops.reference(gate))
    ops.forward(gate).sum().backward()
assert dora_weight_norm(gate, gate[:2], gate[:, :2], 1.0).shape == (3,)
assert torch.equal(masked(up, pack_mask(up > 0), 2.0), up.relu() * 2)
for op in ("swiglu", "silu", "dora_weight_norm", "pack_mask", "masked", "masked_"):
    assert not torch._C._dispatch_has_kernel_for_dispatch_key(f"patchkit::{op}", "CUDA")
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
