"""A gated MLP's rank-r products, forward and backward, on the CPU: values, torch's machinery, launching, wrong input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gated_low_rank_cases import BACKWARD, CASES, FORWARD, Case, complaint
from recording import compiled_with_names, launches
from torch._subclasses.fake_tensor import FakeTensorMode
from triton_interpreter import run_device_kernel

from patchkit_kernels.ops import gated_low_rank as forward_module
from patchkit_kernels.ops import gated_low_rank_backward as backward_module
from patchkit_kernels.ops.gated_low_rank import gated_low_rank
from patchkit_kernels.ops.gated_low_rank_backward import gated_low_rank_backward
from patchkit_kernels.ops.gated_low_rank_operands import MAX_RANK, block_of_rank
from patchkit_kernels.ops.triton_support import TRITON_AVAILABLE

CASE = Case(5, 7, (3, 2, 4))
FUNCTIONS = {"forward": gated_low_rank, "backward": gated_low_rank_backward}


def arguments_of(direction: str, case: Case = CASE) -> list[Any]:
    return getattr(case, direction)()


def tensors_of(direction: str, arguments: list[Any]) -> list[torch.Tensor]:
    """What an op gives, and what it has written over."""
    found = list(FUNCTIONS[direction](*arguments))
    return found + arguments[: 2 if direction == "forward" else 1]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_kernel_cases_on_the_reference(case: Case) -> None:
    assert complaint(case, lambda op, arguments: op(*arguments)) is None


@pytest.mark.parametrize("direction", FUNCTIONS)
def test_float64_is_computed_in_float64(direction: str) -> None:
    def double(value: Any) -> Any:
        return [double(x) for x in value] if isinstance(value, list) else value.double()

    *tensors, scales, activation = arguments_of(direction)
    gate, up, (t_gate, t_up, *dt_down), (b_gate, b_up, a_down) = double(tensors)[-4:]
    found = tensors_of(direction, [*double(tensors), scales, activation])
    if direction == "forward":
        gate, up = gate + scales[0] * t_gate @ b_gate.t(), up + scales[1] * t_up @ b_up.t()
        hidden = torch.nn.functional.silu(gate) * up
        expected = [hidden, hidden @ a_down.t(), gate, up]
    else:
        gate.requires_grad_()
        up.requires_grad_()
        hidden = torch.nn.functional.silu(gate) * up
        d_gate, d_up = torch.autograd.grad(hidden, (gate, up), double(tensors)[0] + dt_down[0] @ a_down)
        d_reduced = torch.cat([scales[0] * d_gate @ b_gate, scales[1] * d_up @ b_up], 1)
        factors = [scales[0] * d_gate.t() @ t_gate, scales[1] * d_up.t() @ t_up, dt_down[0].t() @ hidden]
        expected = [d_up, d_reduced, *factors, d_gate]
    for one, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(one, wanted, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("direction", FUNCTIONS)
def test_autocast_changes_nothing(direction: str) -> None:
    expected = tensors_of(direction, arguments_of(direction))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(map(torch.equal, tensors_of(direction, arguments_of(direction)), expected))


@pytest.mark.parametrize("dtypes", [("fp32", "fp32"), ("bf16", "fp32"), ("bf16", "bf16")], ids=str)
@pytest.mark.parametrize(("direction", "op"), [("forward", FORWARD), ("backward", BACKWARD)])
def test_opcheck(direction: str, op: Any, dtypes: tuple[str, str]) -> None:
    torch.library.opcheck(op, tuple(arguments_of(direction, Case(5, 7, (3, 2, 4), *dtypes))))


@pytest.mark.parametrize("direction", FUNCTIONS)
def test_compiles_without_graph_break(direction: str) -> None:
    def function(wide: torch.Tensor, *rest: Any) -> list[torch.Tensor]:
        wide = wide * 2
        return [wide, *FUNCTIONS[direction](wide, *rest)]

    compiled, names = compiled_with_names(function)
    for found, expected in zip(compiled(*arguments_of(direction)), function(*arguments_of(direction)), strict=True):
        torch.testing.assert_close(found, expected)
    name = {"forward": "gated_low_rank", "backward": "gated_low_rank_backward"}[direction]
    assert any(name in one for one in names)


@pytest.mark.parametrize(
    ("direction", "sizes", "grid"),
    [
        ("forward", (0, 3), None), ("forward", (3, 0), None), ("forward", (1, 2048), (1, 1)),
        ("forward", (65, 2049), (2, 2)),
        ("backward", (0, 3), None), ("backward", (3, 0), None), ("backward", (1024, 128), (1, 1)),
        ("backward", (1025, 300), (3, 2)),
    ],
)  # fmt: skip
def test_launches_under_a_device_guard_and_only_if_there_is_work(
    direction: str, sizes: tuple[int, int], grid: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F15: on the device of the tensors, whichever is current."""
    (tokens, columns), is_forward = sizes, direction == "forward"
    module = forward_module if is_forward else backward_module

    def launch() -> None:
        def made(*shape: int) -> torch.Tensor:
            return torch.empty(shape, device="cuda:1")

        wide = [made(*sizes) for _ in range(2 if is_forward else 3)]
        reduced = [made(tokens, rank) for rank in (2, 3, 4)[: 2 if is_forward else 3]]
        factors = [made(columns, 2), made(columns, 3), made(4, columns)]
        found = module.launch(*wide, reduced, factors, [1.0, 2.0], "silu")
        shapes = [sizes, (tokens, 5), (columns, 2), (columns, 3), (4, columns)]
        assert [t.shape for t in found] == ([sizes, (tokens, 4)] if is_forward else shapes)
        assert all(t.device == wide[0].device for t in found)

    name = "gated_low_rank_kernel" if is_forward else "gated_low_rank_backward_kernel"
    events = launches(module, name, launch, monkeypatch)
    assert events == ([("guard", 1), ("launch", grid), ("end of guard", 1)] if grid else [])


