"""``coverage.md``: what the scan found of every model type of a release.

It is sorted, and holds nothing that differs between two machines (an error, a time), so that two can be compared line
by line, and CI can see whether the one in the repository is still true.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from patchkit.check.numeric.model_types import STATES, State, TypeOutcome
from patchkit.escaping import markdown

_MEANING: dict[State, str] = {
    "verified": "outputs, loss and every gradient of the tiny model are equal, and some of its layers run fused",
    "different": "they are not equal",
    "upstream": "they are equal, and nothing runs fused",
    "nothing to patch": "it has no layer that PEFT adapts",
    "no model": "its configuration is a part of other configurations, and no class takes it alone",
    "not run": "plain PEFT fails on the tiny model, or nothing can be compared, or the process was lost",
    "not built": "no tiny model of it could be made",
}


def coverage_text(outcomes: Iterable[TypeOutcome], versions: Mapping[str, str]) -> str:
    """The text of ``coverage.md``.

    Args:
        outcomes: of model types, in any order.
        versions: of what they were found with.
    """
    found = sorted(outcomes, key=lambda one: (one.head, one.model_type))
    return "\n".join(_lines(found, versions)) + "\n"


def _lines(outcomes: Sequence[TypeOutcome], versions: Mapping[str, str]) -> Iterator[str]:
    release = versions.get("transformers", "?")
    yield f"# Model types of transformers {markdown(release)}"
    yield ""
    yield (
        "`make coverage` (`patchkit scan --write`) made a tiny model of each type, with LoRA on every linear layer. It "
        "compared that model with itself, patched and unpatched. It ran with "
        + ", ".join(f"{markdown(name)} {markdown(version)}" for name, version in sorted(versions.items()))
        + ", on a CPU. The first column of the table is the *head*: the kind of model that was made of a type, for "
        "example a causal language model or an encoder."
    )
    yield ""
    heads = list(dict.fromkeys(one.head for one in outcomes))
    states = [state for state in STATES if any(one.state == state for one in outcomes)]
    yield from (f"* **{state}**: {_MEANING[state]}." for state in states)
    yield ""
    yield (
        "Adapted layers run *in blocks*, that is, in one fused function with other layers; *alone*, fused one by one; "
        "or *upstream*, by the code of transformers and PEFT."
    )
    yield ""
    yield f"| | types | {' | '.join(states)} | adapted layers | in blocks | alone | upstream |"
    yield "|---" + "|--:" * (len(states) + 5) + "|"
    for head in [*heads, "all"]:
        yield _sums(head, [one for one in outcomes if head in (one.head, "all")], states)
    for head in heads:
        own = [one for one in outcomes if one.head == head]
        yield from _section(f"{head}: not verified", [one for one in own if one.state != "verified"], _REASONS)
        yield from _section(f"{head}: verified", [one for one in own if one.state == "verified"], _VERIFIED)
    yield from _classes(outcomes)


def _sums(head: str, outcomes: Sequence[TypeOutcome], states: Sequence[State]) -> str:
    counts = Counter(one.state for one in outcomes)
    layers = sum(one.layers for one in outcomes)
    shares = [sum(getattr(one, name) for one in outcomes) for name in ("whole", "alone", "left")]
    told = [f"{count} ({100 * count / layers:.1f} %)" if layers else "0" for count in shares]
    return f"| {' | '.join([head, str(len(outcomes)), *(str(counts[one]) for one in states), str(layers), *told])} |"


def _section(title: str, outcomes: Sequence[TypeOutcome], table: _Table) -> Iterator[str]:
    if outcomes:
        yield from ("", f"## {title}", "", *table.heading, *map(table.row, outcomes))


def _reason_row(one: TypeOutcome) -> str:
    return f"| {markdown(one.model_type)} | {one.state} | {markdown(one.reason)} |"


def _verified_row(one: TypeOutcome) -> str:
    blocks = markdown(", ".join(one.blocks))
    return (
        f"| {markdown(one.model_type)} | {one.whole} | {one.alone} | {one.left} | {blocks} | {markdown(one.reason)} |"
    )


def _classes(outcomes: Sequence[TypeOutcome]) -> Iterator[str]:
    """Each class that was rewritten, as its source or an architecture file describes it, and where that was proven."""
    proven: dict[str, list[str]] = {}
    for one in outcomes:
        for described in one.classes if one.state == "verified" else ():
            proven.setdefault(described, []).append(one.model_type)
    if not proven:
        return
    yield from ("", "## Classes", "", "Each is described by its own source, or by an architecture file.", "")
    yield from ("| class | description | fused | verified in |", "|---|---|---|---|")
    for described, types in sorted(proven.items()):
        name, words, parts = described.split(": ", 2)
        shown = ", ".join(sorted(set(types))[:_MOST_TYPES]) + (", ..." if len(set(types)) > _MOST_TYPES else "")
        yield f"| {markdown(name.removeprefix(_MODELS))} | {markdown(words)} | {parts} | {markdown(shown)} |"


_MODELS = "transformers.models."
_MOST_TYPES = 5


class _Table(NamedTuple):
    """Two lines of a heading, and what makes each row."""

    heading: tuple[str, str]
    row: Callable[[TypeOutcome], str]


_REASONS = _Table(("| model type | state | why |", "|---|---|---|"), _reason_row)
_VERIFIED = _Table(
    (
        "| model type | in blocks | alone | upstream | blocks | what is to be said |",
        "|---|--:|--:|--:|---|---|",
    ),
    _verified_row,
)
