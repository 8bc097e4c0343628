"""The kernel of the cross-entropy, compiled ahead of time for every GPU family, which needs no GPU."""

from __future__ import annotations

from typing import Any

import pytest

triton = pytest.importorskip("triton", reason="the compiler is part of Triton")

from triton_targets import TARGETS, compile_kernel, global_accesses, is_binary, narrow_offsets  # noqa: E402

from patchkit_kernels.ops.cross_entropy import BLOCK, cross_entropy_kernel  # noqa: E402

pytestmark = [
    pytest.mark.aot,
    pytest.mark.usefixtures("empty_triton_cache"),
    pytest.mark.skipif(triton.knobs.runtime.interpret, reason="TRITON_INTERPRET is set: nothing is compiled"),
]


def compile_loss(
    dtype: str, target: str, *, capped: bool = True, gradient: bool = True, integers: str = "i32", usual: bool = False
) -> Any:
    """``usual``: pointers and sizes are multiples of 16."""
    types = {"logits_ptr": f"*{dtype}", "target_ptr": "*i64", "factor_ptr": "*fp32", "losses_ptr": "*fp32"}
    types |= {"scale": "fp32", "softcap": "fp32"}
    constants = {"CAPPED": capped, "GRADIENT": gradient, "BLOCK": BLOCK}
    aligned = ("logits_ptr", "target_ptr", "losses_ptr", "columns", "row_stride") if usual else ()
    return compile_kernel(cross_entropy_kernel, types, constants, target, integers, aligned)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("target", TARGETS)
def test_compiles_with_64_bit_offsets(target: str, dtype: str) -> None:
    """A vocabulary of 262,144 passes 2**31 elements with 8,192 tokens."""
    compiled = compile_loss(dtype, target)
    assert is_binary(compiled, target)
    assert narrow_offsets(compiled.asm["ttir"]) == []


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("capped", [False, True])
def test_each_form_compiles(capped: bool, gradient: bool) -> None:
    compiled = compile_loss("bf16", "sm_90", capped=capped, gradient=gradient, usual=True)
    stores = [access for access in global_accesses(compiled.asm["ptx"]) if access.startswith("st")]
    assert any("v4" in store for store in stores) == gradient
