"""What the blocks of a layer cost, patched against plain PEFT, on tensors so small that all is the host's work.

On a GPU the same work (Python, the dispatcher, autograd) decides over small models and short batches. Operations, FLOPs
and bytes are counted, times are measured; :func:`host_time` is for a table that a person reads, never for a test.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from patchkit.testing.lora import add_lora
from patchkit.testing.measure import count_flops, count_ops, saved_bytes
from patchkit.testing.tiny.factory import tiny_model_from
from patchkit.testing.tiny_models import tiny_model


class BlockPrecision(NamedTuple):
    """Dtypes of the base weights and of the adapters, and of an autocast region around the forward, or None."""

    base: torch.dtype
    lora: torch.dtype
    autocast: torch.dtype | None = None

    def region(self) -> AbstractContextManager[Any]:
        """The autocast region."""
        return nullcontext() if self.autocast is None else torch.autocast("cpu", dtype=self.autocast)


_BF16, _FP32 = torch.bfloat16, torch.float32
BLOCK_PRECISIONS: dict[str, BlockPrecision] = {
    "float32": BlockPrecision(_FP32, _FP32),
    "bfloat16 base, float32 adapters": BlockPrecision(_BF16, _FP32),
    "the same under autocast": BlockPrecision(_BF16, _FP32, _BF16),
    "bfloat16": BlockPrecision(_BF16, _BF16),
    "float32 under autocast": BlockPrecision(_FP32, _FP32, _BF16),
}
"""In which people train. PEFT's own default over a bfloat16 base is float32 adapters."""

BLOCK_PARTS = ("qkv", "o", "mlp", "ungated mlp")
LAYER = "layer"
"""q/k/v, o and the MLP one after the other in one graph, without attention: a model too enters backward once, and not
once for each block."""

TIMED_PARTS = (*BLOCK_PARTS, LAYER)
TOKENS, RANK, ALPHA = 4, 8, 11
_TURN = 5


class BlockCost(NamedTuple):
    """Of one forward and backward of a block.

    Attributes:
        compute_ops: see :class:`~patchkit.testing.measure.OpCount`.
        flops: of matrix products.
        bytes_kept: between forward and backward; parameters are not counted.
    """

    compute_ops: int
    flops: int
    bytes_kept: int


class Block:
    """One part of a layer with adapters, plain or patched, and an input for it.

    Args:
        model: that holds it; its parameters are those whose gradients are made.
        run: the part, from ``[1, tokens, features]`` to one tensor or several.
        x: its input.
        precision: the autocast region in which forward runs.
    """

    def __init__(self, model: nn.Module, run: Callable[[Tensor], Any], x: Tensor, precision: BlockPrecision) -> None:
        self._model, self._run, self.x, self._precision = model, run, x, precision
        self._grads = [torch.ones_like(y) for y in self.forward()]
        self.step()
        self._own = [self.x, *[parameter for parameter in model.parameters() if parameter.grad is not None]]
        self.clear()

    def forward(self) -> tuple[Tensor, ...]:
        """The outputs, with their graph."""
        with self._precision.region():
            y = self._run(self.x)
        return y if isinstance(y, tuple) else (y,)

    def step(self) -> None:
        """Forward and backward."""
        torch.autograd.backward(self.forward(), self._grads)

    def microseconds(self) -> float:
        """How long this thread worked for :meth:`step`, but for entering and leaving the autocast region.

        A model enters it once for all of its layers. What it cast in there is forgotten when it ends, so each step has
        a region of its own.
        """
        with self._precision.region():
            start = time.thread_time_ns()
            y = self._run(self.x)
            forward = time.thread_time_ns() - start
        start = time.thread_time_ns()
        torch.autograd.backward(y if isinstance(y, tuple) else (y,), self._grads)
        return (forward + time.thread_time_ns() - start) / 1000

    def clear(self) -> None:
        """Drop the gradients that a step makes.

        Not those of the whole model, which would take longer than a step and leave the caches full of other modules.
        """
        for tensor in self._own:
            tensor.grad = None

    def cost(self) -> BlockCost:
        """Counted: the same on every machine."""
        self.clear()
        ops = count_ops(self.step).compute_ops
        self.clear()
        flops = count_flops(self.step)
        self.clear()
        return BlockCost(ops, flops, saved_bytes(self.forward, exclude=[self._model]))


