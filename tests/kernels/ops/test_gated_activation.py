"""The gated activations' ops on the CPU, where they run the torch reference: values, derivatives, any tensor, errors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from gated_activation_cases import (
    ACTIVATIONS,
    Activation,
    complaint,
    eager,
    three,
    truth,
)
from gated_activation_cases import CASES as KERNEL_CASES
from hypothesis import given, settings
from hypothesis import strategies as st
from strided_tensors import ALL_DTYPES, strided_tensors, uniform
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from triton_interpreter import run_device_kernel

from patchkit.testing import Result, RoundingErrors
from patchkit_kernels.ops import gated_activation
from patchkit_kernels.ops.gated_activation import _as_rows
from patchkit_kernels.ops.swiglu import SWIGLU
from patchkit_kernels.ops.triton_support import TRITON_AVAILABLE, device_guard

each_activation = pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
each_dtype = pytest.mark.parametrize("dtype", ALL_DTYPES.values(), ids=ALL_DTYPES)


# --- values -----------------------------------------------------------------------------------------------------------


@each_dtype
@each_activation
def test_same_bits_as_eager(activation: Activation, dtype: torch.dtype) -> None:
    tensors = three(4, 300, dtype=dtype)
    grad, gate, up = tensors
    assert torch.equal(activation.forward(gate, up), eager(activation, [gate, up])[0])
    assert torch.equal(activation.kernel.reference(gate, up), activation.forward(gate, up))
    expected = eager(activation, tensors)
    by_autograd = [tensor.detach().requires_grad_() for tensor in (gate, up)]
    activation.forward(*by_autograd).backward(grad)
    for results in (
        activation.backward(grad, gate, up),
        activation.kernel.backward_reference(grad, gate, up),
        [tensor.grad for tensor in by_autograd],
    ):
        assert all(torch.equal(result, other) for result, other in zip(results, expected, strict=True))


@each_activation
def test_is_the_papers_formula(activation: Activation) -> None:
    """In fp64, and so that no other activation passes: within [-6, 6] they differ by 1e-4 and more (F3)."""
    grad, gate, up = three(4, 500)
    wanted = [tensor.clone().requires_grad_() for tensor in (gate, up)]
    hidden = activation.formula(wanted[0]) * wanted[1]
    gradients = torch.autograd.grad(hidden, wanted, grad)
    torch.testing.assert_close(activation.forward(gate, up), hidden.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(activation.backward(grad, gate, up), gradients, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("one", ACTIVATIONS)
@pytest.mark.parametrize("other", ACTIVATIONS)
def test_no_two_are_equal_to_1e_6(one: str, other: str) -> None:
    """What F3's invariant rests on: mistaking one for another shows at its tolerance, in fp32, in every result."""
    tensors = three(4, 500, dtype=torch.float32)
    if one == other:
        return
    for count in (2, 3):
        results = [eager(ACTIVATIONS[name], tensors[-count:]) for name in (one, other)]
        ours = [
            getattr(ACTIVATIONS[name], ("forward", "backward")[count - 2])(*tensors[-count:]) for name in (one, other)
        ]
        ours = [(result,) if isinstance(result, Tensor) else result for result in ours]
        for mine, theirs, wrong in zip(ours[0], *results, strict=True):
            assert (mine - theirs).norm() <= 1e-6 * theirs.norm()
            assert (mine - wrong).norm() > 1e-5 * wrong.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@each_activation
def test_error_is_no_worse_than_eagers(activation: Activation, dtype: torch.dtype) -> None:
    """By the criterion of ``patchkit.testing.rounding``; nothing is summed."""
    errors = RoundingErrors()
    grad, gate, up = three(20, 1000, dtype=dtype)
    for count, results, tensors in (
        (1, (activation.forward(gate, up),), [gate, up]),
        (2, activation.backward(grad, gate, up), [grad, gate, up]),
    ):
        found = zip(truth(activation, tensors), eager(activation, tensors), results, strict=True)
        for index, (exact, other, result) in enumerate(found):
            errors.add_draw(f"{count}, {index}", [Result(exact, other, result)])
    assert not errors.failures()


@pytest.mark.parametrize("case", [case for case in KERNEL_CASES if case.dtype == "fp32"], ids=lambda case: case.id)
def test_kernel_cases_on_the_reference(case: Any) -> None:
    if "extreme" in case.layout and case.activation == "geglu_erf":
        pytest.skip("torch's vectorised fp32 erf on the CPU gives NaN for infinity")
    assert complaint(case, lambda op, tensors: op(*tensors)) is None


