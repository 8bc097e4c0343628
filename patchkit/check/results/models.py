"""The table of every model and every release: which parts of it are rewritten whole, as a file and as Markdown."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from packaging.version import InvalidVersion, Version

from patchkit.arch.spec import BLOCK_PARTS
from patchkit.cache.lines import read_lines
from patchkit.check.static.models import LEFT, NONE, SOME, WHOLE, ModelInBrief
from patchkit.escaping import markdown

OTHERS = "others"
"""The family of models that are the only ones of their name."""

MODEL_MEANINGS = {
    WHOLE: "every such class of the model is rewritten whole",
    SOME: "some of it is, or some of the classes",
    LEFT: "such classes are recognised, and no rule takes their code",
    NONE: "no class is recognised as one; its layers are patched one by one",
}
"""What each symbol of a cell says."""

_CELL = re.compile(f"[{WHOLE}{SOME}{LEFT}{NONE}]{{{len(BLOCK_PARTS)}}}")


@dataclass(frozen=True)
class Models:
    """The cell of every model in every release that was read.

    Attributes:
        cells: by model and release; a release without the model has none.
        releases: that were read, oldest first.
    """

    cells: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    releases: tuple[str, ...] = ()

    @classmethod
    def load(cls, path: Path) -> Models:
        """Read what :meth:`to_text` wrote; nothing if there is no such file.

        Raises:
            CacheError: it cannot be read; the message names the line.
        """
        cells: dict[str, dict[str, str]] = {}
        for model, cell, releases in read_lines(path, _read):
            cells.setdefault(model, {}).update(dict.fromkeys(releases, cell))
        return cls(cells, _ordered(release for own in cells.values() for release in own))

    def with_release(self, release: str, found: Iterable[ModelInBrief]) -> Models:
        """These, and what was found in a release in place of what was known of it."""
        cells = {model: {r: c for r, c in own.items() if r != release} for model, own in self.cells.items()}
        for one in found:
            cells.setdefault(one.model, {})[release] = one.cell
        cells = {model: own for model, own in sorted(cells.items()) if own}
        return Models(cells, _ordered([*self.releases, release]))

    def to_text(self) -> str:
        """One JSON object a line for each model and cell that it had, sorted, with the releases that have it."""
        lines = []
        for model, own in sorted(self.cells.items()):
            for cell in sorted(set(own.values())):
                releases = _ordered(release for release in own if own[release] == cell)
                lines.append(json.dumps({"model": model, "cell": cell, "releases": releases}, ensure_ascii=False))
        return "".join(f"{line}\n" for line in lines)

    def families(self) -> dict[str, list[str]]:
        """Models by family, which is how their names begin; families of several models by name, then the others."""
        found: dict[str, list[str]] = {}
        for model in sorted(self.cells):
            found.setdefault(family_of(model), []).append(model)
        several = {family: models for family, models in sorted(found.items()) if len(models) > 1}
        single = sorted(model for models in found.values() if len(models) == 1 for model in models)
        return several | ({OTHERS: single} if single else {})


def _read(line: str) -> tuple[str, str, list[str]]:
    """A model, its cell, and the releases that have it.

    Raises:
        ValueError: the line says something else.
    """
    try:
        data = json.loads(line)
        model, cell, releases = data["model"], data["cell"], [str(Version(one)) for one in data["releases"]]
        if not isinstance(model, str) or not _CELL.fullmatch(cell):
            raise ValueError("its model or its cell is none")
    except (KeyError, TypeError, InvalidVersion, RecursionError) as error:
        raise ValueError(str(error)) from error
    return model, cell, releases


def family_of(model: str) -> str:
    """The letters with which the name of a model begins.

    >>> family_of("qwen2_5_vl"), family_of("Qwen3"), family_of("m2m_100")
    ('qwen', 'qwen', 'm')
    """
    found = re.match(r"[a-z]+", model.lower())
    return found[0] if found else model


def _ordered(releases: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(releases), key=Version))


# ---- Markdown


def models_section(models: Models) -> list[str]:
    """Lines of ``compat_matrix.md``: families, and what each model is in the newest release and was before."""
    if not models.releases:
        return []
    newest = models.releases[-1]
    return [
        "",
        "## Every model",
        "",
        (
            f"The attention and MLP classes of every model file of {len(models.releases)} releases, as their structure "
            "gives them: read and rewritten as text, nothing of it run. What runs is verified on the spot, or by "
            f"`patchkit scan` ([coverage.md](coverage.md)). A cell is q/k/v, o, MLP: {_legend()}."
        ),
        "",
        *_family_table(models, newest),
        "",
        f"| model | {markdown(newest)} | since | before |",
        "|---|:-:|---|---|",
        *(_row(model, models) for own in models.families().values() for model in own),
    ]


def _legend() -> str:
    return "; ".join(f"{symbol} {meaning}" for symbol, meaning in MODEL_MEANINGS.items())


def _family_table(models: Models, newest: str) -> Iterator[str]:
    yield f"| family in {markdown(newest)} | models | q/k/v whole | o whole | MLP whole |"
    yield "|---|--:|--:|--:|--:|"
    for family, own in models.families().items():
        cells = [models.cells[model][newest] for model in own if newest in models.cells[model]]
        if cells:
            yield f"| {markdown(family)} | {len(cells)} | {' | '.join(_shares(cells))} |"


def _shares(cells: Sequence[str]) -> Iterator[str]:
    """How many of the models that have a part have it whole, part by part."""
    for column in zip(*cells, strict=True):
        having = [symbol for symbol in column if symbol != NONE]
        yield f"{having.count(WHOLE)} of {len(having)}" if having else ""


def _row(model: str, models: Models) -> str:
    runs = list(_runs(models.cells[model], models.releases))
    newest = runs.pop() if runs and runs[-1][2] == models.releases[-1] else None
    before = "; ".join(f"{cell} {_span(first, last)}" for first, cell, last in reversed(runs))
    now, since = (newest[1], newest[0]) if newest else ("–", "")
    return f"| {markdown(model)} | {now} | {markdown(since)} | {before} |"


def _span(first: str, last: str) -> str:
    return markdown(first) if first == last else f"{markdown(first)} to {markdown(last)}"


def _runs(cells: Mapping[str, str], releases: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Stretches of releases with the same cell: the first, the cell, the last. Where it is absent there is none."""
    run: tuple[str, str, str] | None = None
    for release in releases:
        cell = cells.get(release)
        if run is not None and cell == run[1]:
            run = (run[0], run[1], release)
            continue
        if run is not None:
            yield run
        run = (release, cell, release) if cell is not None else None
    if run is not None:
        yield run