def block_pair(
    part: str, precision: BlockPrecision, *, dropout: float = 0.0, hidden: int = 64, tokens: int = TOKENS
) -> tuple[Block, Block]:
    """A part of :data:`BLOCK_PARTS`, plain and patched, with the same weights.

    Args:
        part: which; or :data:`LAYER`.
        precision: see :class:`BlockPrecision`.
        dropout: of every adapter.
        hidden: the width of the model; its MLP is 1.75 times as wide.
        tokens: of the input.
    """
    options: dict[str, Any] = {"r": RANK, "lora_alpha": ALPHA, "lora_dropout": dropout}
    sizes: dict[str, Any] = {"hidden_size": hidden, "intermediate_size": hidden * 7 // 4}
    if part == "ungated mlp":
        plain = add_lora(tiny_model_from("phi", **sizes), target_modules=["fc1", "fc2"], **options)
    else:
        plain = add_lora(tiny_model("llama", **sizes), **options)
    plain, patched = with_patched(plain, precision)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, tokens, hidden, generator=generator).to(precision.base)
    first, second = (
        Block(model, _function(model, part), x.clone().requires_grad_(), precision) for model in (plain, patched)
    )
    return first, second


def with_patched(plain: nn.Module, precision: BlockPrecision) -> tuple[nn.Module, nn.Module]:
    """A model with adapters in these dtypes, in training mode, and a patched copy of it.

    What is frozen is the same memory in both: where a weight lies decides how fast it is read, by some hundredths.
    """
    import patchkit  # the public face loads the flow that this package is used to test

    plain = plain.to(precision.base).train()
    for name, parameter in plain.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(precision.lora)
    patched = copy.deepcopy(plain, {id(weight): weight for weight in plain.parameters() if not weight.requires_grad})
    patchkit.apply(patched)
    return plain, patched


def _function(model: nn.Module, part: str) -> Callable[[Tensor], Any]:
    """The first block of this part, as a function of its input."""
    if part == LAYER:
        return _layer(*[_function(model, one) for one in ("qkv", "o", "mlp")])
    wanted = {"qkv": "q_proj", "o": "o_proj", "mlp": "gate_proj", "ungated mlp": "fc1"}[part]
    block: Any = next(module for module in model.modules() if wanted in module._modules)
    if part.endswith("mlp"):
        return block  # type: ignore[no-any-return]
    if part == "o":
        return getattr(block, "apply_o", block.o_proj)  # type: ignore[no-any-return]
    if hasattr(block, "apply_qkv"):
        return block.apply_qkv  # type: ignore[no-any-return]
    return lambda x: (block.q_proj(x), block.k_proj(x), block.v_proj(x))


def _layer(qkv: Callable[..., Any], o: Callable[..., Any], mlp: Callable[..., Any]) -> Callable[[Tensor], Any]:
    def run(x: Tensor) -> tuple[Tensor, ...]:
        query, key, value = qkv(x)
        return mlp(o(query)), key, value

    return run


class HostTime(NamedTuple):
    """Median microseconds of the processor for one forward and backward of a block, plain and patched."""

    part: str
    precision: str
    dropout: float
    plain: float
    patched: float


def host_time(part: str, precision: str, dropout: float, *, steps: int) -> HostTime:
    """Time one of :data:`TIMED_PARTS` in one of :data:`BLOCK_PRECISIONS`, of two tokens and width 16.

    Plain and patched take turns of a few steps, the first of which is not counted: in a model, another layer has run
    the same code shortly before. The time is that which this thread worked, so that others on the machine add to it
    only by emptying its caches.
    """
    pair = block_pair(part, BLOCK_PRECISIONS[precision], dropout=dropout, hidden=16, tokens=2)
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(-(-steps // _TURN) + 1):
        for block, taken in zip(pair, times, strict=True):
            for step in range(_TURN + 1):
                block.clear()
                found = block.microseconds()
                if turn and step:  # the first turn warms up
                    taken.append(found)
    return HostTime(part, precision, dropout, *map(statistics.median, times))


def host_times(steps: int) -> Iterator[HostTime]:
    """Every part in every precision, without dropout and with it."""
    for precision in BLOCK_PRECISIONS:
        for dropout in (0.0, 0.1):
            for part in TIMED_PARTS:
                yield host_time(part, precision, dropout, steps=steps)
