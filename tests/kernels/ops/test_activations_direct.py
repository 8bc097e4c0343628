"""Which way an activation's ops are run where nothing has to see them: kernels, the reference, or by the dispatcher."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from activation_cases import as_tuple
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from patchkit_kernels.ops import elementwise, registration
from patchkit_kernels.ops.activations import GATED, PLAIN
from patchkit_kernels.ops.elementwise import ElementwiseOps


class Seen(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def tensor(kind: str, dtype: torch.dtype = torch.float32) -> SimpleNamespace:
    return SimpleNamespace(is_cpu=kind == "cpu", device=SimpleNamespace(type=kind), dtype=dtype)


WAYS = {
    "a CPU": (tensor("cpu"), True, nullcontext, False),
    "a CPU, in a mode": (tensor("cpu"), True, Seen, None),
    "a GPU": (tensor("cuda"), True, nullcontext, True),
    "a GPU, in a mode": (tensor("cuda"), True, Seen, None),
    "a GPU, in bfloat16": (tensor("cuda", torch.bfloat16), True, nullcontext, True),
    "a GPU, in float64": (tensor("cuda", torch.float64), True, nullcontext, False),
    "a GPU without Triton": (tensor("cuda"), False, nullcontext, False),
    "another device": (tensor("mps"), True, nullcontext, False),
}


@pytest.mark.parametrize("name", WAYS)
def test_which_way(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given, available, context, expected = WAYS[name]
    monkeypatch.setattr(registration, "TRITON_AVAILABLE", available)
    with context():
        assert registration.runs_kernel(given) is expected


@pytest.mark.parametrize(
    ("way", "forward", "recompute"),
    [
        (None, "forward", "backward_recompute"),
        (False, "reference", "backward_recompute_reference"),
        (True, "launch", "launch_backward_recompute"),
    ],
)
def test_what_runs(way: bool | None, forward: str, recompute: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elementwise, "runs_kernel", lambda given: way)
    names = ("forward", "reference", "launch")
    names += ("backward_recompute", "backward_recompute_reference", "launch_backward_recompute")
    ops = SimpleNamespace(**{name: lambda *args, name=name, dtype=None: (name, args) for name in names})
    assert ElementwiseOps.run(ops, 1, 2) == (forward, (1, 2))  # type: ignore[arg-type]
    assert ElementwiseOps.run_backward_recompute(ops, 1, 2, 3) == (recompute, (1, 2, 3))  # type: ignore[arg-type]


def test_a_kernel_gives_no_value_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elementwise, "runs_kernel", lambda given: True)
    value = torch.ones(3, dtype=torch.bfloat16)
    ops = SimpleNamespace(backward_recompute_reference=lambda *_: (value,), launch_backward_recompute=None)
    (found,) = ElementwiseOps.run_backward_recompute(ops, value, value, dtype=torch.float64)  # type: ignore[arg-type]
    assert torch.equal(found, value.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", [GATED, PLAIN])
def test_the_value_in_a_wider_dtype(form: Any, dtype: torch.dtype) -> None:
    """Rounded as forward rounds it, by the op and without it."""
    functions = form["silu"]
    torch.manual_seed(0)
    grad, *inputs = [torch.randn(5, 7).bfloat16() for _ in range(1 + len(functions.inputs))]
    for run in (functions.run_backward_recompute, functions.backward_recompute):
        own, wide = grad.clone(), grad.clone()
        expected, found = as_tuple(run(own, *inputs)), as_tuple(run(wide, *inputs, dtype=dtype))
        assert torch.equal(own, wide)
        assert [one.dtype for one in found] == [torch.bfloat16] * (len(found) - 1) + [dtype]
        assert all(torch.equal(one, other.to(one.dtype)) for one, other in zip(found, expected, strict=True))
        assert torch.equal(found[-1], functions.forward(*inputs).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.int32])
@pytest.mark.parametrize("form", [GATED, PLAIN])
def test_the_value_in_a_dtype_that_lacks_numbers(form: Any, dtype: torch.dtype) -> None:
    functions = form["silu"]
    tensors = [torch.ones(5).bfloat16() for _ in range(1 + len(functions.inputs))]
    with pytest.raises(ValueError, match=rf"cannot give its value in {dtype}, which lacks numbers of torch.bfloat16"):
        functions.backward_recompute(*tensors, dtype=dtype)


def test_a_fake_tensor_outside_of_its_mode_is_left_to_the_dispatcher() -> None:
    """No kernel could be launched for it."""
    with FakeTensorMode():
        fake = torch.empty(3, device="cuda")
    assert registration.runs_kernel(fake) is None
