"""The kernels of packed dropout masks, compiled ahead of time for every GPU family, which needs no GPU."""

from __future__ import annotations

import re
from typing import Any

import pytest
from strided_tensors import DTYPES

triton = pytest.importorskip("triton", reason="the compiler is part of Triton")

from triton_targets import TARGETS, compile_kernel, global_accesses, is_binary, narrow_offsets  # noqa: E402

from patchkit_kernels.ops.dropout import BLOCK, masked_kernel, pack_mask_kernel  # noqa: E402

pytestmark = [
    pytest.mark.aot,
    pytest.mark.usefixtures("empty_triton_cache"),
    pytest.mark.skipif(triton.knobs.runtime.interpret, reason="TRITON_INTERPRET is set: nothing is compiled"),
]


def compile_pack(target: str, integers: str = "i32", aligned: bool = False) -> Any:
    types = {"mask_ptr": "*u8", "packed_ptr": "*u8"}
    usual = ("mask_ptr", "packed_ptr", "size") if aligned else ()
    return compile_kernel(pack_mask_kernel, types, {"BLOCK": BLOCK}, target, integers, usual)


def compile_masked(dtype: str, contiguous: bool, target: str, integers: str = "i32", aligned: bool = False) -> Any:
    types = {"x_ptr": f"*{dtype}", "packed_ptr": "*u8", "result_ptr": f"*{dtype}", "scale": "fp32"}
    usual = ("x_ptr", "packed_ptr", "result_ptr", "size") if aligned else ()
    return compile_kernel(masked_kernel, types, {"CONTIGUOUS": contiguous, "BLOCK": BLOCK}, target, integers, usual)


@pytest.mark.parametrize("target", TARGETS)
def test_pack_compiles_with_64_bit_offsets(target: str) -> None:
    compiled = compile_pack(target)
    assert is_binary(compiled, target)
    assert narrow_offsets(compiled.asm["ttir"]) == []


@pytest.mark.parametrize("contiguous", [True, False], ids=["contiguous", "strided"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("target", TARGETS)
def test_masked_compiles_with_64_bit_offsets(target: str, dtype: str, contiguous: bool) -> None:
    compiled = compile_masked(dtype, contiguous, target)
    assert is_binary(compiled, target)
    assert narrow_offsets(compiled.asm["ttir"]) == []


@pytest.mark.parametrize("integers", ["i64", "1"])
def test_compiles_for_huge_and_for_single_element_tensors(integers: str) -> None:
    for compiled in (
        compile_pack("sm_90", integers),
        *(compile_masked("bf16", contiguous, "sm_90", integers) for contiguous in (True, False)),
    ):
        assert narrow_offsets(compiled.asm["ttir"]) == []


def test_reads_each_byte_of_the_mask_once_and_16_bytes_of_x() -> None:
    ptx = compile_masked("bf16", True, "sm_90", aligned=True).asm["ptx"]
    assert sorted(global_accesses(ptx)) == ["ld.global.b8", "ld.global.v4.b32", "st.global.v4.b32"]
    conversions = re.findall(r"cvt\S*\.bf16\S*\.f32", ptx)
    assert conversions
    assert all(".rn." in conversion for conversion in conversions)


def test_packs_eight_bytes_into_one_without_exchange_between_threads() -> None:
    ptx = compile_pack("sm_90", aligned=True).asm["ptx"]
    assert global_accesses(ptx) == ["ld.global.v2.b32", "st.global.b8"]
    assert not re.search(r"shfl|bar\.sync", ptx)