@pytest.mark.skipif(not TRITON_AVAILABLE, reason="no kernel to avoid")
@pytest.mark.parametrize(("direction", "op"), [("forward", FORWARD), ("backward", BACKWARD)])
@pytest.mark.parametrize("kind", ["fp64", "fp64 factors", "rank", "float32 rank"])
def test_what_the_kernels_do_not_take_runs_the_reference(
    kind: str, direction: str, op: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (forward_module, backward_module):
        monkeypatch.setattr(module, "launch", None)

    def arguments() -> list[Any]:
        most = backward_module.FLOAT32_RANK if kind == "float32 rank" and direction == "backward" else MAX_RANK
        made = arguments_of(direction, Case(4, 5, (3, 2, most + 1)) if "rank" in kind else CASE)
        if kind == "fp64":
            return [x.double() if isinstance(x, torch.Tensor) else x for x in made]
        if kind == "fp64 factors":
            made[-4:-2] = [[x.double() for x in tensors] for tensors in made[-4:-2]]
        return made

    for found, expected in zip(run_device_kernel(op, arguments()), FUNCTIONS[direction](*arguments()), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize(("rank", "block"), [(0, 16), (1, 16), (16, 16), (17, 32), (32, 32)])
def test_ranks_are_padded(rank: int, block: int) -> None:
    assert block_of_rank(rank) == block


def _with(arguments: list[Any], index: int, inner: int | None, change: Any) -> list[Any]:
    arguments[index] = (
        change(arguments[index])
        if inner is None
        else [change(x) if i == inner else x for i, x in enumerate(arguments[index])]
    )
    return arguments


WRONG = {
    "a row less": (-3, 0, lambda b: b[1:]),
    "a greater rank": (-3, 1, lambda b: b.repeat(1, 2)),
    "down transposed": (-3, 2, torch.Tensor.t),
    "t of another dtype": (-4, 1, torch.Tensor.double),
    "three dimensions": (-4, 0, lambda t: t[None]),
    "another device": (-4, 0, lambda t: t.to("meta")),
    "up of another shape": (-5, None, lambda up: up[:, 1:]),
    "up of another dtype": (-5, None, torch.Tensor.double),
}


@pytest.mark.parametrize("fake", [False, True], ids=["real", "fake"])
@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("direction", FUNCTIONS)
def test_tensors_that_do_not_fit(direction: str, name: str, fake: bool) -> None:
    arguments = _with(arguments_of(direction), *WRONG[name])
    message = r"takes .*gate, up \[tokens, n\].* but got .*: torch.float32 \[5, 7\]"
    mode = FakeTensorMode(allow_non_fake_inputs=True) if fake else torch.no_grad()
    with mode, pytest.raises(ValueError, match=message):
        FUNCTIONS[direction](*arguments)


@pytest.mark.parametrize("direction", FUNCTIONS)
def test_other_arguments_that_do_not_fit(direction: str) -> None:
    function = FUNCTIONS[direction]
    with pytest.raises(ValueError, match="no activation 'tanh'; there are silu, "):
        function(*arguments_of(direction)[:-1], "tanh")
    *given, scales, activation = arguments_of(direction)
    with pytest.raises(ValueError, match=r"and two scales, but got 3, \d and 1 of them"):
        function(*given, scales[:1], activation)
    first = {"forward": "gate", "backward": "grad"}[direction]
    transposed = [torch.ones(7, 5).t(), *given[1:], scales, activation]
    with pytest.raises(ValueError, match=rf"writes over {first}, which must be contiguous, but has strides \(1, 5\)"):
        function(*transposed)
