"""The page of the matrix about PEFT: releases × the layers that readers read, made from records and proofs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from patchkit.adapters.peft_known import ReaderProof, shipped_proofs
from patchkit.adapters.peft_sources import READERS
from patchkit.check.static.peft_layers import ReaderRecord, ReaderRecords
from patchkit.escaping import markdown

PEFT_RELEASES = ("0.18.1", "0.19.0", "0.19.1", "0.20.0", "0.21.0", "0.21.1", "0.21.2")
"""The releases of PEFT of the matrix: every one since the oldest that patchkit supports."""

LAYERS: Mapping[str, str] = {
    "Linear": "LoRA on a linear layer",
    "Linear, DoRA": "DoRA on a linear layer",
    "Embedding": "LoRA on an embedding",
    "Embedding, DoRA": "DoRA on an embedding",
    "ParamWrapper": "LoRA on parameters, such as stacked experts",
    "ModulesToSaveWrapper": "a copy that is trained whole",
    "Linear4bit": "LoRA over 4 bits (bitsandbytes)",
    "Linear8bitLt": "LoRA over 8 bits (bitsandbytes)",
}
"""What each reader reads, for people."""

PEFT_SYMBOLS = {"proven": "●", "unproven": "○", "absent": "–"}
PEFT_MEANINGS = {
    "proven": "read: its very text is proven to give the numbers that the fused functions give",
    "unproven": "another text than any that is proven: upstream's code runs",
    "absent": "the release has no such layer",
}


@dataclass(frozen=True)
class PeftMatrix:
    """What is known of PEFT's layers.

    Attributes:
        records: of releases.
        proofs: by reader and source.
    """

    records: ReaderRecords
    proofs: Mapping[tuple[str, str], ReaderProof]

    def state(self, release: str, reader: str) -> str:
        """A key of :data:`PEFT_SYMBOLS`; empty if nothing is recorded."""
        record = self.records.of(release, reader)
        if record is None:
            return ""
        if not record.sources:
            return "absent"
        return "proven" if (reader, record.source) in self.proofs else "unproven"


def peft_matrix_of(place: Path) -> PeftMatrix:
    """What the package proves, of the releases in a file of records.

    Raises:
        CacheError: a file cannot be read, or a line of it is damaged.
    """
    return PeftMatrix(ReaderRecords.load(place), shipped_proofs())


def peft_section(matrix: PeftMatrix) -> Iterator[str]:
    """The section of ``compat_matrix.md``, in lines; nothing if nothing is recorded."""
    releases = [str(release) for release in matrix.records.releases()]
    if not releases:
        return
    yield ""
    yield "## PEFT's layers"
    yield ""
    yield (
        f"PEFT {markdown(releases[0])} to {markdown(releases[-1])}, each read as its wheel. A reader takes the tensors "
        "out of one kind of layer; what it relies on are the functions that such a layer runs. "
        "`patchkit check --peft RELEASE` proves a release that is not here."
    )
    used = {(one.reader, one.source) for one in matrix.records.entries}
    proofs = [proof for key, proof in matrix.proofs.items() if key in used]
    if proofs:
        days = sorted({proof.date for proof in proofs})
        yield (
            f"Numeric stage of {markdown(' to '.join(dict.fromkeys([days[0], days[-1]])))}: {len(proofs)} texts, with "
            f"{_versions(proofs, 'transformers')}, {_versions(proofs, 'torch')}. "
            "A proof is of the text, so it holds in every release that has the same."
        )
    yield ""
    yield "| | |"
    yield "|:-:|---|"
    for state, symbol in PEFT_SYMBOLS.items():
        yield f"| {symbol} | {PEFT_MEANINGS[state]} |"
    yield ""
    yield f"| layer | | {' | '.join(map(markdown, reversed(releases)))} |"
    yield f"|---|---|{':-:|' * len(releases)}"
    for reader in READERS:
        cells = [PEFT_SYMBOLS.get(matrix.state(release, reader), "") for release in reversed(releases)]
        yield f"| {markdown(reader)} | {LAYERS[reader]} | {' | '.join(cells)} |"
    yield ""
    yield "What changed in what readers rely on:"
    yield ""
    for before, release in reversed([*zip([None, *releases], releases, strict=False)]):
        yield f"* **{markdown(release)}** {_changed(matrix.records, before, release)}"


def _changed(records: ReaderRecords, before: str | None, release: str) -> str:
    if before is None:
        return "the first recorded"
    found: dict[str, list[str]] = {}
    for reader in READERS:
        old, new = records.of(before, reader), records.of(release, reader)
        if (names := changed_names(old, new)) and names not in found.values():
            found[reader] = names
    said = [f"{markdown(reader)}: {', '.join(map(markdown, names))}" for reader, names in found.items()]
    return "; ".join(said) or "nothing"


def changed_names(old: ReaderRecord | None, new: ReaderRecord | None) -> list[str]:
    """The functions that two releases have otherwise."""
    before, now = (dict(one.sources) if one else {} for one in (old, new))
    return [name for name in {**before, **now} if before.get(name) != now.get(name)]


def _versions(proofs: list[ReaderProof], name: str) -> str:
    return f"{name} {', '.join(sorted({markdown(proof.versions[name]) for proof in proofs}))}"