# --- derivatives ------------------------------------------------------------------------------------------------------


@each_activation
def test_gradcheck(activation: Activation) -> None:
    _, gate, up = three(3, 5)
    inputs = (gate.clone().requires_grad_(), up.clone().requires_grad_())
    assert torch.autograd.gradcheck(activation.forward, inputs)
    assert torch.autograd.gradgradcheck(activation.forward, inputs)


@each_activation
def test_gradcheck_of_the_backward_op(activation: Activation) -> None:
    assert torch.autograd.gradcheck(activation.backward, [tensor.clone().requires_grad_() for tensor in three(3, 5)])


@pytest.mark.parametrize("trained", [(True, False), (False, True)], ids=["gate", "up"])
@each_activation
def test_only_one_input_needs_a_gradient(activation: Activation, trained: tuple[bool, bool]) -> None:
    grad, gate, up = three(3, 5)
    # In the layout of eager's inputs: which elements a CPU computes together depends on it, and with that their bits.
    inputs = [tensor.detach().requires_grad_(flag) for tensor, flag in zip((gate, up), trained, strict=True)]
    activation.forward(*inputs).backward(grad)
    for tensor, flag, expected in zip(inputs, trained, eager(activation, [grad, gate, up]), strict=True):
        assert torch.equal(tensor.grad, expected) if flag else tensor.grad is None


@each_activation
def test_no_graph_without_gradients(activation: Activation) -> None:
    _, gate, up = three(3, 5)
    assert not activation.forward(gate, up).requires_grad
    with torch.no_grad():
        assert not activation.forward(gate.clone().requires_grad_(), up).requires_grad


@each_activation
def test_two_backwards_give_the_same_gradients(activation: Activation) -> None:
    grad, gate, up = three(3, 50, dtype=torch.float32)
    inputs = (gate.clone().requires_grad_(), up.clone().requires_grad_())
    hidden = activation.forward(*inputs)
    first = torch.autograd.grad(hidden, inputs, grad, retain_graph=True)
    second = torch.autograd.grad(hidden, inputs, grad)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


# --- any tensor -------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(list(ACTIVATIONS)), tensors=strided_tensors(3))
def test_any_shape_stride_and_dtype(name: str, tensors: list[Tensor]) -> None:
    activation = ACTIVATIONS[name]
    before = [tensor.clone() for tensor in tensors]
    results = (activation.forward(*tensors[1:]), *activation.backward(*tensors))
    expected = (*eager(activation, tensors[1:]), *eager(activation, tensors))
    for result, other in zip(results, expected, strict=True):
        assert result.dtype == other.dtype
        assert result.shape == other.shape
        assert result.is_contiguous()
        # Not the same bits: strides decide which elements torch computes with vector instructions.
        tolerance = 4 * torch.finfo(result.dtype).eps
        torch.testing.assert_close(result, other, rtol=tolerance, atol=tolerance)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(tensors, before, strict=True))


@settings(max_examples=150, deadline=None)
@given(tensors=strided_tensors(3).filter(lambda tensors: tensors[0].numel() > 0))
def test_rows_describe_the_tensors(tensors: list[Tensor]) -> None:
    """What the launcher hands to the kernels reads the same elements, in the same order."""
    as_rows, rows, columns, strides = _as_rows(*tensors)
    for tensor, view, stride in zip(tensors, as_rows, strides, strict=True):
        assert torch.equal(view.as_strided((rows, columns), (stride, 1)).reshape(tensor.shape), tensor)


def test_halves_of_a_fused_tensor_are_not_copied() -> None:
    grad, gate, up = uniform(2, 3, 8, seed=0), *uniform(2, 3, 16, seed=1).chunk(2, -1)
    as_rows, rows, columns, strides = _as_rows(grad, gate, up)
    assert [view.data_ptr() for view in as_rows] == [tensor.data_ptr() for tensor in (grad, gate, up)]
    assert (rows, columns, strides) == (6, 8, [8, 16, 16])


def test_last_tokens_are_not_copied() -> None:
    last = uniform(2, 3, 8, seed=0)[:, -1:]
    as_rows, rows, columns, strides = _as_rows(last)
    assert as_rows[0].data_ptr() == last.data_ptr()
    assert (rows, columns, strides) == (2, 8, [24])


