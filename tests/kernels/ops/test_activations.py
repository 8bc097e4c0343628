"""The activations' ops, plain and gated, on the CPU, where they run the torch reference: values, derivatives, any tensor, errors."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from activation_cases import (
    ACTIVATIONS,
    FUNCTIONS,
    Activation,
    as_tuple,
    complaint,
    eager,
    tensors_for,
    truth,
)
from activation_cases import CASES as KERNEL_CASES
from hypothesis import given, settings
from hypothesis import strategies as st
from strided_tensors import ALL_DTYPES, strided_tensors, uniform
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from triton_interpreter import run_device_kernel

from patchkit.testing import Result, RoundingErrors
from patchkit_kernels.ops import elementwise
from patchkit_kernels.ops.rows import as_rows
from patchkit_kernels.ops.triton_support import TRITON_AVAILABLE, device_guard

each_activation = pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
GATED = {name: activation for name, activation in ACTIVATIONS.items() if activation.gated}
each_dtype = pytest.mark.parametrize("dtype", ALL_DTYPES.values(), ids=ALL_DTYPES)


# --- values -----------------------------------------------------------------------------------------------------------


@each_dtype
@each_activation
def test_same_bits_as_eager(activation: Activation, dtype: torch.dtype) -> None:
    tensors = tensors_for(activation, 4, 300, dtype=dtype)
    grad, *inputs = tensors
    assert torch.equal(activation.forward(*inputs), eager(activation, inputs)[0])
    assert torch.equal(activation.kernel.reference(*inputs), activation.forward(*inputs))
    expected = eager(activation, tensors)
    by_autograd = [tensor.detach().requires_grad_() for tensor in inputs]
    activation.forward(*by_autograd).backward(grad)
    for results in (
        activation.backward(grad, *inputs),
        activation.kernel.backward_reference(grad, *inputs),
        [tensor.grad for tensor in by_autograd],
    ):
        assert all(torch.equal(result, other) for result, other in zip(results, expected, strict=True))


@each_activation
def test_is_the_papers_formula(activation: Activation) -> None:
    """In fp64, and so that no other activation passes: within [-6, 6] they differ by 1e-4 and more (F3)."""
    grad, *inputs = tensors_for(activation, 4, 500)
    wanted = [tensor.clone().requires_grad_() for tensor in inputs]
    hidden = activation.of(activation.formula, *wanted)
    gradients = torch.autograd.grad(hidden, wanted, grad)
    torch.testing.assert_close(activation.forward(*inputs), hidden.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(activation.backward(grad, *inputs), gradients, rtol=1e-12, atol=1e-12)


FORMS = {"gated": [gated for _, _, gated in FUNCTIONS.values()], "plain": list(FUNCTIONS)}


@pytest.mark.parametrize(
    ("one", "other"), [pair for names in FORMS.values() for pair in itertools.permutations(names, 2)]
)
def test_no_two_are_equal_to_1e_6(one: str, other: str) -> None:
    """What F3's invariant rests on: mistaking one for another shows at its tolerance, in fp32, in every result."""
    grad, *inputs = tensors_for(ACTIVATIONS[one], 4, 500, dtype=torch.float32)
    for direction, tensors in (("forward", inputs), ("backward", [grad, *inputs])):
        results = [eager(ACTIVATIONS[name], tensors) for name in (one, other)]
        ours = as_tuple(getattr(ACTIVATIONS[one], direction)(*tensors))
        for mine, theirs, wrong in zip(ours, *results, strict=True):
            assert (mine - theirs).norm() <= 1e-6 * theirs.norm()
            assert (mine - wrong).norm() > 1e-5 * wrong.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@each_activation
def test_error_is_no_worse_than_eagers(activation: Activation, dtype: torch.dtype) -> None:
    """By the criterion of ``patchkit.testing.rounding``; nothing is summed."""
    errors = RoundingErrors()
    grad, *inputs = tensors_for(activation, 20, 1000, dtype=dtype)
    for count, results, tensors in (
        (1, (activation.forward(*inputs),), inputs),
        (2, activation.backward(grad, *inputs), [grad, *inputs]),
    ):
        found = zip(truth(activation, tensors), eager(activation, tensors), results, strict=True)
        for index, (exact, other, result) in enumerate(found):
            errors.add_draw(f"{count}, {index}", [Result(exact, other, result)])
    assert not errors.failures()


