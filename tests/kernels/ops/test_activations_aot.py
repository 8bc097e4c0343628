"""The activations' kernels, plain and gated, compiled ahead of time for every GPU family, which needs no GPU."""

from __future__ import annotations

import re
from typing import Any

import pytest
from activation_cases import ACTIVATIONS, DIRECTIONS, Activation
from strided_tensors import DTYPES

triton = pytest.importorskip("triton", reason="the compiler is part of Triton")

from triton_targets import TARGETS, compile_kernel, global_accesses, is_binary, narrow_offsets  # noqa: E402

from patchkit_kernels.ops.launch_sizes import LaunchSizes  # noqa: E402

pytestmark = [
    pytest.mark.aot,
    pytest.mark.usefixtures("empty_triton_cache"),
    pytest.mark.skipif(triton.knobs.runtime.interpret, reason="TRITON_INTERPRET is set: nothing is compiled"),
]


def compile_activation(
    activation: Activation,
    direction: str,
    dtype: str,
    target: str,
    integers: str = "i32",
    aligned: bool = False,
    hidden: str | None = None,
) -> Any:
    kernel = {
        "forward": activation.kernel.forward_kernel,
        "backward": activation.kernel.backward_kernel,
        "recompute": activation.kernel.backward_recompute_kernel,
    }[direction]
    constants: dict[str, Any] = {"BLOCK": LaunchSizes().elementwise.elements}
    if direction == "forward":
        constants["VALUE"] = activation.kernel.activation.value
    else:
        constants["VALUE_AND_GRADIENT"] = activation.kernel.activation.value_and_gradient
    types = {name: f"*{dtype}" for name in kernel.arg_names if name.endswith("_ptr")}
    if hidden is not None:
        types["hidden_ptr"] = f"*{hidden}"
    usual = tuple(name for name in kernel.arg_names if name != "blocks_per_row")
    return compile_kernel(kernel, types, constants, target, integers, usual if aligned else ())


# What a dtype changes, loads and stores, is the same for every activation of a form.
EVERY_DTYPE = [(name, direction, dtype) for name in ("swiglu", "silu") for direction in DIRECTIONS for dtype in DTYPES]
EVERY_ACTIVATION = [(name, direction, "bf16") for name in ACTIVATIONS for direction in DIRECTIONS]


@pytest.mark.parametrize(("name", "direction", "dtype"), list(dict.fromkeys(EVERY_DTYPE + EVERY_ACTIVATION)))
@pytest.mark.parametrize("target", TARGETS)
def test_compiles_with_64_bit_offsets(target: str, name: str, direction: str, dtype: str) -> None:
    compiled = compile_activation(ACTIVATIONS[name], direction, dtype, target)
    assert is_binary(compiled, target)
    assert narrow_offsets(compiled.asm["ttir"]) == []


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("form", ["swiglu", "silu"])
@pytest.mark.parametrize("target", TARGETS)
def test_compiles_with_a_wider_hidden_state(target: str, form: str, dtype: str) -> None:
    compiled = compile_activation(ACTIVATIONS[form], "recompute", dtype, target, hidden="fp32")
    assert is_binary(compiled, target)
    # It is rounded first, as forward rounded it.
    narrow, wide = (re.findall(rf"arith\.{name}f [^\n]*xf32>", compiled.asm["ttir"]) for name in ("trunc", "ext"))
    loads = 2 + ACTIVATIONS[form].gated
    assert (len(narrow), len(wide)) == (loads, loads + 1)


@pytest.mark.parametrize("integers", ["i64", "1"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("form", ["swiglu", "silu"])
def test_compiles_for_huge_and_for_single_element_tensors(form: str, direction: str, integers: str) -> None:
    compiled = compile_activation(ACTIVATIONS[form], direction, "bf16", "sm_90", integers=integers)
    assert narrow_offsets(compiled.asm["ttir"]) == []


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_loads_16_bytes_at_once_and_rounds_to_nearest(activation: Activation, direction: str) -> None:
    ptx = compile_activation(activation, direction, "bf16", "sm_90", aligned=True).asm["ptx"]
    accesses = global_accesses(ptx)
    each = {"forward": (3, 2), "backward": (5, 3), "recompute": (6, 4)}[direction]
    assert len(accesses) == each[0 if activation.gated else 1]
    assert all(re.search(r"\.v4\.b32$", access) for access in accesses), accesses
    conversions = re.findall(r"cvt\S*\.bf16\S*\.f32", ptx)
    # A ReLU alone selects from what was loaded, and its square is one product, which the compiler makes of bf16 itself:
    # that rounds to nearest too, by default.
    in_bf16 = activation.kernel.name == "relu" or (activation.kernel.name, direction) == ("relu2", "forward")
    assert bool(conversions) != in_bf16
    assert all(".rn." in conversion for conversion in conversions), conversions


def test_narrow_offsets_are_found() -> None:
    wide = "%1 = tt.addptr %p, %o : tensor<8x!tt.ptr<f32>>, tensor<8xi64> loc(#loc1)"
    assert narrow_offsets(wide) == []
    for narrow in ("%1 = tt.addptr %p, %o : !tt.ptr<f32>, i32 loc(#loc1)", "%2 = arith.muli %a, %b : i32 loc(#loc2)"):
        assert narrow_offsets(wide + "\n" + narrow) == [narrow.removesuffix(" loc(#loc1)").removesuffix(" loc(#loc2)")]
