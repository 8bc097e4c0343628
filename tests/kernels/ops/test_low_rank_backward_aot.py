"""The kernel of the two products that read dy, compiled ahead of time for every GPU family, which needs no GPU."""

from __future__ import annotations

import re
from typing import Any

import pytest

triton = pytest.importorskip("triton", reason="the compiler is part of Triton")

from triton_targets import TARGETS, compile_kernel, global_accesses, is_binary, narrow_offsets  # noqa: E402

from patchkit_kernels.ops.launch_sizes import LaunchSizes  # noqa: E402
from patchkit_kernels.ops.low_rank_backward import SPAN, low_rank_backward_kernel  # noqa: E402

pytestmark = [
    pytest.mark.aot,
    pytest.mark.usefixtures("empty_triton_cache"),
    pytest.mark.skipif(triton.knobs.runtime.interpret, reason="TRITON_INTERPRET is set: nothing is compiled"),
]

MIXTURES = {"fp32": ("fp32", "fp32"), "pieces": ("bf16", "fp32"), "bf16": ("bf16", "bf16"), "fp16": ("fp16", "fp16")}


def compile_products(mixture: str, target: str, integers: str = "i32", rank: int = 16, usual: bool = False) -> Any:
    """``usual``: every tensor is contiguous, with pointers and sizes that are multiples of 16."""
    grad, factors = MIXTURES[mixture]
    types = {"grad_ptr": f"*{grad}", "factor_ptr": f"*{factors}", "reduced_ptr": f"*{factors}"}
    types |= {"d_reduced_ptr": "*fp32", "d_factor_ptr": "*fp32", "scale": "fp32"}
    size = LaunchSizes().low_rank_backward
    constants = {"BLOCK_TOKENS": size.tokens, "BLOCK_OUT": size.columns, "BLOCK_RANK": rank, "SPAN": SPAN}
    if usual:
        strides = ("grad_column_stride", "factor_column_stride", "reduced_column_stride")
        constants |= dict.fromkeys(strides, 1)
    aligned = tuple(name for name in low_rank_backward_kernel.arg_names if name != "scale") if usual else ()
    return compile_kernel(low_rank_backward_kernel, types, constants, target, integers, aligned)


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("target", TARGETS)
def test_compiles_with_64_bit_offsets(target: str, mixture: str) -> None:
    """F14."""
    compiled = compile_products(mixture, target)
    assert is_binary(compiled, target)
    assert narrow_offsets(compiled.asm["ttir"]) == []


@pytest.mark.parametrize("integers", ["i64", "1"])
def test_compiles_for_huge_and_for_single_element_tensors(integers: str) -> None:
    assert narrow_offsets(compile_products("pieces", "sm_90", integers).asm["ttir"]) == []


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "sm_120"])
def test_products_in_fp32_are_not_in_tf32(target: str) -> None:
    ptx = compile_products("fp32", target).asm["ptx"]
    assert "fma.rn.f32" in ptx
    assert not re.search(r"mma\.\S+|tf32", ptx)


@pytest.mark.parametrize("mixture", ["pieces", "bf16", "fp16"])
def test_products_of_16_bits_use_the_tensor_cores_and_sum_in_fp32(mixture: str) -> None:
    products = re.findall(r"mma\S*\.f32\S*", compile_products(mixture, "sm_90").asm["ptx"])
    assert products
    assert not [product for product in products if "tf32" in product]


def test_pieces_take_three_products_for_one() -> None:
    counts = {
        mixture: compile_products(mixture, "sm_90").asm["ttir"].count("tt.dot ") for mixture in ("pieces", "bf16")
    }
    assert counts == {"pieces": 6, "bf16": 2}


def test_loads_16_bytes_of_dy_at_once() -> None:
    loads = [
        access
        for access in global_accesses(compile_products("bf16", "sm_90", usual=True).asm["ptx"])
        if access.startswith("ld")
    ]
    copies = re.findall(r"cp\.async\S*", compile_products("bf16", "sm_90", usual=True).asm["ptx"])
    assert any(load.endswith(".v4.b32") for load in loads) or copies