@pytest.mark.parametrize("case", [case for case in KERNEL_CASES if case.dtype == "fp32"], ids=lambda case: case.id)
def test_kernel_cases_on_the_reference(case: Any) -> None:
    if "extreme" in case.layout and case.activation in ("geglu_erf", "gelu_erf"):
        pytest.skip("torch's vectorised fp32 erf on the CPU gives NaN for infinity")
    assert complaint(case, lambda op, tensors: op(*tensors)) is None


# --- derivatives ------------------------------------------------------------------------------------------------------


@each_activation
def test_gradcheck(activation: Activation) -> None:
    inputs = [tensor.clone().requires_grad_() for tensor in tensors_for(activation, 3, 5)[1:]]
    assert torch.autograd.gradcheck(activation.forward, inputs)
    assert torch.autograd.gradgradcheck(activation.forward, inputs)


@each_activation
def test_gradcheck_of_the_backward_op(activation: Activation) -> None:
    tensors = [tensor.clone().requires_grad_() for tensor in tensors_for(activation, 3, 5)]
    assert torch.autograd.gradcheck(activation.backward, tensors)


@pytest.mark.parametrize("trained", [(True, False), (False, True)], ids=["gate", "up"])
@pytest.mark.parametrize("activation", GATED.values(), ids=GATED)
def test_only_one_input_needs_a_gradient(activation: Activation, trained: tuple[bool, bool]) -> None:
    grad, gate, up = tensors_for(activation, 3, 5)
    # In the layout of eager's inputs: which elements a CPU computes together depends on it, and with that their bits.
    inputs = [tensor.detach().requires_grad_(flag) for tensor, flag in zip((gate, up), trained, strict=True)]
    activation.forward(*inputs).backward(grad)
    for tensor, flag, expected in zip(inputs, trained, eager(activation, [grad, gate, up]), strict=True):
        assert torch.equal(tensor.grad, expected) if flag else tensor.grad is None


@each_activation
def test_no_graph_without_gradients(activation: Activation) -> None:
    _, *inputs = tensors_for(activation, 3, 5)
    assert not activation.forward(*inputs).requires_grad
    with torch.no_grad():
        assert not activation.forward(inputs[0].clone().requires_grad_(), *inputs[1:]).requires_grad


@each_activation
def test_two_backwards_give_the_same_gradients(activation: Activation) -> None:
    grad, *inputs = tensors_for(activation, 3, 50, dtype=torch.float32)
    inputs = [tensor.clone().requires_grad_() for tensor in inputs]
    hidden = activation.forward(*inputs)
    first = torch.autograd.grad(hidden, inputs, grad, retain_graph=True)
    second = torch.autograd.grad(hidden, inputs, grad)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


# --- any tensor -------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(list(ACTIVATIONS)), tensors=strided_tensors(3))
def test_any_shape_stride_and_dtype(name: str, tensors: list[Tensor]) -> None:
    activation = ACTIVATIONS[name]
    tensors = tensors[: 1 + len(activation.kernel.inputs)]
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
    views, rows, columns, strides = as_rows(*tensors)
    for tensor, view, stride in zip(tensors, views, strides, strict=True):
        assert torch.equal(view.as_strided((rows, columns), (stride, 1)).reshape(tensor.shape), tensor)


def test_halves_of_a_fused_tensor_are_not_copied() -> None:
    grad, gate, up = uniform(2, 3, 8, seed=0), *uniform(2, 3, 16, seed=1).chunk(2, -1)
    views, rows, columns, strides = as_rows(grad, gate, up)
    assert [view.data_ptr() for view in views] == [tensor.data_ptr() for tensor in (grad, gate, up)]
    assert (rows, columns, strides) == (6, 8, [8, 16, 16])


def test_last_tokens_are_not_copied() -> None:
    last = uniform(2, 3, 8, seed=0)[:, -1:]
    views, rows, columns, strides = as_rows(last)
    assert views[0].data_ptr() == last.data_ptr()
    assert (rows, columns, strides) == (2, 8, [24])


