"""The kernel of dropout's backward into a sum, compiled ahead of time for every GPU family, which needs no GPU."""

from __future__ import annotations

import re
from typing import Any

import pytest
from strided_tensors import DTYPES

triton = pytest.importorskip("triton", reason="the compiler is part of Triton")

from triton_targets import TARGETS, compile_kernel, global_accesses, is_binary, narrow_offsets  # noqa: E402

from patchkit_kernels.ops.add_masked import add_masked_kernel  # noqa: E402
from patchkit_kernels.ops.dropout import BLOCK  # noqa: E402

pytestmark = [
    pytest.mark.aot,
    pytest.mark.usefixtures("empty_triton_cache"),
    pytest.mark.skipif(triton.knobs.runtime.interpret, reason="TRITON_INTERPRET is set: nothing is compiled"),
]


def compiled(total: str, x: str, target: str, integers: str = "i32", aligned: bool = False) -> Any:
    types = {"total_ptr": f"*{total}", "x_ptr": f"*{x}", "packed_ptr": "*u8", "scale": "fp32"}
    usual = ("total_ptr", "x_ptr", "packed_ptr", "size") if aligned else ()
    return compile_kernel(add_masked_kernel, types, {"BLOCK": BLOCK}, target, integers, usual)


@pytest.mark.parametrize("x", DTYPES)
@pytest.mark.parametrize("total", DTYPES)
@pytest.mark.parametrize("target", TARGETS)
def test_compiles_with_64_bit_offsets(target: str, total: str, x: str) -> None:
    """F14."""
    found = compiled(total, x, target)
    assert is_binary(found, target)
    assert narrow_offsets(found.asm["ttir"]) == []


@pytest.mark.parametrize("integers", ["i64", "1"])
def test_compiles_for_huge_and_for_single_element_tensors(integers: str) -> None:
    assert narrow_offsets(compiled("bf16", "bf16", "sm_90", integers).asm["ttir"]) == []


def test_one_pass_of_16_bytes_at_a_time() -> None:
    """Each byte of the mask is read once."""
    ptx = compiled("bf16", "bf16", "sm_90", aligned=True).asm["ptx"]
    accesses = ["ld.global.b8", "ld.global.v4.b32", "ld.global.v4.b32", "st.global.v4.b32"]
    assert sorted(global_accesses(ptx)) == accesses
    conversions = re.findall(r"cvt\S*\.bf16\S*\.f32", ptx)
    assert conversions
    assert all(".rn." in conversion for conversion in conversions)
