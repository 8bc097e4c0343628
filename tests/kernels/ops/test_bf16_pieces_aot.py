"""The kernel of the pieces of a float32 matrix, compiled ahead of time for every GPU family, which needs no GPU."""

from __future__ import annotations

import re
from typing import Any

import pytest

triton = pytest.importorskip("triton", reason="the compiler is part of Triton")

from triton_targets import TARGETS, compile_kernel, is_binary, narrow_offsets  # noqa: E402

from patchkit_kernels.ops.bf16_pieces import BLOCK, bf16_pieces_kernel  # noqa: E402

pytestmark = [
    pytest.mark.aot,
    pytest.mark.usefixtures("empty_triton_cache"),
    pytest.mark.skipif(triton.knobs.runtime.interpret, reason="TRITON_INTERPRET is set: nothing is compiled"),
]


def compile_pieces(target: str, integers: str = "i32", order: tuple[int, ...] = (0, 1, 2)) -> Any:
    types = {"x_ptr": "*fp32", "pieces_ptr": "*bf16", "scale": "fp32"}
    code = sum(piece << (2 * k) for k, piece in enumerate(order))
    constants = {"ORDER": code, "COUNT": len(order), "BLOCK": BLOCK}
    return compile_kernel(bf16_pieces_kernel, types, constants, target, integers)


@pytest.mark.parametrize("target", TARGETS)
def test_compiles_with_64_bit_offsets(target: str) -> None:
    """F14."""
    compiled = compile_pieces(target)
    assert is_binary(compiled, target)
    assert narrow_offsets(compiled.asm["ttir"]) == []


@pytest.mark.parametrize("integers", ["i64", "1"])
def test_compiles_for_huge_and_for_single_element_tensors(integers: str) -> None:
    assert narrow_offsets(compile_pieces("sm_90", integers).asm["ttir"]) == []


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "sm_120"])
def test_rounds_to_nearest(target: str) -> None:
    """What is cut off instead would leave the third piece more bits than it has."""
    casts = re.findall(r"cvt\S*\.bf16\S*f32", compile_pieces(target).asm["ptx"])
    assert casts
    assert all(".rn" in cast for cast in casts)


def test_a_piece_that_is_not_asked_for_is_not_written() -> None:
    stores = [len(compile_pieces("sm_90", order=order).asm["ptx"].split("st.global")) - 1 for order in ((0,), (0, 1))]
    assert stores[1] == 2 * stores[0] > 0