def test_contiguous_tensors_are_one_row() -> None:
    assert as_rows(uniform(2, 3, 8, seed=0))[1:] == (1, 48, [0])


# --- launching --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0,), (3, 5)], ids=["empty", "full"])
@each_activation
def test_launches_under_a_device_guard_and_only_if_there_is_work(
    activation: Activation, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
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

    ops = activation.kernel
    monkeypatch.setattr(elementwise, "device_guard", guard)
    for name in ("forward_kernel", "backward_kernel", "backward_recompute_kernel"):
        monkeypatch.setattr(type(ops), name, Kernel())
    tensor = torch.ones(shape)
    inputs = [tensor] * len(ops.inputs)
    for launch, tensors in (
        (ops.launch, inputs),
        (ops.launch_backward, [tensor, *inputs]),
        (ops.launch_backward_recompute, [tensor, *inputs]),
    ):
        events.clear()
        launch(*tensors)
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
    tensors = tensors_for(activation, 3, 5)
    for op, arguments in ((activation.op, tensors[1:]), (activation.backward_op, tensors)):
        assert all(map(torch.equal, as_tuple(run_device_kernel(op, arguments)), eager(activation, arguments)))
    own = tensors[0].clone()
    results = (own, *as_tuple(run_device_kernel(activation.recompute_op, [own, *tensors[1:]])))
    assert all(map(torch.equal, results, eager(activation, tensors, with_hidden=True)))


@each_activation
def test_the_gradient_that_is_written_over_must_be_contiguous(activation: Activation) -> None:
    grad, *inputs = tensors_for(activation, 3, 5)
    with pytest.raises(ValueError, match="writes over grad, which must be contiguous"):
        activation.recompute_op(grad.mT.contiguous().mT, *inputs)


@each_activation
def test_recompute_gives_the_bits_of_the_two_other_ops(activation: Activation) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        grad, *inputs = tensors_for(activation, 3, 5, dtype=dtype)
        expected = (*activation.backward(grad, *inputs), activation.op(*inputs))
        own = grad.clone()
        results = (own, *as_tuple(activation.recompute_op(own, *inputs)))
        assert len(results) == len(expected)
        assert all(map(torch.equal, results, expected))


@each_activation
def test_recompute_is_seen_as_writing_by_the_compiler(activation: Activation) -> None:
    grad, *inputs = tensors_for(activation, 3, 5)

    def function(grad: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        own = grad * 2
        return (own, *as_tuple(activation.recompute_op(own, *inputs)))

    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, compiled(grad, *inputs), function(grad, *inputs)))
    torch.library.opcheck(
        activation.recompute_op, (grad.clone(), *inputs), test_utils=("test_schema", "test_faketensor")
    )


# --- wrong input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fake", [False, True], ids=["real", "fake"])
@pytest.mark.parametrize(
    "spoil",
    [lambda t: t[:, :1], lambda t: t[:1], lambda t: t.bfloat16(), lambda t: t.to("meta")],
    ids=["columns", "rows", "dtype", "device"],
)
@each_activation
def test_tensors_that_do_not_fit(activation: Activation, spoil: Callable[[Tensor], Tensor], fake: bool) -> None:
    with FakeTensorMode() if fake else torch.no_grad():
        grad, first, *others = [torch.ones(3, 5) for _ in range(1 + len(activation.kernel.inputs))]
        if fake and spoil(grad).device.type == "meta":
            pytest.skip("FakeTensor itself raises")
        name = activation.kernel.name
        if others:
            with pytest.raises(ValueError, match=rf"patchkit::{name} takes .* but got gate: \[3, 5\]"):
                activation.forward(first, spoil(others[0]))
        for op, called in ((activation.backward_op, "backward"), (activation.recompute_op, "backward_recompute")):
            with pytest.raises(ValueError, match=rf"patchkit::{name}_{called} takes .* but got grad: "):
                op(grad, *[first, *others][:-1], spoil(first))
            with pytest.raises(ValueError, match=rf"patchkit::{name}_{called} takes .* but got grad: "):
                op(spoil(grad), first, *others)
