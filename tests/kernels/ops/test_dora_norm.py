"""DoRA's weight norm on the CPU: values, against PEFT too, any tensor, memory, and torch's machinery."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from dora_norm_cases import CASES, OP, Case, complaint, truth
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from recording import LargestResult, compiled_with_names, launches
from strided_tensors import ALL_DTYPES, as_dtype, uniform, views
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from triton_interpreter import run_device_kernel

from patchkit_kernels.ops import dora_norm
from patchkit_kernels.ops.dora_norm import CHUNK, dora_weight_norm, dora_weight_norm_reference
from patchkit_kernels.ops.triton_support import TRITON_AVAILABLE

SCALING = 0.7


def three(rows: int = 5, columns: int = 7, rank: int = 2, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    shapes = ((rows, columns), (rank, columns), (rows, rank))
    return [uniform(*shape, seed=seed).to(dtype) for seed, shape in enumerate(shapes)]


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_kernel_cases_on_the_reference(case: Case) -> None:
    assert complaint(case, lambda arguments: dora_weight_norm(*arguments)) is None


def pefts_norm(layer: nn.Module) -> Tensor:
    """The norm that PEFT divides by, seen from outside: of the input 0, DoRA makes ``b + m / norm * s c``."""
    lora_b, magnitude = layer.lora_B["default"], layer.lora_magnitude_vector["default"].weight
    outputs = layer(torch.zeros(1, layer.in_features, dtype=layer.weight.dtype))[0]
    return magnitude * layer.scaling["default"] * lora_b.bias / (outputs - layer.bias)


@pytest.mark.parametrize("dtype", ALL_DTYPES.values(), ids=ALL_DTYPES)
def test_is_pefts_norm(dtype: torch.dtype) -> None:
    """To rounding in fp32 and fp64; nearer to the truth than PEFT in the dtypes where PEFT rounds the sum."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, use_dora=True, init_lora_weights=False, target_modules=["0"])
    layer = get_peft_model(nn.Sequential(nn.Linear(300, 200)), config).base_model.model[0]
    # PEFT refuses lora_bias together with use_dora when it makes the layer, but computes with a bias that is there.
    layer.lora_B["default"] = nn.Linear(4, 200)
    nn.init.uniform_(layer.lora_B["default"].bias, 1, 2)
    nn.init.zeros_(layer.bias)
    layer = layer.to(dtype)
    arguments = (
        layer.weight,
        layer.lora_A["default"].weight,
        layer.lora_B["default"].weight,
        layer.scaling["default"],
        layer.lora_B["default"].bias,
    )
    with torch.no_grad():
        exact, theirs = truth(*arguments)[0], pefts_norm(layer)
    error, their_error = (
        (norm.double() - exact).norm() / exact.norm() for norm in (dora_weight_norm(*arguments), theirs)
    )
    assert their_error <= 4 * torch.finfo(dtype).eps
    assert error <= {torch.float64: 1e-15, torch.float32: 2e-7}.get(dtype, their_error)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_shape_stride_dtype_and_rank(data: st.DataObject) -> None:
    rows, columns, rank = (data.draw(st.integers(low, high)) for low, high in ((0, 20), (0, 40), (1, 256)))
    weight, lora_a, lora_b, bias = (
        as_dtype(data.draw(views(shape, seed)), data.draw(st.sampled_from(list(ALL_DTYPES.values()))))
        for seed, shape in enumerate([(rows, columns), (rank, columns), (rows, rank), (rows,)])
    )
    lora_bias = data.draw(st.sampled_from([None, bias]))
    exact, upper = truth(weight, lora_a, lora_b, SCALING, lora_bias)
    result = dora_weight_norm(weight, lora_a, lora_b, SCALING, lora_bias)
    wide = torch.float64 in {tensor.dtype for tensor in (weight, lora_a, lora_b, lora_bias) if tensor is not None}
    assert result.dtype == (torch.float64 if wide else torch.float32)
    # Half a unit for every addition: of equal numbers, as an expanded tensor has them, the roundings do not average.
    bound = 0.5 * torch.finfo(result.dtype).eps * (rank + columns + 4) * upper
    assert ((result.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "columns"])
