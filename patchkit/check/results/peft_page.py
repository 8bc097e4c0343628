"""PEFT's layers in the page of the matrix: of each release and layer what is known, and what is behind it."""

from __future__ import annotations

from typing import Any

from patchkit.adapters.peft_known import ReaderProof
from patchkit.adapters.peft_sources import READERS
from patchkit.check.results.peft_matrix import LAYERS, PEFT_MEANINGS, PEFT_SYMBOLS, PeftMatrix, changed_names
from patchkit.check.static.peft_layers import ReaderRecord


def peft_data(matrix: PeftMatrix) -> dict[str, Any]:
    """What the page's script is given: rows of layers, each with a cell for each release, oldest first.

    The names of the functions that a layer's reader relies on are there once for each text, and a cell names its text.
    """
    releases = [str(release) for release in matrix.records.releases()]
    texts: dict[str, list[str]] = {}
    return {
        "releases": releases,
        "legend": [[state, symbol, PEFT_MEANINGS[state]] for state, symbol in PEFT_SYMBOLS.items()],
        "layers": [
            {
                "name": reader,
                "what": LAYERS[reader],
                "cells": [
                    _cell(matrix, reader, release, before, texts)
                    for before, release in zip([None, *releases], releases, strict=False)
                ],
            }
            for reader in READERS
            if releases
        ],
        "texts": texts,
    }


def _cell(
    matrix: PeftMatrix, reader: str, release: str, before: str | None, texts: dict[str, list[str]]
) -> dict[str, Any]:
    record = matrix.records.of(release, reader)
    proof = matrix.proofs.get((reader, record.source)) if record else None
    earlier = matrix.records.of(before, reader) if before else None
    return {
        "state": matrix.state(release, reader),
        "date": record.date if record else "",
        "text": _text(record, texts),
        "since": before or "",
        "changed": changed_names(earlier, record) if before else [],
        "proof": _made_with(proof) if proof else "",
        "cases": len(proof.checks) if proof else 0,
        "worst": max(proof.checks.values()) if proof else 0.0,
    }


def _text(record: ReaderRecord | None, texts: dict[str, list[str]]) -> str:
    """The key of a text; empty if there is none."""
    if record is None or not record.sources:
        return ""
    key = f"{record.reader} {record.source[:16]}"
    texts.setdefault(key, list(record.sources))
    return key


def _made_with(proof: ReaderProof) -> str:
    return f"{proof.date}, {', '.join(f'{name} {proof.versions[name]}' for name in sorted(proof.versions))}"
