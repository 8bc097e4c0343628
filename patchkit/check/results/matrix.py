"""The compatibility matrix, architectures × releases, made from the records and the ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from packaging.version import Version

from patchkit.arch.registry import architectures
from patchkit.arch.spec import BLOCK_PARTS, Part
from patchkit.check.results.models import Models, models_section
from patchkit.check.results.peft_matrix import PeftMatrix, peft_section
from patchkit.check.results.torch_records import TorchRecords, torch_section
from patchkit.check.static.records import Record, Records
from patchkit.check.static.verdicts import Verdict
from patchkit.escaping import markdown
from patchkit.rewrite import REWRITE_VERSION
from patchkit.trust.ledger import Key, Proof

RELEASES = (
    "4.48.3",
    "4.49.0",
    "4.50.3",
    "4.51.3",
    "4.52.4",
    "4.53.3",
    "4.54.1",
    "4.55.4",
    "4.56.2",
    "4.57.6",
    "5.0.0",
    "5.2.0",
    "5.4.0",
    "5.6.2",
    "5.8.1",
    "5.10.4",
    "5.12.1",
    "5.14.1",
    "5.16.1",
    "5.18.0",
    "5.20.2",
    "5.21.1",
    "5.22.2",
    "5.23.0",
)
"""The releases of the matrix: the last patch release of every minor one, of transformers 5 of every other one."""

SYMBOLS: dict[Verdict, tuple[str, str]] = {
    "rewritten": ("●", "○"),
    "rewritten differently": ("▲", "△"),
    "partial": ("◆", "◇"),
    "unmatched": ("?", "?"),
    "drifted": ("✗", "✗"),
    "absent": ("–", "–"),
}
"""How a verdict is shown, proven numerically and not; from the best to the worst that a cell may hold."""

MEANINGS: dict[Verdict, str] = {
    "rewritten": "fused: the whole block is rewritten",
    "rewritten differently": "by another rule than in the release before",
    "partial": "alone: single projections are rewritten, the rest is upstream's",
    "unmatched": "upstream's code runs: no rule knows it",
    "drifted": "upstream's code runs: it was rewritten in an earlier release, and no longer is",
    "absent": "the release has no such model",
}
"""What each verdict means for the user."""


@dataclass(frozen=True)
class PartState:
    """What is known of one part in a cell.

    Attributes:
        verdict: the worst of the classes that the part has.
        proven: whether the numbers of each of them are proven equal, for this very source.
    """

    verdict: Verdict
    proven: bool

    @property
    def symbol(self) -> str:
        """See :data:`SYMBOLS`."""
        return SYMBOLS[self.verdict][0 if self.proven else 1]


@dataclass(frozen=True)
class Cell:
    """One architecture in one release.

    Attributes:
        parts: its parts; empty if the release has no such model.
        records: what it is made of.
    """

    parts: Mapping[Part, PartState]
    records: tuple[Record, ...]

    def __str__(self) -> str:
        return "".join(self.parts[part].symbol for part in BLOCK_PARTS if part in self.parts) or "–"


@dataclass(frozen=True)
class Matrix:
    """Every cell.

    Attributes:
        releases: columns, oldest first.
        rows: cells by architecture, in the order of ``releases``.
        records: what it is made from.
        proofs: the numeric proofs.
    """

    releases: tuple[str, ...]
    rows: Mapping[str, tuple[Cell, ...]]
    records: Records
    proofs: Mapping[Key, Proof]


def make_matrix(records: Records, proofs: Mapping[Key, Proof]) -> Matrix:
    """The matrix of all recorded releases.

    Args:
        records: of the static stage.
        proofs: of the numeric stage: a ledger.
    """
    releases = tuple(str(version) for version in records.releases())
    found: dict[tuple[str, str], list[Record]] = {}
    for record in records.entries:
        found.setdefault((record.finding.architecture, record.finding.release), []).append(record)
    names = sorted({architecture for architecture, _ in found})
    rows = {name: tuple(_cell(name, release, found, proofs) for release in releases) for name in names}
    return Matrix(releases, rows, records, proofs)


def _cell(name: str, release: str, found: Mapping[tuple[str, str], list[Record]], proofs: Mapping[Key, Proof]) -> Cell:
    """A cell; that of an architecture without blocks is that of the text models that it may have."""
    records = found.get((name, release), [])
    if not any(record.finding.parts for record in records):
        present = any(record.finding.line for record in records)
        towers = architectures()[name].text_models if present and name in architectures() else ()
        records = [record for tower in towers for record in found.get((tower, release), [])]
    parts: dict[Part, PartState] = {}
    for part in BLOCK_PARTS:
        holding = [record for record in records if part in record.verdicts]
        there = [record for record in holding if record.verdicts[part] != "absent"]
        if there:
            worst = max((record.verdicts[part] for record in there), key=list(SYMBOLS).index)
            proven = all(record.key in proofs for record in there)
            parts[part] = PartState(worst, proven)
        elif holding:
            parts[part] = PartState("absent", False)
    if all(part.verdict == "absent" for part in parts.values()):
        return Cell({}, tuple(records))
    return Cell(parts, tuple(records))


# ---- Markdown


def to_markdown(
    matrix: Matrix,
    models: Models | None = None,
    peft: PeftMatrix | None = None,
    torch: TorchRecords | None = None,
) -> str:
    """``compat_matrix.md``.

    Args:
        matrix: of the registered architectures.
        models: what is known of every other model.
        peft: what is known of PEFT's layers.
        torch: what is known of versions of torch.
    """
    lines = [
        "<!-- Generated by `make matrix` (patchkit matrix) from patchkit/check/static/records.jsonl and ledger.jsonl; "
        "do not edit. -->",
        "# What is proven where",
        "",
        *_header(matrix),
        "",
        *_legend(),
        "",
        f"| architecture | {' | '.join(map(markdown, reversed(matrix.releases)))} |",
        f"|---|{':-:|' * len(matrix.releases)}",
        *(f"| {markdown(name)} | {' | '.join(map(str, reversed(cells)))} |" for name, cells in matrix.rows.items()),
        "",
        "## Totals",
        "",
        *_totals(matrix),
        "",
        "## What changed at each release",
        "",
        *reversed([*changes(matrix)]),
        *(peft_section(peft) if peft else ()),
        *torch_section(torch or TorchRecords()),
        *models_section(models or Models()),
    ]
    return "\n".join(lines) + "\n"


def _header(matrix: Matrix) -> Iterator[str]:
    dates = sorted({markdown(record.date) for record in matrix.records.entries})
    span = " to ".join(dict.fromkeys([dates[0], dates[-1]])) if dates else "never"
    makers = sorted({markdown(record.patchkit) for record in matrix.records.entries})
    yield (
        f"transformers {markdown(matrix.releases[0])} to {markdown(matrix.releases[-1])}, each read as its wheel; "
        f"static stage of {span}, patchkit {', '.join(makers)}, rewriter {REWRITE_VERSION}."
        if matrix.releases
        else "Nothing is recorded."
    )
    used = {record.key for record in matrix.records.entries}
    proofs = [proof for key, proof in matrix.proofs.items() if key in used]
    if proofs:
        torch, peft = (
            ", ".join(map(str, sorted({Version(proof.versions[name]) for proof in proofs})))
            for name in ("torch", "peft")
        )
        days = sorted({markdown(proof.date) for proof in proofs})
        yield (
            f"Numeric stage of {' to '.join(dict.fromkeys([days[0], days[-1]]))}: {len(proofs)} classes, with torch "
            f"{torch}, PEFT {peft}. A proof is of a class's source, "
            "so it holds in every release that has the same source."
        )


def _legend() -> Iterator[str]:
    yield (
        "A cell has three signs: q/k/v, o, MLP. Where an architecture has several classes for a part, the sign is that "
        "of the worst. The newest release stands first; the table goes on to the right."
    )
    yield ""
    yield "| proven numerically | rewritten as text only | |"
    yield "|:-:|:-:|---|"
    for verdict, (proven, static) in SYMBOLS.items():
        yield f"| {proven if proven != static else ''} | {static} | **{verdict}**, {MEANINGS[verdict]} |"
    yield ""
    without = [one for one in architectures().values() if not one.blocks]
    towers = [markdown(f"{one.name} ({', '.join(one.text_models)})") for one in without]
    if towers:
        yield f"These have no blocks of their own; a cell shows the text models they may have: {'; '.join(towers)}."


def _totals(matrix: Matrix) -> Iterator[str]:
    yield "| | cells | parts | fused | proven numerically | alone | upstream |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    newest = matrix.releases[-1:]
    for label, releases in (("all releases", matrix.releases), *((release, newest) for release in newest)):
        cells = [
            cell for row in matrix.rows.values() for r, cell in zip(matrix.releases, row, strict=True) if r in releases
        ]
        parts = [part for cell in cells for part in cell.parts.values()]
        counts = Counter(part.verdict for part in parts)
        fused, linear = counts["rewritten"] + counts["rewritten differently"], counts["partial"]
        proven = sum(part.proven and part.verdict in {"rewritten", "rewritten differently"} for part in parts)
        present = sum(bool(cell.parts) for cell in cells)
        counted = (present, len(parts), fused, proven, linear, len(parts) - fused - linear)
        yield f"| {markdown(label)} | {' | '.join(map(str, counted))} |"


def changes(matrix: Matrix) -> Iterator[str]:
    """For each release, the classes that are new, gone, or have another source than in the release before."""
    before: dict[tuple[str, str], Record] = {}
    for release in matrix.releases:
        said: dict[str, list[str]] = {}
        now = {_name(record): record for record in matrix.records.of(release) if record.finding.source}
        for name, record in now.items():
            if name not in before:
                said.setdefault("new", []).append(_label(name))
            elif record.finding.source != before[name].finding.source:
                verdicts = set(record.verdicts.values()) - {"rewritten", "partial"}
                said.setdefault("; ".join(sorted(verdicts)) or "changed, same rule", []).append(_label(name))
        said.update({"gone": [_label(name) for name in before if name not in now]} if before.keys() - now else {})
        text = "; ".join(f"{what}: {', '.join(sorted(names))}" for what, names in sorted(said.items()))
        heading = f"* **{markdown(release)}**"
        yield f"{heading} {text or 'nothing'}" if before else f"{heading} the first recorded"
        before = now


def _name(record: Record) -> tuple[str, str]:
    return record.finding.architecture, record.finding.class_name


def _label(name: tuple[str, str]) -> str:
    own = name[0].replace("_", "") in name[1].lower().replace("_", "")
    return markdown(name[1] if own else f"{name[1]} ({name[0]})")