def test_chunks_fit_together(transposed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, lora_a, lora_b = three(37, 29, 3)
    bias = uniform(37, seed=3)
    weight = weight.t().contiguous().t() if transposed else weight
    expected = truth(weight, lora_a, lora_b, SCALING, bias)[0]
    for chunk in (1, 29, 100, 400, 10**6):
        monkeypatch.setattr(dora_norm, "CHUNK", chunk)
        torch.testing.assert_close(dora_weight_norm(weight, lora_a, lora_b, SCALING, bias), expected)


@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "columns"])
def test_the_sum_is_never_whole(transposed: bool) -> None:
    weight, lora_a, lora_b = three(1500, 1000, 4, torch.bfloat16)
    weight = weight.t().contiguous().t() if transposed else weight
    assert weight.numel() > 4 * CHUNK
    with LargestResult() as largest:
        dora_weight_norm_reference(weight, lora_a, lora_b, SCALING, weight[:, 0])
    assert 0 < largest.elements <= CHUNK


def test_ranges_of_rows_are_norms_of_their_own() -> None:
    """What callers with a quantised weight rest on."""
    weight, lora_a, lora_b = three(9, 7, 2)
    bias = uniform(9, seed=3)
    whole = dora_weight_norm(weight, lora_a, lora_b, SCALING, bias)
    parts = [
        dora_weight_norm(weight[rows], lora_a, lora_b[rows], SCALING, bias[rows]) for rows in (slice(0, 4), slice(4, 9))
    ]
    torch.testing.assert_close(torch.cat(parts), whole)


# --- a constant -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [dora_weight_norm, OP], ids=["function", "op"])
def test_never_requires_a_gradient(call: Callable[..., Tensor]) -> None:
    arguments = [tensor.requires_grad_() for tensor in three()]
    bias = uniform(5, seed=3).requires_grad_()
    norm = call(*arguments, SCALING, bias)
    assert not norm.requires_grad
    (norm * bias).sum().backward()
    assert torch.equal(bias.grad, norm)
    assert all(tensor.grad is None for tensor in arguments)


def test_autocast_changes_nothing() -> None:
    arguments = three(dtype=torch.float32)
    expected = dora_weight_norm(*arguments, SCALING)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(dora_weight_norm(*arguments, SCALING), expected)


# --- torch's machinery ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora_bias", [False, True], ids=["plain", "lora_bias"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["fp64", "bf16"])
def test_opcheck(dtype: torch.dtype, lora_bias: bool) -> None:
    torch.library.opcheck(OP, (*three(dtype=dtype), SCALING, uniform(5, seed=3) if lora_bias else None))


def test_fake_tensors() -> None:
    for dtypes in ((torch.bfloat16, torch.float32, torch.float32), (torch.bfloat16, torch.float32, torch.float64)):
        with FakeTensorMode():
            shapes = ((4, 7), (2, 7), (4, 2))
            weight, lora_a, lora_b = (
                torch.empty(shape, dtype=dtype, device="cuda", requires_grad=True)
                for shape, dtype in zip(shapes, dtypes, strict=True)
            )
            norm = dora_weight_norm(weight, lora_a, lora_b, SCALING)
        assert (norm.shape, norm.dtype, norm.device.type, norm.requires_grad) == ((4,), dtypes[2], "cuda", False)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles_without_graph_break(dynamic: bool) -> None:
    def function(weight: Tensor, lora_a: Tensor, lora_b: Tensor) -> Tensor:
        return dora_weight_norm(weight * 2, lora_a, lora_b, SCALING) * lora_a.sum()

    compiled, names = compiled_with_names(function, dynamic)
    for rows in (3, 4):
        weight, lora_a, lora_b = (tensor.requires_grad_() for tensor in three(rows))
        result, expected = compiled(weight, lora_a, lora_b), function(weight, lora_a, lora_b)
        torch.testing.assert_close(result, expected)
        torch.testing.assert_close(*(torch.autograd.grad(y.sum(), lora_a)[0] for y in (result, expected)))
    assert "patchkit.dora_weight_norm.default" in names


