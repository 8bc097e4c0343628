"""Which level every part runs at, and why: what ``apply`` and ``report`` return."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING

from patchkit.arch.registry import architectures
from patchkit.arch.spec import BLOCK_PARTS, PARTS
from patchkit.errors import NotPatchedError
from patchkit.planning.row import Row

if TYPE_CHECKING:
    from rich.table import Table
    from torch import nn

    from patchkit.planning.plan import Planned
    from patchkit.runtime.levels import Level


@dataclass(frozen=True)
class Report:
    """The levels of a model's parts. Printed, it is a table with one line for equal rows.

    Attributes:
        model_class: name of the model's class.
        rows: one for each part of each recognised module.
        notes: what else the user should know.
    """

    model_class: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: nn.Module, plans: Iterable[Planned]) -> Report:
        """What plans say of a model's parts."""
        rows = tuple(row for plan in plans for row in plan.rows)
        notes = () if rows else (f"supported: {', '.join(architectures())}",)
        return cls(type(model).__name__, rows, notes)

    @property
    def left(self) -> tuple[Row, ...]:
        """The rows of what runs at upstream level although it has an adapter."""
        return tuple(row for row in self.at("upstream") if not row.expected)

    @property
    def has_blocks(self) -> bool:
        """Whether any row is of a block, and not of a layer that stands by itself."""
        return any(row.part in BLOCK_PARTS for row in self.rows)

    def require(self) -> None:
        """Make sure that everything with an adapter is fused, and that something is.

        Raises:
            NotPatchedError: it is not; the message holds this report.
        """
        if self.left or all(row.level == "upstream" for row in self.rows):
            raise NotPatchedError(
                f"strict=True: these parts would stay at upstream level, so nothing was changed.\n{self}"
            )

    @property
    def counts(self) -> dict[str, int]:
        """How many parts run at each level."""
        return dict(Counter(row.level for row in self.rows))

    @property
    def summary(self) -> str:
        """One line."""
        if not self.rows:
            return f"{self.model_class}: no supported block"
        parts = [f"{part} {_counted(self.rows, part)}" for part in PARTS if _counted(self.rows, part)]
        return f"{self.model_class}: {'; '.join(parts)}"

    def at(self, level: Level) -> tuple[Row, ...]:
        """The rows of one level."""
        return tuple(row for row in self.rows if row.level == level)

    def __rich__(self) -> Table:
        from rich.table import Table

        table = Table(title=self.summary, caption="\n".join(self.notes) or None, title_justify="left")
        for column in ("module class", "part", "count", "level", "reason"):
            table.add_column(column, justify="right" if column == "count" else "left")
        groups = Counter((row.module_class, row.part, row.level, row.reason) for row in self.rows)
        colour = {"fused": "green", "linear": "yellow", "upstream": "red"}
        for (module_class, part, level, reason), count in groups.items():
            table.add_row(module_class, part, str(count), f"[{colour[level]}]{level}[/]", reason)
        return table

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(file=StringIO(), width=120, color_system=None)
        console.print(self)
        return console.file.getvalue().rstrip()  # type: ignore[attr-defined, no-any-return]


def _counted(rows: tuple[Row, ...], part: str) -> str:
    levels = Counter(row.level for row in rows if row.part == part)
    return ", ".join(f"{count} {level}" for level, count in levels.items())
