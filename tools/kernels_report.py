"""What the compiler makes of the Triton kernels for a GPU that need not be there: registers, spills, shared memory.

    python -m tools.kernels_report [--grid] [TARGET ...]        sm_80, sm_90 (the default), sm_100, sm_120

With --grid also for the other sizes that ``patchkit tune`` tries on a device, at the usual rank.

Of the products that read dy, and of those of a gated MLP beside its activation, for each mixture of dtypes and rank;
spilled bytes are those of a thread's stack. They come from ``cuobjdump``, which Triton brings along. A device decides
about speed; spills say beforehand what hinders it.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

RANKS = (16, 32, 64)
MIXTURES = {"float32": ("fp32", "fp32"), "bfloat16, float32 factors": ("bf16", "fp32"), "bfloat16": ("bf16", "bf16")}
KERNELS = {
    "dt and dB": "low_rank_backward",
    "gated MLP": "gated_low_rank",
    "gated MLP's backward": "gated_low_rank_backward",
}
STAGES = 2
"""Of each kernel, as its ``launch`` has them."""


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


def sizes_of(name: str, mixture: str) -> Sequence[Any]:
    """The sizes of a kernel of :data:`KERNELS` for this mixture, the usual ones first."""
    from patchkit_kernels.ops.launch_sizes import GRID

    float32 = name == "gated MLP's backward" and MIXTURES[mixture][1] == "fp32"
    return GRID[f"{KERNELS[name]}_float32" if float32 else KERNELS[name]]


def compile_products(name: str, mixture: str, rank: int, target: str, size: Any = None) -> Any:
    """A kernel of :data:`KERNELS` for contiguous tensors of usual sizes; the activation is SiLU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, wide, parts, constants = _described(name)
    size = size or sizes_of(name, mixture)[0]
    constants |= {"BLOCK_TOKENS": size.tokens, "BLOCK_OUT" if name == "dt and dB" else "BLOCK_COLUMNS": size.columns}
    wide_type, factor_type = MIXTURES[mixture]
    pointers = [argument for argument in kernel.arg_names if argument.endswith("_ptr")]
    types = {one: f"*{wide_type if one in wide else 'fp32' if one in parts else factor_type}" for one in pointers}
    types |= {argument: "fp32" for argument in kernel.arg_names if argument.endswith("scale")}
    constants |= {"BLOCK_RANK": rank}
    constants |= {argument: 1 for argument in kernel.arg_names if argument.endswith("column_stride")}
    signature = {one: "constexpr" if one in constants else types.get(one, "i32") for one in kernel.arg_names}
    divisible = [["tt.divisibility", 16]]
    attributes = {
        (index,): divisible
        for index, one in enumerate(kernel.arg_names)
        if one not in constants and not one.endswith("scale")
    }
    source = ASTSource(kernel, signature, constants, attributes)
    options = {"num_warps": size.warps, "num_stages": STAGES}
    return triton.compile(source, target=GPUTarget("cuda", int(target.removeprefix("sm_")), 32), options=options)


def _described(name: str) -> tuple[Any, set[str], set[str], dict[str, Any]]:
    """A kernel, its pointers to activations and to parts of sums, and its constants but for rank and sizes."""
    from patchkit_kernels.ops import gated_low_rank as forward
    from patchkit_kernels.ops import gated_low_rank_backward as backward
    from patchkit_kernels.ops import low_rank_backward
    from patchkit_kernels.ops.silu import SILU

    sums = {"d_reduced_ptr", "d_factor_ptr", "d_gate_factor_ptr", "d_up_factor_ptr", "d_down_factor_ptr"}
    if name == "dt and dB":
        return low_rank_backward.low_rank_backward_kernel, {"grad_ptr"}, sums, {"SPAN": low_rank_backward.SPAN}
    if name == "gated MLP":
        wide = {"gate_ptr", "up_ptr", "hidden_ptr"}
        return forward.gated_low_rank_kernel, wide, {"reduced_ptr"}, {"VALUE": SILU.value, "SPAN": forward.SPAN}
    wide = {"grad_ptr", "gate_ptr", "up_ptr", "d_up_ptr"}
    constants = {"VALUE_AND_GRADIENT": SILU.value_and_gradient, "SPAN": backward.SPAN}
    return backward.gated_low_rank_backward_kernel, wide, sums, constants


def resources(compiled: Any) -> Usage:
    """What a compiled kernel takes."""
    import triton.backends.nvidia

    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(compiled.asm["cubin"])
        run = subprocess.run([tool, "--dump-resource-usage", path], capture_output=True, text=True, check=False)
    return usage_of(run.stdout + run.stderr, compiled.metadata.shared)


def lines(targets: Sequence[str], *, grid: bool = False) -> Iterator[str]:
    """A line for each kernel; with ``grid`` one for each of its sizes."""
    from patchkit_kernels.ops.gated_low_rank_operands import MAX_RANK

    for target, name, mixture in itertools.product(targets, KERNELS, MIXTURES):
        for rank in RANKS[:1] if grid else RANKS:
            if name != "dt and dB" and rank > MAX_RANK:
                continue
            for size in sizes_of(name, mixture) if grid else [None]:
                registers, stack, shared = resources(compile_products(name, mixture, rank, target, size))
                taken = f"{registers} registers, {stack} B spilled, {shared} B shared"
                yield f"{target}  {name}, {mixture}, rank {rank}{f', {size}' if size else ''}: {taken}"


def main(arguments: Sequence[str]) -> None:
    """Print the report."""
    targets = [one for one in arguments if one != "--grid"]
    for line in lines(targets or ["sm_90"], grid="--grid" in arguments):
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
