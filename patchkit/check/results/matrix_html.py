"""The matrix as one HTML page that needs nothing else: a heat map, a filter, and the rewritten source of each cell."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from patchkit.arch.spec import BLOCK_PARTS
from patchkit.check.results.matrix import MEANINGS, SYMBOLS, Cell, Matrix
from patchkit.check.results.models import MODEL_MEANINGS, Models
from patchkit.check.results.peft_matrix import PeftMatrix
from patchkit.check.results.peft_page import peft_data
from patchkit.check.results.torch_records import TORCH_HEADINGS, TORCH_SAID, TorchRecords, torch_rows
from patchkit.check.static.changes import rewritten_method
from patchkit.check.static.models import ModelInBrief
from patchkit.check.static.peft_layers import ReaderRecords
from patchkit.check.static.records import Record
from patchkit.escaping import json_in_html
from patchkit.trust.ledger import Key
from patchkit.upstream.release import Release
from patchkit.upstream.text import split_lines

_TEMPLATE = Path(__file__).with_name("matrix.html")
_DATA = "{{DATA}}"


def to_html(
    matrix: Matrix,
    releases: Sequence[Release],
    models: Models | None = None,
    briefs: Mapping[str, Sequence[ModelInBrief]] | None = None,
    peft: PeftMatrix | None = None,
    torch: TorchRecords | None = None,
) -> str:
    """The page.

    Args:
        matrix: what it shows.
        releases: of which the sources are read; each source is in the page once, however many releases have it.
        models: what is known of every other model.
        briefs: their classes by release, for the details of a cell; those of releases that were read now.
        peft: what is known of PEFT's layers.
        torch: what is known of versions of torch.

    Raises:
        ReleaseError: a release cannot be read.
    """
    by_version = {release.version: release for release in releases}
    sources: dict[str, list[list[str]]] = {}
    rows = [
        {
            "name": name,
            "cells": [_cell(cell, matrix, by_version, sources) for cell in cells],
        }
        for name, cells in matrix.rows.items()
    ]
    data = {
        "releases": list(matrix.releases),
        "rows": rows,
        "sources": sources,
        "legend": [[verdict, *SYMBOLS[verdict], MEANINGS[verdict]] for verdict in SYMBOLS],
        "models": _models(models or Models(), briefs or {}),
        "peft": peft_data(peft or PeftMatrix(ReaderRecords(), {})),
        "torch": _torch(torch or TorchRecords()),
        "dates": sorted({record.date for record in matrix.records.entries}),
    }
    return _TEMPLATE.read_text("utf-8").replace(_DATA, json_in_html(data))


def _models(models: Models, briefs: Mapping[str, Sequence[ModelInBrief]]) -> dict[str, Any]:
    """Models by family, each with a cell for each release; what is behind a cell is in the page once."""
    details: dict[str, int] = {}
    behind: dict[tuple[str, str], int] = {}
    for release, found in briefs.items():
        for one in found:
            classes = [[cls.name, dict(cls.parts.items()), cls.why] for cls in one.classes]
            behind[one.model, release] = details.setdefault(json.dumps([classes, one.others]), len(details))
    families = [
        {
            "name": family,
            "models": [
                {
                    "name": model,
                    "cells": [models.cells[model].get(release, "") for release in models.releases],
                    "details": [behind.get((model, release), -1) for release in models.releases],
                }
                for model in own
            ],
        }
        for family, own in models.families().items()
    ]
    return {
        "releases": list(models.releases),
        "families": families,
        "details": [json.loads(one) for one in details],
        "legend": list(MODEL_MEANINGS.items()),
    }


def _torch(records: TorchRecords) -> dict[str, Any]:
    """The table of versions of torch, and what is not proven equal with which."""
    unproven = {one.torch: list(one.unproven) for one in records.entries if one.unproven}
    return {"said": TORCH_SAID, "headings": TORCH_HEADINGS, "rows": list(torch_rows(records)), "unproven": unproven}


def _cell(
    cell: Cell, matrix: Matrix, releases: Mapping[str, Release], sources: dict[str, list[list[str]]]
) -> dict[str, Any]:
    parts = [[part, cell.parts[part].verdict, cell.parts[part].proven] for part in BLOCK_PARTS if part in cell.parts]
    there = [record for record in cell.records if record.finding.source] if cell.parts else []
    return {
        "text": str(cell),
        "parts": parts,
        "classes": [_class(record, matrix, releases, sources) for record in there],
    }


def _class(
    record: Record, matrix: Matrix, releases: Mapping[str, Release], sources: dict[str, list[list[str]]]
) -> dict[str, Any]:
    finding = record.finding
    name = _source_id(record.key, finding.block)
    if name not in sources and finding.release in releases:
        texts = rewritten_method(finding, releases[finding.release])
        sources[name] = _lines(*texts) if texts else []
    proof = matrix.proofs.get(record.key)
    made_with = ", ".join(f"{package} {proof.versions[package]}" for package in sorted(proof.versions)) if proof else ""
    return {
        "name": finding.class_name,
        "where": f"{finding.path}:{finding.line}",
        "verdicts": [[part, verdict] for part, verdict in record.verdicts.items()],
        "reasons": [reason for outcome in finding.parts.values() for reason in outcome.reasons],
        "date": record.date,
        "proof": f"{proof.date}, {made_with}" if proof else "",
        "source": name,
    }


def _source_id(key: Key, block: str) -> str:
    return f"{key.source[:16]}-{block}"


def _lines(before: str, after: str) -> list[list[str]]:
    """The rewritten method line by line, each with a space, or ``-`` and ``+`` where it was changed."""
    old, new = ([line.rstrip("\r\n") for line in split_lines(text)] for text in (before, after))
    return [[line[0], line[2:]] for line in difflib.ndiff(old, new) if line[0] != "?"]
