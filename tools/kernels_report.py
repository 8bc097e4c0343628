"""What the compiler makes of the Triton kernels for a GPU that need not be there: registers, spills, shared memory.

    python -m tools.kernels_report [TARGET ...]        sm_80, sm_90 (the default), sm_100, sm_120

Of the products that read dy, for each mixture of dtypes and rank; spilled bytes are those of a thread's stack. They
come from ``cuobjdump``, which Triton brings along. A device decides about speed; spills say beforehand what hinders it.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

RANKS = (16, 32, 64)
MIXTURES = {"float32": ("fp32", "fp32"), "bfloat16, float32 factors": ("bf16", "fp32"), "bfloat16": ("bf16", "bf16")}
WARPS, STAGES = 8, 2
"""As :func:`patchkit_kernels.ops.low_rank_backward.launch` has them."""


class Usage(NamedTuple):
    """What a kernel takes of a device: registers and stack bytes of a thread, shared bytes of a program."""

    registers: int
    stack: int
    shared: int


def usage_of(listing: str, shared: int) -> Usage:
    """Read ``cuobjdump --dump-resource-usage``, which has what is static; what a program asks for is added.

    Raises:
        ValueError: it says nothing of registers and stack.
    """
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK):(\d+)", listing)}
    if found.keys() != {"REG", "STACK"}:
        raise ValueError(f"no registers and stack in what cuobjdump says: {listing.strip()[-300:]}")
    return Usage(found["REG"], found["STACK"], shared)


def compile_products(mixture: str, rank: int, target: str) -> Any:
    """The kernel of dt and dB for contiguous tensors of usual sizes."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from patchkit_kernels.ops.low_rank_backward import BLOCK_OUT, BLOCK_TOKENS, SPAN, low_rank_backward_kernel

    kernel = low_rank_backward_kernel
    grad, factors = MIXTURES[mixture]
    types = {"grad_ptr": f"*{grad}", "factor_ptr": f"*{factors}", "reduced_ptr": f"*{factors}"}
    types |= {"d_reduced_ptr": "*fp32", "d_factor_ptr": "*fp32", "scale": "fp32"}
    constants = {"BLOCK_TOKENS": BLOCK_TOKENS, "BLOCK_OUT": BLOCK_OUT, "BLOCK_RANK": rank, "SPAN": SPAN}
    constants |= {name: 1 for name in kernel.arg_names if name.endswith("column_stride")}
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in kernel.arg_names}
    divisible = [["tt.divisibility", 16]]
    attributes = {
        (index,): divisible for index, name in enumerate(kernel.arg_names) if name not in constants and name != "scale"
    }
    source = ASTSource(kernel, signature, constants, attributes)
    options = {"num_warps": WARPS, "num_stages": STAGES}
    return triton.compile(source, target=GPUTarget("cuda", int(target.removeprefix("sm_")), 32), options=options)


def resources(compiled: Any) -> Usage:
    """What a compiled kernel takes."""
    import triton.backends.nvidia

    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(compiled.asm["cubin"])
        run = subprocess.run([tool, "--dump-resource-usage", path], capture_output=True, text=True, check=False)
    return usage_of(run.stdout + run.stderr, compiled.metadata.shared)


def lines(targets: Sequence[str]) -> Iterator[str]:
    """A line for each kernel."""
    for target in targets:
        for mixture in MIXTURES:
            for rank in RANKS:
                registers, stack, shared = resources(compile_products(mixture, rank, target))
                taken = f"{registers} registers, {stack} B spilled, {shared} B shared"
                yield f"{target}  dt and dB, {mixture}, rank {rank}: {taken}"


def main(arguments: Sequence[str]) -> None:
    """Print the report."""
    for line in lines(arguments or ["sm_90"]):
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
