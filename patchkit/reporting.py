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
from patchkit.escaping import one_line
from patchkit.planning.row import Row

if TYPE_CHECKING:
    from rich.console import Group
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
        if not rows:
            notes: tuple[str, ...] = (f"supported: {', '.join(architectures())}, and adapted layers in any model",)
        elif all(row.part not in BLOCK_PARTS for row in rows):
            notes = ("no block of it is known, so each adapted layer runs alone, where it stands",)
        else:
            notes = ()
        return cls(type(model).__name__, rows, notes)

    @property
    def left(self) -> tuple[Row, ...]:
        """The rows of what runs at upstream level although it has an adapter."""
        return tuple(row for row in self.at("upstream") if not row.expected)

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
            return f"{self.model_class}: no supported block and no adapted layer"
        parts = [f"{part} {_counted(self.rows, part)}" for part in PARTS if _counted(self.rows, part)]
        return f"{self.model_class}: {'; '.join(parts)}"

    def at(self, level: Level) -> tuple[Row, ...]:
        """The rows of one level."""
        return tuple(row for row in self.rows if row.level == level)

    def __rich__(self) -> Group:
        from rich.console import Group
        from rich.markup import escape
        from rich.table import Table

        table = Table()
        for column in ("module class", "part", "count", "level", "reason"):
            table.add_column(column, justify="right" if column == "count" else "left")
        groups = Counter((row.module_class, row.part, row.level, row.reason) for row in self.rows)
        colour = {"fused": "green", "alone": "yellow", "upstream": "red"}
        for (module_class, part, level, reason), count in groups.items():
            shown, why = escape(one_line(module_class)), escape(one_line(reason))
            table.add_row(shown, part, str(count), f"[{colour[level]}]{level}[/]", why)
        above, *below = (f"[italic]{escape(one_line(text))}[/]" for text in (self.summary, *self.notes))
        return Group(above, *([table] if groups else []), *below)

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(file=StringIO(), width=120, color_system=None)
        console.print(self)
        return console.file.getvalue().rstrip()  # type: ignore[attr-defined, no-any-return]


def _counted(rows: tuple[Row, ...], part: str) -> str:
    levels = Counter(row.level for row in rows if row.part == part)
    return ", ".join(f"{count} {level}" for level, count in levels.items())