def test_selective_checkpointing_can_keep_it() -> None:
    calls = []

    def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        calls.append((context.is_recompute, op))
        return CheckpointPolicy.MUST_SAVE if op is OP else CheckpointPolicy.PREFER_RECOMPUTE

    weight, lora_a, lora_b = (tensor.requires_grad_() for tensor in three())
    result = checkpoint(
        lambda x: x * 2 / dora_weight_norm(weight, lora_a, lora_b, SCALING),
        lora_b[:, 0],
        use_reentrant=False,
        context_fn=lambda: create_selective_checkpoint_contexts(policy),
    )
    result.sum().backward()
    assert (False, OP) in calls
    torch.testing.assert_close(lora_b.grad[:, 0], 2 / dora_weight_norm(weight, lora_a, lora_b, SCALING))


# --- launching --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "columns", "grid"), [(0, 3, None), (3, 0, None), (33, 1025, (2, 2)), (32, 1024, (1, 1))]
)
def test_launches_under_a_device_guard_and_only_if_there_is_work(
    rows: int, columns: int, grid: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F15: on the device of the tensors, whichever is current."""

    def launch() -> None:
        weight, lora_a, lora_b = (
            torch.empty(shape, device="cuda:1") for shape in ((rows, columns), (2, columns), (rows, 2))
        )
        norm = dora_norm.launch(weight, lora_a, lora_b, SCALING)
        assert (norm.shape, norm.dtype, norm.device) == ((rows,), torch.float32, weight.device)

    events = launches(dora_norm, "dora_weight_norm_kernel", launch, monkeypatch)
    assert events == ([("guard", 1), ("launch", grid), ("end of guard", 1)] if grid else [])


@pytest.mark.skipif(not TRITON_AVAILABLE, reason="no kernel to avoid")
@pytest.mark.parametrize("wide", range(4), ids=["weight", "lora_a", "lora_b", "lora_bias"])
def test_fp64_on_a_device_runs_the_reference(wide: int) -> None:
    tensors = [*three(dtype=torch.float32), uniform(5, seed=3).float()]
    tensors[wide] = tensors[wide].double()
    arguments = (*tensors[:3], SCALING, tensors[3])
    assert torch.equal(run_device_kernel(OP, arguments), dora_weight_norm(*arguments))


# --- wrong input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fake", [False, True], ids=["real", "fake"])
@pytest.mark.parametrize(
    "shapes",
    [((5, 7), (2, 6), (5, 2)), ((5, 7), (2, 7), (5, 3)), ((5, 7), (2, 7), (4, 2)), ((5, 7, 1), (2, 7), (5, 2))],
    ids=["columns", "rank", "rows", "dimensions"],
)
def test_tensors_that_do_not_fit(shapes: tuple[tuple[int, ...], ...], fake: bool) -> None:
    with FakeTensorMode() if fake else torch.no_grad():
        tensors = [torch.ones(shape) for shape in shapes]
        with pytest.raises(ValueError, match=r"patchkit::dora_weight_norm takes .* but got weight: \[5, 7"):
            dora_weight_norm(*tensors, SCALING)


def test_a_bias_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"but got .* lora_bias: \[4\] on cpu"):
        dora_weight_norm(*three(), SCALING, torch.ones(4))
    with pytest.raises(ValueError, match=r"on one device, but got .* lora_bias: \[5\] on meta"):
        dora_weight_norm(*three(), SCALING, torch.ones(5, device="meta"))
