"""Facts of single operations that the design rests on; ``benchmarks/predictions.json`` says what was expected of them.

Shapes are those of a layer of llama-8B. A product ``x Aᵀ`` with x ``[tokens, in]`` and A ``[rank, in]`` is *skinny*: it
reads x once and computes next to nothing, so memory should be all that it costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from patchkit.tuning import launches
from patchkit.tuning.timing import microseconds
from tools.gpu.cells import Cell, Setting, Wrong

BLOCKS = (512, 1024, 2048, 4096, 8192)
RANKS = (16, 128)


def cells(setting: Setting) -> Sequence[Cell]:
    """Ceilings, then what each kind of product costs, then the activation kernels."""
    hidden, narrow, wide, tokens = (64, 32, 128, 16) if setting.tiny else (4096, 1024, 14336, 4096)
    made = [
        Cell("copy", partial(_copy, setting, tokens, wide)),
        Cell("bf16 GEMM", partial(_gemm, setting, 2 * tokens, 2 * hidden, torch.bfloat16)),
        Cell("fp32 GEMM", partial(_gemm, setting, tokens, hidden, torch.float32)),
    ]
    for sizes in ((hidden, hidden), (hidden, wide), (wide, hidden), (hidden, narrow))[: 1 if setting.tiny else None]:
        label = f"{tokens} tokens, {sizes[0]} to {sizes[1]}"
        made.append(Cell(f"beta of 1, {label}", partial(_beta, setting, tokens, *sizes)))
        for rank in RANKS[: 1 if setting.tiny else None]:
            made.append(Cell(f"skinny products, {label}, rank {rank}", partial(_skinny, setting, tokens, *sizes, rank)))
            name = f"float32 adapter, {label}, rank {rank}"
            made.append(Cell(name, partial(_pieces, setting, tokens, sizes[0], rank)))
    made += [
        Cell(f"{name}, BLOCK {block}", partial(_activation, setting, name, tokens, wide, block))
        for name in ("swiglu", "swiglu backward and recomputation")
        for block in BLOCKS[: 2 if setting.tiny else None]
    ]
    return [*made, Cell("swiglu in torch", partial(_eager_activation, setting, tokens, wide))]


def draw(setting: Setting, *shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensor:
    """Numbers of order 0.1 on the device."""
    return launches.draw(setting.device, *shape, dtype=dtype, seed=seed)


def _timed(setting: Setting, work: Callable[[], object]) -> float:
    return microseconds(work, setting.device, **({"repeats": 2, "warm": 1} if setting.tiny else {}))


def bandwidth(us: float, *tensors: Tensor) -> float:
    """TB/s of what was read and written once, in ``us`` microseconds."""
    return sum(one.nbytes for one in tensors) / us / 1e6


def rate(us: float, *sizes: int) -> float:
    """TFLOP/s of a product of these sizes, in ``us`` microseconds."""
    flops = 2.0
    for size in sizes:
        flops *= size
    return flops / us / 1e6


def _copy(setting: Setting, tokens: int, width: int) -> dict[str, float]:
    x = draw(setting, tokens, width)
    y = torch.empty_like(x)
    us = _timed(setting, lambda: y.copy_(x))
    return {"us": us, "TB/s": bandwidth(us, x, y)}


def _gemm(setting: Setting, tokens: int, size: int, dtype: torch.dtype) -> dict[str, float]:
    x, weight = draw(setting, tokens, size, dtype=dtype), draw(setting, size, size, dtype=dtype, seed=1)
    us = _timed(setting, lambda: x @ weight.t())
    return {"us": us, "TFLOP/s": rate(us, tokens, size, size)}


def _beta(setting: Setting, tokens: int, inputs: int, outputs: int) -> dict[str, float]:
    """What the frozen product costs if it is added to what is there, and what adding by itself would."""
    x, weight, y = draw(setting, tokens, inputs), draw(setting, outputs, inputs, seed=1), draw(setting, tokens, outputs)
    alone = _timed(setting, lambda: x @ weight.t())
    added = _timed(setting, lambda: y.addmm_(x, weight.t()))
    return {
        "us": alone,
        "us with beta 1": added,
        "cost us": added - alone,
        "cost of its bytes us": y.nbytes / 4.1e6,
        "TFLOP/s": rate(alone, tokens, inputs, outputs),
    }


def _skinny(setting: Setting, tokens: int, inputs: int, outputs: int, rank: int) -> dict[str, float]:
    x, dy, t = draw(setting, tokens, inputs), draw(setting, tokens, outputs, seed=1), draw(setting, tokens, rank)
    a, b = draw(setting, rank, inputs, seed=2), draw(setting, outputs, rank, seed=3)
    y = torch.empty(tokens, outputs, device=setting.device, dtype=torch.bfloat16)
    products: dict[str, tuple[Callable[[], Tensor], tuple[Tensor, ...]]] = {
        "x A": (lambda: x @ a.t(), (x, a, t)),
        "t B": (lambda: torch.mm(t, b.t(), out=y), (t, b, y)),
        "t B added": (lambda: y.addmm_(t, b.t()), (t, b, y, y)),
        "dy B": (lambda: dy @ b, (dy, b, t)),
        "dA": (lambda: t.t() @ x, (t, x, a)),
        "dB": (lambda: dy.t() @ t, (dy, t, b)),
    }
    found: dict[str, float] = {}
    for name, (work, tensors) in products.items():
        us = _timed(setting, work)
        found |= {f"{name} us": us, f"{name} TB/s": bandwidth(us, *tensors)}
    return found


def _pieces(setting: Setting, tokens: int, inputs: int, rank: int) -> dict[str, Any]:
    """``x Aᵀ`` with a bfloat16 x and a float32 A: in float32, and as three products of bfloat16 with float32 results.

    A float32 number is the sum of three bfloat16 ones; their products with x are exact in float32.
    """
    x, a = draw(setting, tokens, inputs), draw(setting, rank, inputs, dtype=torch.float32, seed=1)
    found: dict[str, Any] = {"float32 us": _timed(setting, lambda: x.float() @ a.t())}
    found["cast of x us"] = _timed(setting, x.float)
    pieces = torch.cat(list(three_pieces(a)))

    def product() -> Tensor:
        return torch.mm(x, pieces.t(), out_dtype=torch.float32).view(tokens, 3, rank).sum(1)

    exact = x[:64].double() @ a.double().t()
    found["float32 error"] = _error((x.float() @ a.t())[:64], exact)
    try:
        product()
    except (TypeError, RuntimeError, NotImplementedError) as error:
        found["pieces"] = f"torch.mm(out_dtype=) is not here: {str(error).splitlines()[0][:120]}"
        return found
    found |= {"pieces us": _timed(setting, product), "pieces error": _error(product()[:64], exact)}
    if found["pieces error"] > 10 * max(found["float32 error"], 2.0**-24):
        raise Wrong(f"three pieces have an error of {found['pieces error']:.2g}", found)
    return found


def three_pieces(a: Tensor) -> Iterator[Tensor]:
    """Bfloat16 tensors whose sum is a float32 one, largest first."""
    for _ in range(3):
        piece = a.to(torch.bfloat16)
        yield piece
        a = a - piece.float()


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


def _activation(setting: Setting, name: str, tokens: int, width: int, block: int) -> dict[str, float]:
    from patchkit_kernels.ops.activations import GATED
    from patchkit_kernels.ops.launch_sizes import LAUNCH_SIZES, Elements

    gate, up, grad = (draw(setting, tokens, width, seed=seed) for seed in range(3))
    kernel = GATED["silu"]
    with LAUNCH_SIZES.changed(elementwise=Elements(block, 4)):
        if name == "swiglu":
            us, passes = _timed(setting, lambda: kernel.run(gate, up)), 3
        else:
            us = _timed(setting, lambda: kernel.run_backward_recompute(grad, gate, up))
            passes = 6
    return {"us": us, "TB/s": bandwidth(us, *[gate] * passes)}


def _eager_activation(setting: Setting, tokens: int, width: int) -> dict[str, float]:
    gate, up = (draw(setting, tokens, width, seed=seed) for seed in range(2))
    us = _timed(setting, lambda: torch.nn.functional.silu(gate) * up)
    return {"us": us, "TB/s": bandwidth(us, gate, up, gate)}