def test_contiguous_tensors_are_one_row() -> None:
    assert _as_rows(uniform(2, 3, 8, seed=0))[1:] == (1, 48, [0])


# --- launching --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0,), (3, 5)], ids=["empty", "full"])
def test_launches_under_a_device_guard_and_only_if_there_is_work(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []

    class Kernel:
        def __getitem__(self, grid: Any) -> Callable[..., None]:
            return lambda *args, **kwargs: events.append(f"launch of {grid}")

    @contextlib.contextmanager
    def guard(tensor: Tensor) -> Iterator[None]:
        events.append("guard")
        yield
        events.append("end of guard")

    monkeypatch.setattr(gated_activation, "device_guard", guard)
    monkeypatch.setattr(gated_activation, "gated_forward_kernel", Kernel())
    monkeypatch.setattr(gated_activation, "gated_backward_kernel", Kernel())
    tensor = torch.ones(shape)
    for launch in (lambda: SWIGLU.launch(tensor, tensor), lambda: SWIGLU.launch_backward(tensor, tensor, tensor)):
        events.clear()
        launch()
        assert events == ([] if tensor.numel() == 0 else ["guard", "launch of (1,)", "end of guard"])


def test_the_device_guard_is_for_the_tensors_device() -> None:
    with FakeTensorMode():
        tensor = torch.empty(3, device="cuda:1")
    guard = device_guard(tensor)
    assert isinstance(guard, torch.cuda.device)
    assert guard.idx == 1


@pytest.mark.skipif(not TRITON_AVAILABLE, reason="no kernels to avoid")
@each_activation
def test_fp64_on_a_device_runs_the_reference(activation: Activation) -> None:
    for tensors in (three(3, 5)[1:], three(3, 5)):
        results = run_device_kernel((activation.op, activation.backward_op)[len(tensors) - 2], tensors)
        results = (results,) if isinstance(results, Tensor) else results
        assert all(map(torch.equal, results, eager(activation, tensors)))


@each_activation
def test_the_gradient_that_is_written_over_must_be_contiguous(activation: Activation) -> None:
    grad, gate, up = three(3, 5)
    with pytest.raises(ValueError, match="writes over grad, which must be contiguous"):
        activation.recompute_op(grad.mT.contiguous().mT, gate, up)


@each_activation
def test_recompute_gives_the_bits_of_the_two_other_ops(activation: Activation) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        grad, gate, up = three(3, 5, dtype=dtype)
        expected = (*activation.backward_op(grad, gate, up), activation.op(gate, up))
        own = grad.clone()
        assert all(map(torch.equal, (own, *activation.recompute_op(own, gate, up)), expected))


@each_activation
def test_recompute_is_seen_as_writing_by_the_compiler(activation: Activation) -> None:
    grad, gate, up = three(3, 5)

    def function(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, ...]:
        own = grad * 2
        return (own, *activation.recompute_op(own, gate, up))

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, compiled(grad, gate, up), function(grad, gate, up)))
    torch.library.opcheck(
        activation.recompute_op, (grad.clone(), gate, up), test_utils=("test_schema", "test_faketensor")
    )


# --- wrong input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fake", [False, True], ids=["real", "fake"])
@pytest.mark.parametrize(
    "spoil",
    [lambda up: up[:, :1], lambda up: up[:1], lambda up: up.bfloat16(), lambda up: up.to("meta")],
    ids=["columns", "rows", "dtype", "device"],
)
@each_activation
def test_tensors_that_do_not_fit(activation: Activation, spoil: Callable[[Tensor], Tensor], fake: bool) -> None:
    with FakeTensorMode() if fake else torch.no_grad():
        gate, up = torch.ones(3, 5), torch.ones(3, 5)
        if fake and spoil(up).device.type == "meta":
            pytest.skip("FakeTensor itself raises")
        with pytest.raises(ValueError, match=rf"patchkit::{activation.kernel.name} takes .* but got gate: \[3, 5\]"):
            activation.forward(gate, spoil(up))
        with pytest.raises(ValueError, match=rf"patchkit::{activation.kernel.name}_backward takes .* but got grad: "):
            activation.backward(gate, gate, spoil(up))
        with pytest.raises(ValueError, match=rf"patchkit::{activation.kernel.name}_backward takes .* but got grad: "):
            activation.backward(spoil(up), gate, up)
