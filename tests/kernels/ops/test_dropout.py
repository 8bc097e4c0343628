"""The ops on packed dropout masks on the CPU: values, derivatives, any tensor, memory, and torch's machinery."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from dropout_cases import CASES, MASKED, MASKED_, PACK, Case, complaint, packed
from hypothesis import given, settings
from hypothesis import strategies as st
from recording import LargestResult, compiled_with_names, launches
from strided_tensors import ALL_DTYPES, strided_tensors, uniform
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from triton_interpreter import run_device_kernel

from patchkit_kernels.ops import dropout
from patchkit_kernels.ops.dropout import (
    CHUNK,
    GATHER_BITS,
    draw_mask,
    masked,
    masked_,
    masked_reference,
    pack_mask,
    unpack_mask,
)
from patchkit_kernels.ops.triton_support import TRITON_AVAILABLE

SCALE = 1 / 0.7


def kept(*shape: int) -> Tensor:
    return uniform(*shape, seed=7) > -2


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [case for case in CASES if case.dtype == "fp32"], ids=lambda case: case.id)
def test_kernel_cases_on_the_reference(case: Case) -> None:
    assert complaint(case, lambda op, arguments: op(*arguments)) is None


@pytest.mark.parametrize("dtype", ALL_DTYPES.values(), ids=ALL_DTYPES)
def test_same_bits_as_dropout(dtype: torch.dtype) -> None:
    x = uniform(7, 33, seed=0).to(dtype)
    for p in [percent / 100 for percent in range(1, 101)]:
        torch.manual_seed(0)
        expected = F.dropout(x, p)
        torch.manual_seed(0)
        bits = pack_mask(draw_mask(x, p))
        scale = 0.0 if p == 1.0 else 1 / (1 - p)
        for result in (masked(x, bits, scale), masked_reference(x, bits, scale), masked_(x.clone(), bits, scale)):
            assert torch.equal(result, expected)


@pytest.mark.parametrize("byteorder", GATHER_BITS)
def test_bits_are_gathered_on_machines_of_either_byte_order(byteorder: str) -> None:
    factor, highest = GATHER_BITS[byteorder]
    for byte in range(256):
        bits = bytes(byte >> bit & 1 for bit in range(8))
        product = int.from_bytes(bits, byteorder) * factor % 2**64
        assert product.to_bytes(8, byteorder)[highest] == byte


def test_bits_behind_the_end_are_zero() -> None:
    assert pack_mask(torch.ones(11, dtype=torch.bool)).tolist() == [255, 7]


@settings(max_examples=100, deadline=None)
@given(tensors=strided_tensors(2), scale=st.sampled_from([0.0, 1.0, SCALE]))
def test_any_shape_stride_and_dtype(tensors: list[Tensor], scale: float) -> None:
    x, mask = tensors[0], tensors[1] > -2
    before = x.clone()
    bits = pack_mask(mask)
    assert torch.equal(bits, packed(mask))
    assert torch.equal(unpack_mask(bits, mask.shape), mask)
    result = masked(x, bits, scale)
    assert torch.equal(result, x * (mask.to(x.dtype) / (1 / scale) if scale else torch.zeros_like(x)))
    assert (result.dtype, result.is_contiguous()) == (x.dtype, True)
    assert torch.equal(masked_(x.contiguous().clone(), bits, scale), result)
    assert torch.equal(x, before)


@pytest.mark.parametrize("start", range(9))
def test_a_mask_at_any_address(start: int) -> None:
    mask = kept(100)[start:]
    assert torch.equal(pack_mask(mask), packed(mask))


def test_in_place_takes_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, bits = uniform(5, 21, seed=0), pack_mask(kept(5, 21))
    expected = masked(x, bits, SCALE)
    for chunk in (8, 16, 104, 112):
        monkeypatch.setattr(dropout, "CHUNK", chunk)
        assert torch.equal(masked_(x.clone(), bits, SCALE), expected)


def test_in_place_needs_no_second_buffer() -> None:
    x = torch.ones(3, CHUNK + 5, dtype=torch.bfloat16)
    bits = pack_mask(torch.ones_like(x, dtype=torch.bool))
    with LargestResult() as largest:
        dropout._masked_inplace_reference(x, bits, SCALE)
    assert 0 < largest.elements <= CHUNK


def test_in_place_returns_its_argument() -> None:
    x = uniform(3, 5, seed=0)
    assert masked_(x, pack_mask(kept(3, 5)), SCALE) is x


# --- derivatives ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [masked, masked_reference])
def test_gradcheck(function: Callable[..., Tensor]) -> None:
    bits = pack_mask(kept(5, 3))
    x = uniform(3, 5, seed=0).mT.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: function(x, bits, SCALE), (x,))
    assert torch.autograd.gradgradcheck(lambda x: function(x, bits, SCALE).sin(), (x,))


def test_gradient_is_masked_in_the_same_way() -> None:
    x, grad, bits = uniform(3, 5, seed=0).requires_grad_(), uniform(3, 5, seed=1), pack_mask(kept(3, 5))
    y = masked(x, bits, SCALE)
    for _ in range(2):
        (x_grad,) = torch.autograd.grad(y, x, grad, retain_graph=True)
        assert torch.equal(x_grad, masked(grad, bits, SCALE))


# --- torch's machinery ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 5), (0, 5)], ids=["full", "empty"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["fp64", "bf16"])
def test_opcheck(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, mask = uniform(*shape, seed=0).to(dtype), kept(*shape)
    torch.library.opcheck(PACK, (mask,))
    torch.library.opcheck(PACK, (mask.mT,))
    torch.library.opcheck(MASKED, (x.clone().requires_grad_(), pack_mask(mask), SCALE))
    torch.library.opcheck(MASKED, (x.mT, pack_mask(mask.mT), SCALE))
    torch.library.opcheck(MASKED_, (x, pack_mask(mask), SCALE), test_utils=("test_schema", "test_faketensor"))


def test_fake_tensors() -> None:
    with FakeTensorMode():
        x = torch.empty(7, 4, dtype=torch.bfloat16, device="cuda").mT
        bits = pack_mask(torch.empty(4, 7, dtype=torch.bool, device="cuda"))
        result = masked(x, bits, SCALE)
        assert (bits.shape, bits.dtype, bits.device.type) == ((4,), torch.uint8, "cuda")
        assert (result.shape, result.dtype, result.device.type) == ((4, 7), torch.bfloat16, "cuda")
        assert result.is_contiguous()
        assert masked_(result, bits, SCALE) is result


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compiles_without_graph_break(dynamic: bool) -> None:
    def function(x: Tensor, mask: Tensor) -> Tensor:
        bits = pack_mask(mask)
        own = x.detach() * 2
        masked_(own, bits, SCALE)
        return masked(x * 3, bits, SCALE) + own

    compiled, names = compiled_with_names(function, dynamic)
    for rows in (3, 4):
        x, mask = uniform(rows, 5, seed=0).requires_grad_(), kept(rows, 5)
        result, expected = compiled(x, mask), function(x, mask)
        assert torch.equal(result, expected)
        assert torch.equal(*(torch.autograd.grad(y.sum(), x)[0] for y in (result, expected)))
    assert {"patchkit.pack_mask.default", "patchkit.masked.default", "patchkit.masked_.default"} <= set(names)


def test_compiles_with_inductor() -> None:
    torch.compiler.reset()
    x, mask = uniform(3, 5, seed=0).float().requires_grad_(), kept(3, 5)

    def function(x: Tensor, mask: Tensor) -> Tensor:
        return masked(x, pack_mask(mask), SCALE)

    result, expected = torch.compile(function, fullgraph=True)(x, mask), function(x, mask)
    assert torch.equal(result, expected)
    assert torch.equal(*(torch.autograd.grad(y.sum(), x)[0] for y in (result, expected)))


def test_selective_checkpointing_can_keep_the_bits() -> None:
    calls = []

    def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        calls.append((context.is_recompute, op))
        return CheckpointPolicy.MUST_SAVE if op is PACK else CheckpointPolicy.PREFER_RECOMPUTE

    x = uniform(3, 5, seed=0).requires_grad_()
    y = checkpoint(
        lambda x: masked(x.exp(), pack_mask(x > 0), SCALE),
        x,
        use_reentrant=False,
        context_fn=lambda: create_selective_checkpoint_contexts(policy),
    )
    y.sum().backward()
    assert (False, PACK) in calls
    torch.testing.assert_close(x.grad, (x.detach() > 0) * x.detach().exp() * SCALE)


# --- launching --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "grid"), [(0, None), (1, (1,)), (1024, (1,)), (1025, (2,))])
@pytest.mark.parametrize("kernel", ["pack_mask_kernel", "masked_kernel"])
def test_launches_under_a_device_guard_and_only_if_there_is_work(
    kernel: str, size: int, grid: tuple[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launch() -> None:
        if kernel == "pack_mask_kernel":
            assert dropout.launch_pack_mask(torch.empty(size, dtype=torch.bool, device="cuda:1")).shape == (
                -(-size // 8),
            )
        else:
            x, bits = torch.empty(size, device="cuda:1"), torch.empty(-(-size // 8), dtype=torch.uint8, device="cuda:1")
            dropout.launch_masked(x, bits, SCALE, x)

    events = launches(dropout, kernel, launch, monkeypatch)
    assert events == ([("guard", 1), ("launch", grid), ("end of guard", 1)] if grid else [])


@pytest.mark.skipif(not TRITON_AVAILABLE, reason="no kernels to avoid")
def test_fp64_on_a_device_runs_the_reference() -> None:
    x, bits = uniform(3, 5, seed=0), pack_mask(kept(3, 5))
    expected = masked(x, bits, SCALE)
    assert torch.equal(run_device_kernel(MASKED, (x, bits, SCALE)), expected)
    run_device_kernel(MASKED_, (x, bits, SCALE))
    assert torch.equal(x, expected)


# --- wrong input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fake", [False, True], ids=["real", "fake"])
@pytest.mark.parametrize("function", [masked, masked_])
@pytest.mark.parametrize(
    "spoil",
    [lambda bits: bits[:-1], lambda bits: bits.to(torch.int32), lambda bits: bits[:, None]],
    ids=["size", "dtype", "dimensions"],
)
def test_bits_that_do_not_fit(spoil: Callable[[Tensor], Tensor], function: Callable[..., Tensor], fake: bool) -> None:
    with FakeTensorMode() if fake else torch.no_grad():
        x, bits = torch.ones(3, 5), torch.ones(2, dtype=torch.uint8)
        with pytest.raises(ValueError, match=r"takes a uint8 mask of \[2\] for elements of \[3, 5\], but got torch"):
            function(x, spoil(bits), SCALE)


def test_wrong_tensors() -> None:
    bits = pack_mask(kept(3, 5))
    with pytest.raises(ValueError, match=r"takes a mask of torch\.bool, but got torch\.float64"):
        pack_mask(uniform(3, seed=0))
    with pytest.raises(ValueError, match=r"unpack_mask takes a uint8 mask of \[3\]"):
        unpack_mask(bits, (4, 5))
    with pytest.raises(ValueError, match="takes tensors of one device, but got cpu and meta"):
        masked(uniform(3, 5, seed=0), bits.to("meta"), SCALE)
    with pytest.raises(ValueError, match=r"must be contiguous, but has strides \(1, 3\)"):
        masked_(uniform(5, 3, seed=0).mT, bits, SCALE)
