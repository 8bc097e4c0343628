"""The kernels of a gated MLP's rank-r products, compiled ahead of time for every GPU family, which needs no GPU."""

from __future__ import annotations

import re
from typing import Any

import pytest

triton = pytest.importorskip("triton", reason="the compiler is part of Triton")

from triton_targets import TARGETS, compile_kernel, global_accesses, is_binary, narrow_offsets  # noqa: E402

from patchkit_kernels.ops import gated_low_rank, gated_low_rank_backward  # noqa: E402
from patchkit_kernels.ops.activations import GATED  # noqa: E402
from patchkit_kernels.ops.launch_sizes import LaunchSizes  # noqa: E402

pytestmark = [
    pytest.mark.aot,
    pytest.mark.usefixtures("empty_triton_cache"),
    pytest.mark.skipif(triton.knobs.runtime.interpret, reason="TRITON_INTERPRET is set: nothing is compiled"),
]

MIXTURES = {"fp32": ("fp32", "fp32"), "pieces": ("bf16", "fp32"), "bf16": ("bf16", "bf16"), "fp16": ("fp16", "fp16")}
DIRECTIONS = ("forward", "backward")
WIDE = {"gate_ptr", "up_ptr", "hidden_ptr", "grad_ptr", "d_up_ptr"}
PARTS = {"reduced_ptr", "d_reduced_ptr", "d_gate_factor_ptr", "d_up_factor_ptr", "d_down_factor_ptr"}


def compile_products(
    direction: str,
    mixture: str,
    target: str,
    integers: str = "i32",
    activation: Any = "silu",
    usual: bool = False,
) -> Any:
    """``usual``: every tensor is contiguous, with pointers and sizes that are multiples of 16."""
    wide, factors = MIXTURES[mixture]
    function = GATED[activation].activation
    if direction == "forward":
        module, kernel = gated_low_rank, gated_low_rank.gated_low_rank_kernel
        constants, size = {"VALUE": function.value}, LaunchSizes().gated_low_rank
    else:
        module, kernel = gated_low_rank_backward, gated_low_rank_backward.gated_low_rank_backward_kernel
        constants, name = {"VALUE_AND_GRADIENT": function.value_and_gradient}, "gated_low_rank_backward"
        size = getattr(LaunchSizes(), f"{name}_float32" if factors == "fp32" else name)
    pointers = [name for name in kernel.arg_names if name.endswith("_ptr")]
    types = {name: f"*{wide if name in WIDE else 'fp32' if name in PARTS else factors}" for name in pointers}
    types |= {"gate_scale": "fp32", "up_scale": "fp32"}
    constants |= {"BLOCK_TOKENS": size.tokens, "BLOCK_COLUMNS": size.columns, "BLOCK_RANK": 16, "SPAN": module.SPAN}
    if usual:
        constants |= {name: 1 for name in kernel.arg_names if name.endswith("column_stride")}
    aligned = tuple(name for name in kernel.arg_names if not name.endswith("scale")) if usual else ()
    return compile_kernel(kernel, types, constants, target, integers, aligned)


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_compiles_with_64_bit_offsets(direction: str, target: str, mixture: str) -> None:
    """F14."""
    compiled = compile_products(direction, mixture, target)
    assert is_binary(compiled, target)
    assert narrow_offsets(compiled.asm["ttir"]) == []


@pytest.mark.parametrize("integers", ["i64", "1"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_compiles_for_huge_and_for_single_element_tensors(direction: str, integers: str) -> None:
    assert narrow_offsets(compile_products(direction, "pieces", "sm_90", integers).asm["ttir"]) == []


@pytest.mark.parametrize("activation", [name for name in GATED if name != "silu"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_compiles_with_every_activation(direction: str, activation: str) -> None:
    assert is_binary(compile_products(direction, "pieces", "sm_90", activation=activation), "sm_90")


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "sm_120"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_products_in_fp32_are_not_in_tf32(direction: str, target: str) -> None:
    ptx = compile_products(direction, "fp32", target).asm["ptx"]
    assert "fma.rn.f32" in ptx
    assert not re.search(r"mma\.\S+|tf32", ptx)


@pytest.mark.parametrize("mixture", ["pieces", "bf16", "fp16"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_products_of_16_bits_use_the_tensor_cores_and_sum_in_fp32(direction: str, mixture: str) -> None:
    products = re.findall(r"mma\S*\.f32\S*", compile_products(direction, mixture, "sm_90").asm["ptx"])
    assert products
    assert not [product for product in products if "tf32" in product]


@pytest.mark.parametrize(("direction", "count"), [("forward", 3), ("backward", 6)])
def test_pieces_take_three_products_for_one(direction: str, count: int) -> None:
    """Also where both operands are pieces, of which two each are taken."""
    counts = {
        mixture: compile_products(direction, mixture, "sm_90").asm["ttir"].count("tt.dot ")
        for mixture in ("pieces", "bf16")
    }
    assert counts == {"pieces": 3 * count, "bf16": count}


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_reads_and_writes_16_bytes_of_gate_and_up_at_once(direction: str) -> None:
    ptx = compile_products(direction, "bf16", "sm_90", usual=True).asm["ptx"]
    accesses = global_accesses(ptx)
    assert any(access.startswith("ld") and access.endswith(".v4.b32") for access in accesses) or "cp.async" in ptx
    # gate, up and hidden; d_gate and d_up
    stores = [access for access in accesses if access.startswith("st") and access.endswith(".v4.b32")]
    assert len(stores) >= (3 if direction == "forward" else 2)
