"""What is measured: one cell of the grid that `patchkit bench --contenders` goes through."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import product
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from patchkit.estimation.shapes import SHAPES, shape_named

TINY: Mapping[str, tuple[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "tiny": (
            "LlamaConfig",
            {
                "hidden_size": 256,
                "intermediate_size": 688,
                "num_attention_heads": 8,
                "num_key_value_heads": 4,
                "max_position_embeddings": 131072,
            },
        ),
        "host": (
            "LlamaConfig",
            {"hidden_size": 64, "intermediate_size": 112, "num_attention_heads": 4, "num_key_value_heads": 2},
        ),
    }
)
"""Shapes that no model has: one that a CPU takes in milliseconds, one whose time is the host's alone."""


class Precision(NamedTuple):
    """In which a model is trained.

    Attributes:
        base: dtype of the base weights and of the layer's input.
        lora: dtype of the adapters.
        autocast: dtype of an autocast region around forward, or None.
    """

    base: torch.dtype
    lora: torch.dtype
    autocast: torch.dtype | None = None

    def region(self, device: str) -> AbstractContextManager[Any]:
        """The autocast region."""
        return nullcontext() if self.autocast is None else torch.autocast(device.partition(":")[0], dtype=self.autocast)


_BF16, _FP32 = torch.bfloat16, torch.float32
PRECISIONS: Mapping[str, Precision] = MappingProxyType(
    {
        "A": Precision(_BF16, _FP32),
        "B": Precision(_BF16, _FP32, _BF16),
        "C": Precision(_BF16, _BF16),
        "float32": Precision(_FP32, _FP32),
    }
)
"""A: PEFT's default over a bfloat16 base. B: the same under autocast, as ``Trainer(bf16=True)``. C: all in bfloat16."""

ABOUT_PRECISIONS: Mapping[str, str] = MappingProxyType(
    {
        "A": "bfloat16 base, float32 adapters",
        "B": "bfloat16 base, float32 adapters, bfloat16 autocast",
        "C": "bfloat16 base and adapters",
        "float32": "float32 base and adapters",
    }
)


@dataclass(frozen=True)
class Cell:
    """One training step of one layer's blocks, or of a stack of layers.

    Attributes:
        shape: a key of :data:`patchkit.estimation.shapes.SHAPES` or of :data:`TINY`.
        tokens: of the one sequence.
        rank: of every adapter; its alpha is twice that.
        precision: a key of :data:`PRECISIONS`.
        dropout: of every adapter.
        dora: whether the adapters are DoRA's.
        nf4: whether the base weights are stored in four bits, by bitsandbytes.
        checkpointing: whether forward is run again in backward.
        layers: whole decoder layers in a stack; 0 for q/k/v, o and MLP of one layer, with nothing around them.
        device: as torch names it.
    """

    shape: str
    tokens: int
    rank: int = 16
    precision: str = "A"
    dropout: float = 0.0
    dora: bool = False
    nf4: bool = False
    checkpointing: bool = False
    layers: int = 0
    device: str = "cpu"

    @property
    def dtypes(self) -> Precision:
        """Its :class:`Precision`."""
        return PRECISIONS[self.precision]

    @property
    def sizes(self) -> Mapping[str, Any]:
        """Fields of the configuration."""
        return _shape(self.shape)[1]

    @property
    def config_class(self) -> str:
        """Name of the configuration's class in transformers."""
        return _shape(self.shape)[0]

    @property
    def one_thread(self) -> bool:
        """Whether one thread of a CPU is enough: small products are slower on more, and their times noisier."""
        return self.shape in TINY and self.device.partition(":")[0] == "cpu"

    @property
    def title(self) -> str:
        """What people read."""
        words = [self.shape, f"{self.tokens:,} tokens", f"r = {self.rank}", self.precision]
        words += [f"dropout {self.dropout:g}"] * bool(self.dropout)
        words += [name for name in ("dora", "nf4", "checkpointing") if getattr(self, name)]
        words += [f"{self.layers} layer{'s' * (self.layers != 1)}"] * bool(self.layers)
        return ", ".join(words)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; the constructor takes it back."""
        return asdict(self)


def cells(shapes: list[str], tokens: list[int], ranks: list[int], precisions: list[str], **others: Any) -> list[Cell]:
    """Every combination.

    Args:
        shapes: names, short ones too.
        tokens: see :class:`Cell`.
        ranks: likewise.
        precisions: likewise.
        others: what all cells have in common.

    Raises:
        EstimateError: there is no such shape; with what is near.
    """
    named = [shape_named(one, also=["tiny"]) for one in shapes]
    return [Cell(*one, **others) for one in product(named, tokens, ranks, precisions)]


def _shape(name: str) -> tuple[str, Mapping[str, Any]]:
    return TINY[name] if name in TINY else SHAPES[name]
