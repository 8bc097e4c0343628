"""What the compiler makes of the Triton kernels for a GPU that need not be there: registers, spills, shared memory.

    python -m tools.kernels_report [TARGET ...]        sm_80, sm_90 (the default), sm_100, sm_120

Of the products that read dy, and of those of a gated MLP beside its activation, for each mixture of dtypes and rank;
spilled bytes are those of a thread's stack. They come from ``cuobjdump``, which Triton brings along. A device decides
about speed; spills say beforehand what hinders it.
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
WARPS, STAGES = {"dt and dB": 8, "gated MLP": 4, "gated MLP's backward": 8}, 2
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


def compile_products(name: str, mixture: str, rank: int, target: str) -> Any:
    """A kernel of :data:`WARPS` for contiguous tensors of usual sizes; the activation is SiLU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, wide, parts, constants = _described(name, MIXTURES[mixture][1])
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
    options = {"num_warps": WARPS[name], "num_stages": STAGES}
    return triton.compile(source, target=GPUTarget("cuda", int(target.removeprefix("sm_")), 32), options=options)


def _described(name: str, factors: str) -> tuple[Any, set[str], set[str], dict[str, Any]]:
    """A kernel, its pointers to activations and to parts of sums, and its constants but for the rank."""
    from patchkit_kernels.ops import gated_low_rank, gated_low_rank_backward, low_rank_backward
    from patchkit_kernels.ops.silu import SILU

    sums = {"d_reduced_ptr", "d_factor_ptr", "d_gate_factor_ptr", "d_up_factor_ptr", "d_down_factor_ptr"}
    if name == "dt and dB":
        one = low_rank_backward
        sizes = {"BLOCK_TOKENS": one.BLOCK_TOKENS, "BLOCK_OUT": one.BLOCK_OUT, "SPAN": one.SPAN}
        return one.low_rank_backward_kernel, {"grad_ptr"}, sums, sizes
    if name == "gated MLP":
        forward = gated_low_rank
        sizes = {"BLOCK_TOKENS": forward.BLOCK_TOKENS, "BLOCK_COLUMNS": forward.BLOCK_COLUMNS, "SPAN": forward.SPAN}
        wide = {"gate_ptr", "up_ptr", "hidden_ptr"}
        return forward.gated_low_rank_kernel, wide, {"reduced_ptr"}, {"VALUE": SILU.value, **sizes}
    backward = gated_low_rank_backward
    tokens = backward.FEWER_TOKENS if factors == "fp32" else backward.BLOCK_TOKENS
    sizes = {"BLOCK_TOKENS": tokens, "BLOCK_COLUMNS": backward.BLOCK_COLUMNS, "SPAN": backward.SPAN}
    wide = {"grad_ptr", "gate_ptr", "up_ptr", "d_up_ptr"}
    constants = {"VALUE_AND_GRADIENT": SILU.value_and_gradient, **sizes}
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


def lines(targets: Sequence[str]) -> Iterator[str]:
    """A line for each kernel."""
    from patchkit_kernels.ops.gated_low_rank_operands import MAX_RANK

    for target in targets:
        for name in WARPS:
            for mixture in MIXTURES:
                for rank in RANKS:
                    if name != "dt and dB" and rank > MAX_RANK:
                        continue
                    registers, stack, shared = resources(compile_products(name, mixture, rank, target))
                    taken = f"{registers} registers, {stack} B spilled, {shared} B shared"
                    yield f"{target}  {name}, {mixture}, rank {rank}: {taken}"


def main(arguments: Sequence[str]) -> None:
    """Print the report."""
    for line in lines(arguments or ["sm_90"]):
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
