"""Kernels compiled ahead of time for every GPU family, which needs no GPU, and questions to the code that comes out."""

from __future__ import annotations

import re
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx90a": GPUTarget("hip", "gfx90a", 64),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


def compile_kernel(
    kernel: Any,
    types: dict[str, str],
    constants: dict[str, Any],
    target: str,
    integers: str = "i32",
    aligned: tuple[str, ...] = (),
) -> Any:
    """Compile as a launcher would.

    Args:
        kernel: the ``@jit`` function.
        types: Triton's words for the types of its pointers and floats, as ``*bf16``.
        constants: its constants and what they are.
        target: one of :data:`TARGETS`.
        integers: the type of all other arguments, sizes and strides, or "1" where all of them are 1.
        aligned: arguments that are multiples of 16, as Triton notes for the usual tensors.
    """
    signature, constants = dict(types), dict(constants)
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif name not in types and integers == "1":
            signature[name], constants[name] = "constexpr", 1
        elif name not in types:
            signature[name] = integers
    signature = {name: signature[name] for name in kernel.arg_names}
    divisible = [["tt.divisibility", 16]]
    attributes = {(kernel.arg_names.index(name),): divisible for name in aligned if name not in constants}
    return triton.compile(ASTSource(kernel, signature, constants, attributes), target=TARGETS[target])


def is_binary(compiled: Any, target: str) -> bool:
    """Whether the compiler went all the way to code of the target."""
    binary: bytes = compiled.asm["cubin" if target.startswith("sm") else "hsaco"]
    return binary.startswith(b"\x7fELF")


def narrow_offsets(ttir: str) -> list[str]:
    """The lines that add to a pointer, or multiply integers, in less than 64 bits."""
    lines = [re.sub(r" loc\(.*", "", line).strip() for line in ttir.splitlines()]
    added = [line for line in lines if "tt.addptr" in line]
    assert added, "no pointer arithmetic found: has the IR's spelling changed?"
    narrow = [line for line in added if not re.search(r", (tensor<[\dx]+xi64>|i64)$", line)]
    return narrow + [line for line in lines if re.search(r"arith\.(muli|shli) .*(: i32|xi32>)$", line)]


def global_accesses(ptx: str) -> list[str]:
    return re.findall(r"(?:ld|st)\.global\S*", ptx)
