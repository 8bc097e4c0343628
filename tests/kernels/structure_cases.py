"""Every structure of a fused function against upstream's operations on one device, and what is demanded of each.

Both sides run on that device from the same random state, so dropout draws the same masks there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from projection_cases import make, plain_mlp, precise, seeds, tensors
from structures import STRUCTURES, first_order, train
from torch import Tensor

from patchkit.testing import Result, RoundingErrors
from patchkit_kernels.lora.gated_mlp import lora_gated_mlp
from patchkit_kernels.lora.projection import Precision

TOLERANCES = {"fp64": (torch.float64, 1e-10), "fp32": (torch.float32, 1e-5)}
"""Largest difference of a result or a gradient, relative to its norm."""

MIXTURES = [
    (torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32),
    (torch.float16, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float16, torch.float16),
]
"""Dtypes of the base and of the adapters."""


@dataclass(frozen=True)
class Case:
    structure: str
    dtype: str

    @property
    def id(self) -> str:
        return f"{self.structure}-{self.dtype}"


CASES = [Case(structure, dtype) for structure in STRUCTURES for dtype in TOLERANCES]


def complaint(case: Case, device: str = "cpu") -> str | None:
    """Outputs and gradients of everything, fused and upstream: None if they are equal, else what is not."""
    dtype, tolerance = TOLERANCES[case.dtype]
    structure = STRUCTURES[case.structure](dtype=dtype, device=device)
    train(structure, set(structure.tensors))
    expected, found = first_order(structure, structure.upstream), first_order(structure, structure.fused)
    if expected.keys() != found.keys():
        return f"{sorted(expected.keys() ^ found.keys())} on one side only"
    wrong = [problem for name in expected if (problem := _differ(name, expected[name], found[name], tolerance))]
    return "; ".join(wrong) or None


def _differ(name: str, expected: Tensor | None, found: Tensor | None, tolerance: float) -> str | None:
    if expected is None or found is None:
        return None if expected is found else f"{name} on one side only"
    if (expected.shape, expected.dtype, expected.device) != (found.shape, found.dtype, found.device):
        return f"{name} is {list(found.shape)} {found.dtype} on {found.device}"
    error, norm = (found - expected).norm().item(), expected.norm().item()
    # Of float32 sums that cancel, what is left is as large as the rounding of what was added: numbers of order one.
    return None if error <= tolerance * max(norm, 1.0) else f"{name} differs by {error:.3g} of {norm:.3g}"


def rounding_failures(base: torch.dtype, lora: torch.dtype, device: str = "cpu") -> list[str]:
    """Of a gated MLP in low precision, where our error is larger than ``patchkit.testing.rounding`` allows."""
    errors, total = RoundingErrors(), "everything"
    tokens, hidden, intermediate, rank = 64, 48, 56, 8
    for seed in seeds(4):
        x = torch.randn(tokens, hidden, generator=torch.Generator().manual_seed(seed)).to(device, base).requires_grad_()
        kinds = {"rank": rank, "dtype": base, "lora_dtype": lora, "device": device}
        inputs = [make(hidden, intermediate, **kinds, seed=2 * seed + i) for i in range(2)]
        down = make(intermediate, hidden, **kinds, seed=seed)
        exact, x64 = [precise(p) for p in (*inputs, down)], x.detach().double().requires_grad_()
        cotangent = torch.randn(tokens, hidden, generator=torch.Generator().manual_seed(seed + 1)).to(device, base)

        def run(y, x, projections, cotangent=cotangent):
            return [y, *torch.autograd.grad(y, [x, *tensors(projections)], cotangent.to(y.dtype))]

        truth = run(plain_mlp(x64, exact[:2], exact[2], "silu"), x64, exact)
        upstream = run(plain_mlp(x, inputs, down, "silu"), x, [*inputs, down])
        ours = run(lora_gated_mlp(x, inputs, down, "silu", Precision(base, lora, base, lora)), x, [*inputs, down])
        if [t.dtype for t in ours] != [t.dtype for t in upstream]:
            return [f"results are {[t.dtype for t in ours]}, upstream's {[t.dtype for t in upstream]}"]
        results = [Result(*found) for found in zip(truth, upstream, ours, strict=True)]
        # A path through the block and back sums over each of these, twice at most.
        summed = 2 * (tokens + hidden + intermediate + rank)
        for index, result in enumerate(results):
            errors.add_draw(f"result {index}", [result], summed)
        errors.add_draw(total, results, summed, each_relative=True)
    return errors.failures(totals=[total])
