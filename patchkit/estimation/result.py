"""What :func:`patchkit.estimate` returns."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

from patchkit.escaping import one_line
from patchkit.estimation.layers import PARTS
from patchkit.estimation.sizes import shown

if TYPE_CHECKING:
    from rich.console import Group

ASSUMED = (
    "no padding, so no mask of it",
    "attention as scaled_dot_product_attention computes it on blocks (queries, keys, values, output and one number "
    "for each query are kept)",
    "what a CUDA context, an allocator's rounding and fragments take comes on top",
)
"""What every estimate takes for granted."""


@dataclass(frozen=True)
class Variant:
    """One way to train, and what its step takes.

    Attributes:
        name: for people.
        options: those of ``patchkit.apply``; None for the unpatched model.
        checkpointing: whether every layer is checkpointed.
        offload: whether what is kept is moved to the host's memory.
        kept: bytes between forward and backward, by part (:data:`~patchkit.estimation.layers.PARTS`).
        host: bytes of the host's memory between forward and backward.
        step_peak: bytes at most in forward and backward, beyond parameters and optimizer states; with gradients.
        peak: bytes at most, with parameters and states of the optimizer that was asked for.
        flops: floating-point operations of forward and backward, those of products and attention.
        longest: the longest context on the given card; 0 if not even one token fits, None if no card was given.
        unfused: how many parts with an adapter run upstream's code.
    """

    name: str
    options: dict[str, Any] | None
    checkpointing: bool
    offload: bool
    kept: dict[str, int]
    host: int
    step_peak: int
    peak: int
    flops: int
    longest: int | None = None
    unfused: int = 0

    @property
    def bytes_kept(self) -> int:
        """Bytes between forward and backward."""
        return sum(self.kept.values())


@dataclass(frozen=True)
class Estimate:
    """The memory of one training step. Printed, it is a table.

    Attributes:
        model: the class of the model.
        tokens: of each sequence.
        batch: sequences.
        parameters: bytes of all parameters and buffers.
        gradients: bytes of the gradients of what is trained.
        optimizers: bytes of the states, for each kind of optimizer.
        optimizer: the kind that is part of ``peak``.
        card: bytes of the card's memory; None if none was given.
        variants: ways to train.
    """

    model: str
    tokens: int
    batch: int
    parameters: int
    gradients: int
    optimizers: dict[str, int]
    optimizer: str
    card: int | None
    variants: tuple[Variant, ...]

    def variant(self, name: str) -> Variant:
        """The variant of this name.

        Raises:
            KeyError: there is none.
        """
        for one in self.variants:
            if one.name == name:
                return one
        raise KeyError(f"no variant {name!r}; there are {', '.join(one.name for one in self.variants)}")

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = asdict(self)
        for written, one in zip(found["variants"], self.variants, strict=True):
            written["bytes_kept"] = one.bytes_kept
        return {**found, "assumed": list(ASSUMED)}

    def __repr__(self) -> str:
        """One line: a prompt shows it, and ``print`` shows the table."""
        least = min(self.variants, key=lambda one: one.peak)
        return (
            f"<patchkit.Estimate {one_line(self.model)}, {self.batch} x {self.tokens} tokens: "
            f"{shown(self.variants[0].peak)} {self.variants[0].name}, {shown(least.peak)} {least.name}>"
        )

    def __rich__(self) -> Group:
        from rich.console import Group
        from rich.table import Table

        parts = [part for part in PARTS if any(one.kept.get(part) for one in self.variants)]
        table = Table()
        table.add_column("training")
        for heading in (*parts, "kept", "on the host", "peak", "TFLOP", *(("longest context",) if self.card else ())):
            table.add_column(heading, justify="right")
        for one in self.variants:
            sizes = [one.kept.get(part, 0) for part in parts] + [one.bytes_kept, one.host, one.peak]
            cells = [shown(size) if size else "-" for size in sizes] + [f"{one.flops / 1e12:,.3g}"]
            if self.card:
                cells.append("-" if not one.longest else f"{one.longest:,}")
            table.add_row(one.name + (f" ({one.unfused} parts upstream)" if one.unfused else ""), *cells)
        states = ", ".join(f"{name} {shown(size)}" for name, size in self.optimizers.items())
        above = [
            f"{one_line(self.model)}, {self.batch} × {self.tokens} tokens",
            f"parameters {shown(self.parameters)}, gradients {shown(self.gradients)}; optimizer states: {states}",
            "kept: between forward and backward, by what it was made for; peak: at most, with parameters, "
            f"gradients and the states of {self.optimizer}; TFLOP: the work of products and attention",
        ]
        return Group(*above, table, f"Assumed: {'; '.join(ASSUMED)}.")

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(file=StringIO(), width=176, color_system=None)
        console.print(self)
        return console.file.getvalue().rstrip()  # type: ignore[attr-defined, no-any-return]
