"""The kernel of DoRA's weight norm, compiled ahead of time for every GPU family, which needs no GPU."""

from __future__ import annotations

import re
from typing import Any

import pytest

triton = pytest.importorskip("triton", reason="the compiler is part of Triton")

from triton_targets import TARGETS, compile_kernel, global_accesses, is_binary, narrow_offsets  # noqa: E402

from patchkit_kernels.ops.dora_norm import (  # noqa: E402
    BLOCK_COLUMNS,
    BLOCK_RANK,
    BLOCK_ROWS,
    SPAN,
    dora_weight_norm_kernel,
)

pytestmark = [
    pytest.mark.aot,
    pytest.mark.usefixtures("empty_triton_cache"),
    pytest.mark.skipif(triton.knobs.runtime.interpret, reason="TRITON_INTERPRET is set: nothing is compiled"),
]

MIXTURES = {
    "fp32": ("fp32", "fp32", "fp32", None),
    "bf16": ("bf16", "bf16", "bf16", "bf16"),
    "fp16": ("fp16", "fp16", "fp16", None),
    "bf16_weight": ("bf16", "fp32", "fp32", "fp32"),
    "all_differ": ("fp16", "bf16", "fp32", "bf16"),
}
BLOCKS = {"BLOCK_ROWS": BLOCK_ROWS, "BLOCK_COLUMNS": BLOCK_COLUMNS, "BLOCK_RANK": BLOCK_RANK, "SPAN": SPAN}


def compile_norm(mixture: str, target: str, integers: str = "i32", usual: bool = False) -> Any:
    """``usual``: every tensor is contiguous, with pointers and sizes that are multiples of 16."""
    pointers = ("weight_ptr", "lora_a_ptr", "lora_b_ptr", "lora_bias_ptr")
    types = {name: f"*{dtype}" for name, dtype in zip(pointers, MIXTURES[mixture], strict=True) if dtype}
    types |= {"squares_ptr": "*fp32", "scaling": "fp32"}
    constants: dict[str, Any] = dict(BLOCKS)
    if "lora_bias_ptr" not in types:
        constants["lora_bias_ptr"] = None
    if usual:
        constants |= dict.fromkeys(("weight_column_stride", "lora_a_column_stride", "lora_b_rank_stride"), 1)
    aligned = tuple(name for name in dora_weight_norm_kernel.arg_names if name != "scaling") if usual else ()
    return compile_kernel(dora_weight_norm_kernel, types, constants, target, integers, aligned)


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("target", TARGETS)
def test_compiles_with_64_bit_offsets(target: str, mixture: str) -> None:
    """F14."""
    compiled = compile_norm(mixture, target)
    assert is_binary(compiled, target)
    assert narrow_offsets(compiled.asm["ttir"]) == []


@pytest.mark.parametrize("integers", ["i64", "1"])
def test_compiles_for_huge_and_for_single_element_tensors(integers: str) -> None:
    compiled = compile_norm("bf16", "sm_90", integers)
    assert narrow_offsets(compiled.asm["ttir"]) == []


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "sm_120"])
def test_fp32_adapters_are_multiplied_in_fp32(target: str) -> None:
    for mixture in ("fp32", "bf16_weight", "all_differ"):
        ptx = compile_norm(mixture, target).asm["ptx"]
        assert "fma.rn.f32" in ptx
        assert not re.search(r"mma\.\S+|tf32", ptx)


@pytest.mark.parametrize("mixture", ["bf16", "fp16"])
def test_adapters_of_16_bits_use_the_tensor_cores_and_sum_in_fp32(mixture: str) -> None:
    products = re.findall(r"mma\.sync\S*", compile_norm(mixture, "sm_90").asm["ptx"])
    assert products
    assert all(
        product.endswith(f"f32.{mixture.replace('fp', 'f')}.{mixture.replace('fp', 'f')}.f32") for product in products
    )


@pytest.mark.parametrize("mixture", ["bf16", "bf16_weight"])
def test_loads_16_bytes_of_the_weight_at_once(mixture: str) -> None:
    loads = [
        access for access in global_accesses(compile_norm(mixture, "sm_90", usual=True).asm["ptx"]) if "ld" in access
    ]
    assert any(load.endswith(".v4.b32") for load in loads)
    assert not [load for load in loads if load.endswith(".b16") and mixture == "bf16_weight"]
