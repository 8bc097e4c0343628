"""The gated activations' kernels, compiled ahead of time for every GPU family, which needs no GPU."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from gated_activation_cases import ACTIVATIONS, DIRECTIONS, DTYPES, Activation

triton = pytest.importorskip("triton", reason="the compiler is part of Triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from patchkit_kernels.gated_activation import (  # noqa: E402
    BLOCK,
    gated_backward_kernel,
    gated_backward_recompute_kernel,
    gated_forward_kernel,
)

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(triton.knobs.runtime.interpret, reason="TRITON_INTERPRET is set: nothing is compiled"),
]

KERNELS = {
    "forward": gated_forward_kernel,
    "backward": gated_backward_kernel,
    "recompute": gated_backward_recompute_kernel,
}
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx90a": GPUTarget("hip", "gfx90a", 64),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that every test really compiles."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def compile_kernel(
    activation: Activation, direction: str, dtype: str, target: Any, integers: str = "i32", aligned: bool = False
) -> Any:
    """Compile as the launcher would; ``integers`` is the type of sizes and strides, or "1" where all of them are 1.

    ``aligned``: pointers, sizes and strides are multiples of 16, as Triton notes for the usual tensors.
    """
    kernel = KERNELS[direction]
    constants: dict[str, Any] = {"BLOCK": BLOCK}
    if direction == "forward":
        constants["VALUE"] = activation.kernel.value
    else:
        constants["VALUE_AND_SLOPE"] = activation.kernel.value_and_slope
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = f"*{dtype}"
        elif integers == "1":
            signature[name], constants[name] = "constexpr", 1
        else:
            signature[name] = integers
    run_time = [(i,) for i, name in enumerate(kernel.arg_names) if name not in constants and name != "blocks_per_row"]
    attributes = {position: [["tt.divisibility", 16]] for position in run_time} if aligned else None
    return triton.compile(ASTSource(kernel, signature, constants, attributes), target=target)


def narrow_offsets(ttir: str) -> list[str]:
    """The lines that add to a pointer, or multiply integers, in less than 64 bits."""
    lines = [re.sub(r" loc\(.*", "", line).strip() for line in ttir.splitlines()]
    added = [line for line in lines if "tt.addptr" in line]
    assert added, "no pointer arithmetic found: has the IR's spelling changed?"
    narrow = [line for line in added if not re.search(r", (tensor<\d+xi64>|i64)$", line)]
    return narrow + [line for line in lines if re.search(r"arith\.(muli|shli) .*(: i32|xi32>)$", line)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
@pytest.mark.parametrize("target", TARGETS)
def test_compiles_with_64_bit_offsets(target: str, activation: Activation, direction: str, dtype: str) -> None:
    compiled = compile_kernel(activation, direction, dtype, TARGETS[target])
    binary = compiled.asm["cubin" if target.startswith("sm") else "hsaco"]
    assert binary.startswith(b"\x7fELF")
    assert narrow_offsets(compiled.asm["ttir"]) == []


@pytest.mark.parametrize("integers", ["i64", "1"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_compiles_for_huge_and_for_single_element_tensors(direction: str, integers: str) -> None:
    compiled = compile_kernel(ACTIVATIONS["swiglu"], direction, "bf16", TARGETS["sm_90"], integers=integers)
    assert narrow_offsets(compiled.asm["ttir"]) == []


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_loads_16_bytes_at_once_and_rounds_to_nearest(activation: Activation, direction: str) -> None:
    ptx = compile_kernel(activation, direction, "bf16", TARGETS["sm_90"], aligned=True).asm["ptx"]
    accesses = re.findall(r"(?:ld|st)\.global\S*", ptx)
    assert len(accesses) == {"forward": 3, "backward": 5, "recompute": 6}[direction]
    assert all(re.search(r"\.v4\.b32$", access) for access in accesses), accesses
    conversions = re.findall(r"cvt\S*\.bf16\S*\.f32", ptx)
    assert conversions
    assert all(".rn." in conversion for conversion in conversions), conversions


def test_narrow_offsets_are_found() -> None:
    wide = "%1 = tt.addptr %p, %o : tensor<8x!tt.ptr<f32>>, tensor<8xi64> loc(#loc1)"
    assert narrow_offsets(wide) == []
    for narrow in ("%1 = tt.addptr %p, %o : !tt.ptr<f32>, i32 loc(#loc1)", "%2 = arith.muli %a, %b : i32 loc(#loc2)"):
        assert narrow_offsets(wide + "\n" + narrow) == [narrow.removesuffix(" loc(#loc1)").removesuffix(" loc(#loc2)")]
