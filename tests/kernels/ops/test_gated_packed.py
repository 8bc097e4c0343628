"""The gradients of gate and up side by side: the numbers of the op that gives them apart, in half of the passes."""

from __future__ import annotations

import pytest
import torch
from activation_cases import ACTIVATIONS, PACKED, Activation, tensors_for
from triton_interpreter import run_device_kernel

from patchkit_kernels.ops import gated_activation
from patchkit_kernels.ops.triton_support import TRITON_AVAILABLE

GATED = {name: activation for name, activation in ACTIVATIONS.items() if activation.gated}
each_activation = pytest.mark.parametrize("activation", GATED.values(), ids=GATED)
each_order = pytest.mark.parametrize("gate_first", [True, False])


@each_order
@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 4), (7,), (0, 5), (1, 6)], ids=str)
@each_activation
def test_the_bits_of_recompute(activation: Activation, shape: tuple[int, ...], gate_first: bool) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        grad, gate, up = tensors_for(activation, *shape, dtype=dtype)
        apart, own = grad.clone(), grad.clone()
        of_up, hidden = activation.recompute_op(apart, gate, up)
        packed = activation.packed_op(own, gate, up, gate_first)
        assert torch.equal(packed, torch.cat([apart, of_up] if gate_first else [of_up, apart], -1))
        assert torch.equal(own, hidden)
        assert packed.is_contiguous()


@pytest.mark.parametrize("at_once", [1, 5, 12, 64])
@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 5), (1, 7), (7,)], ids=str)
def test_a_few_rows_at_a_time(shape: tuple[int, ...], at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    activation = GATED["swiglu"]
    grad, gate, up = tensors_for(activation, *shape)
    whole, own, seen = grad.clone(), grad.clone(), []
    expected = activation.packed_op(whole, gate, up, True)
    monkeypatch.setattr(gated_activation, "AT_ONCE", at_once)
    write = activation.kernel._write_gradients
    monkeypatch.setattr(activation.kernel, "_write_gradients", lambda *parts: seen.append(parts[0]) or write(*parts))
    torch.testing.assert_close(activation.packed_op(own, gate, up, True), expected, rtol=1e-15, atol=0)
    torch.testing.assert_close(own, whole, rtol=1e-15, atol=0)
    # At least one row of the first dimension, even if it has more elements.
    assert max(part.numel() for part in seen) <= max(at_once, grad.numel() // shape[0] if len(shape) > 1 else 7)
    assert sum(part.numel() for part in seen) == grad.numel()


@pytest.mark.parametrize("way", [None, False, True])
def test_which_way(way: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    ops, calls = GATED["swiglu"].kernel, []
    monkeypatch.setattr(gated_activation, "runs_kernel", lambda tensor: way)
    for name in ("backward_packed", "backward_packed_reference", "launch_backward_packed"):
        monkeypatch.setattr(ops, name, lambda *args, name=name: calls.append((name, args)))
    ops.run_backward_packed(*(given := (torch.ones(2), 3, 4, True)))
    expected = {None: "backward_packed", False: "backward_packed_reference", True: "launch_backward_packed"}[way]
    assert calls == [(expected, given)]


@each_activation
def test_seen_by_the_compiler_as_written(activation: Activation) -> None:
    grad, gate, up = tensors_for(activation, 3, 5)

    def function(grad: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, ...]:
        own = grad * 2
        return own, activation.packed_op(own, gate, up, False)

    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, compiled(grad, gate, up), function(grad, gate, up)))
    arguments = grad.clone(), gate, up, False
    torch.library.opcheck(activation.packed_op, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.skipif(not TRITON_AVAILABLE, reason="no kernels to avoid")
def test_fp64_on_a_device_runs_the_reference() -> None:
    activation = GATED["swiglu"]
    grad, gate, up = tensors_for(activation, 3, 5)
    own, other = grad.clone(), grad.clone()
    found = run_device_kernel(activation.op_of(PACKED), [own, gate, up, True])
    assert torch.equal(found, activation.packed_op(other, gate, up, True))
    assert torch.equal(own, other)


def test_registered() -> None:
    for name in GATED:
        op = f"patchkit::{name}_backward_packed"
        assert torch._C._dispatch_has_kernel_for_dispatch_key(op, "Meta")
        for key in ("CUDA", "XPU"):
            assert torch._C._dispatch_has_kernel_for_dispatch_key(op, key) == TRITON_AVAILABLE


def test_what_does_not_fit() -> None:
    op = GATED["swiglu"].packed_op
    grad, gate, up = tensors_for(GATED["swiglu"], 3, 5)
    with pytest.raises(ValueError, match="writes over grad, which must be contiguous"):
        op(grad.mT.contiguous().mT, gate, up, True)
    with pytest.raises(ValueError, match=r"patchkit::swiglu_backward_packed takes .* but got grad: "):
        op(grad, gate[:, :1], up, True)
    with pytest.raises(ValueError, match=r"patchkit::swiglu_backward_packed takes .* but got grad: "):
        op(grad, gate, up.float(), True)


@each_order
def test_inputs_may_need_a_gradient(gate_first: bool) -> None:
    """As those of the op that gives them apart: neither has a derivative."""
    activation = GATED["swiglu"]
    grad, gate, up = tensors_for(activation, 3, 5)
    expected = activation.packed_op(grad.clone(), gate, up, gate_first)
    found = activation.packed_op(grad.clone(), gate.detach().requires_grad_(), up, gate_first)
    assert torch.equal(found, expected)
