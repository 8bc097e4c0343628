"""Which level every part runs at, and why: what ``apply`` and ``report`` return."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING

from patchkit.advice import Advice, advice_of
from patchkit.arch.registry import architectures
from patchkit.arch.spec import BLOCK_PARTS, PARTS
from patchkit.errors import NotPatchedError
from patchkit.escaping import one_line
from patchkit.module_tree import model_type_of, unpatched, users_model
from patchkit.planning.row import Row

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Group
    from torch import nn

    from patchkit.planning.plan import Planned
    from patchkit.runtime.levels import Level


_NO_LOGITS = (
    "in training with labels the output of the model has no logits, since its loss is computed without them; "
    "output_logits=True asks for them"
)


@dataclass(frozen=True)
class Report:
    """The levels of a model's parts: fused, alone or upstream. Printed, it is a table with one line for equal rows.

    Attributes:
        model_class: name of the model's class, without what PEFT or ``torch.compile`` put around it.
        rows: one for each part of each recognised module.
        notes: what else the user should know.
        model_type: of the model's configuration; empty if it has none.
    """

    model_class: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    model_type: str = ""

    @classmethod
    def of(cls, model: nn.Module, plans: Iterable[Planned], notes_of_model: Iterable[str] = ()) -> Report:
        """What plans say of a model's parts, and what else is to be said of the model."""
        rows = tuple(row for plan in plans for row in plan.rows)
        if not rows:
            notes: tuple[str, ...] = (f"supported: {', '.join(architectures())}, and adapted layers in any model",)
        elif any(row.part == "linear" for row in rows) and not any(
            row.part in BLOCK_PARTS or row.layers for row in rows if row.part != "norm"
        ):
            notes = ("no adapted layer of it is in a block that patchkit knows, so each is patched by itself",)
        else:
            notes = ()
        if any(row.part == "loss" and row.level == "fused" for row in rows):
            notes += (_NO_LOGITS,)
        notes += tuple(notes_of_model)
        named = users_model(model)
        return cls(unpatched(type(named)).__name__, rows, notes, model_type_of(named))

    @property
    def title(self) -> str:
        """The model's class and type: ``LlamaForCausalLM (llama)``."""
        return f"{self.model_class} ({self.model_type})" if self.model_type else self.model_class

    @property
    def left(self) -> tuple[Row, ...]:
        """The rows of what runs at upstream level although it has an adapter."""
        return tuple(row for row in self.at("upstream") if not row.expected)

    def require(self) -> None:
        """Make sure that everything with an adapter is fused, and that something is.

        Raises:
            NotPatchedError: it is not; the message holds this report.
        """
        if not self.rows:
            found = f"{self.title} has no layer with an adapter and no block that patchkit knows"
        elif left := sorted({f"{row.module_class} {row.part}" for row in self.left}):
            found = f"these parts of {self.title} have an adapter and would stay at upstream level: {', '.join(left)}"
        elif all(row.level == "upstream" for row in self._adapted):
            found = f"nothing of {self.title} has an adapter that is asked for"
        else:
            return
        raise NotPatchedError(f"strict=True: {found}; nothing was changed.\n{self}")

    @property
    def _adapted(self) -> tuple[Row, ...]:
        """The rows of what may have an adapter: all but norms."""
        return tuple(row for row in self.rows if row.part != "norm")

    @property
    def counts(self) -> dict[str, int]:
        """How many parts run at each level."""
        return dict(Counter(row.level for row in self.rows))

    @property
    def summary(self) -> str:
        """One line."""
        if not self.rows:
            return f"{self.title}: no supported block and no adapted layer"
        parts = [f"{part} {_counted(self.rows, part)}" for part in PARTS if _counted(self.rows, part)]
        return f"{self.title}: {'; '.join(parts)}"

    def at(self, level: Level) -> tuple[Row, ...]:
        """The rows of one level."""
        return tuple(row for row in self.rows if row.level == level)

    @property
    def share_fused(self) -> float:
        """How much of what has something to fuse runs fused, from 0 to 1; 0 where there is nothing."""
        concerned = [row for row in self._adapted if not row.expected]
        return len([row for row in concerned if row.level == "fused"]) / len(concerned) if concerned else 0.0

    @property
    def advice(self) -> tuple[Advice, ...]:
        """What to do about each reason for which a part is not fused, most parts first."""
        return advice_of(self.rows)

    def save_html(self, path: str | Path) -> None:
        """Write the report as a page that needs nothing else: a bar for each part, every module on demand.

        Raises:
            OSError: the file cannot be written.
        """
        from pathlib import Path

        from patchkit.report_html import page

        Path(path).write_text(page(self), encoding="utf-8")

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from patchkit.report_html import fragment

        return fragment(self)

    def __repr__(self) -> str:
        """One line: a prompt shows it, and ``print`` shows the table."""
        return f"<patchkit.Report {one_line(self.summary)}>"

    def __rich__(self) -> Group:
        from rich.console import Group
        from rich.markup import escape
        from rich.table import Table

        table = Table()
        saving = any(row.memory for row in self.rows)
        for column in ("module class", "part", "count", "level", *(["memory"] if saving else []), "reason"):
            table.add_column(column, justify="right" if column == "count" else "left")
        groups = Counter((row.module_class, row.part, row.level, row.memory, row.reason) for row in self.rows)
        colour = {"fused": "green", "alone": "yellow", "upstream": "red"}
        for (module_class, part, level, memory, reason), count in groups.items():
            shown, why = escape(one_line(module_class)), escape(one_line(reason))
            cells = [f"[{colour[level]}]{level}[/]", *([memory] if saving else []), why]
            table.add_row(shown, part, str(count), *cells)
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
