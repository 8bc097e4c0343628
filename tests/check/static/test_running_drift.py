"""Drift that lasts: every release is judged against the last one in which the part was rewritten, however long ago."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from synthetic_releases import SMALL_LLAMA, folder_release, path_of

from patchkit.arch.registry import find
from patchkit.check.results.matrix import make_matrix
from patchkit.check.run import check_static
from patchkit.check.static.findings import Finding, findings_of
from patchkit.check.static.records import Record, Records
from patchkit.check.static.verdicts import PartOutcome
from patchkit.upstream.release import Release

OUTCOMES = {
    "whole": PartOutcome(("gated-mlp",)),
    "single": PartOutcome(("call-alone",), ("line 3: dropout stands in between",)),
    "nothing": PartOutcome((), ("line 3: no rule knows it",)),
    "gone": PartOutcome((), ("absent: the release has no such class",)),
}

SEQUENCES = list(itertools.product(OUTCOMES, repeat=4))


def finding(number: int, outcome: str) -> Finding:
    source = f"{number}{outcome}".encode().hex().ljust(64, "0")
    parts = {"mlp": OUTCOMES[outcome]}
    return Finding(f"5.{number}.0", "llama", "LlamaMLP", "LlamaMLP", "m.LlamaMLP", "m.py", 3, source, parts)


def expected(sequence: tuple[str, ...]) -> list[str]:
    """By hand: what counts is the last of those before that was rewritten at all."""
    verdicts = []
    for number, outcome in enumerate(sequence):
        before = next((earlier for earlier in reversed(sequence[:number]) if earlier in {"whole", "single"}), None)
        verdicts.append(VERDICTS[outcome, before])
    return verdicts


VERDICTS = {
    ("whole", None): "rewritten",
    ("whole", "whole"): "rewritten",
    ("whole", "single"): "rewritten differently",
    ("single", None): "partial",
    ("single", "whole"): "rewritten differently",
    ("single", "single"): "partial",
    ("nothing", None): "unmatched",
    ("nothing", "whole"): "drifted",
    ("nothing", "single"): "drifted",
    ("gone", None): "absent",
    ("gone", "whole"): "drifted",
    ("gone", "single"): "drifted",
}


def test_every_sequence_of_four_releases_however_they_are_recorded() -> None:
    """All at once, one after the other, and the middle ones last; and as `check` judges the last against the others."""
    for sequence in SEQUENCES:
        findings = [finding(number, outcome) for number, outcome in enumerate(sequence)]
        at_once = Records().with_findings(findings, "2026-01-01")
        for order in ((0, 1, 2, 3), (0, 3, 1, 2), (3, 2, 1, 0)):
            records = Records()
            for number in order:
                records = records.with_findings([findings[number]], "2026-01-01")
            assert records == at_once
        assert [record.verdicts["mlp"] for record in at_once.entries] == expected(sequence), sequence
        earlier = Records().with_findings(findings[:3], "2026-01-01")
        assert earlier.judged(findings[3]) == {"mlp": expected(sequence)[3]}, sequence
        lines = [Record.from_line(record.to_line()) for record in at_once.entries]
        assert lines == at_once.entries


@pytest.fixture
def drifting(tmp_path: Path) -> list[Release]:
    """Four releases: the MLP is gone from the second and the third, and is back in the last."""
    gone = SMALL_LLAMA.replace("self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))", "fused(x, self.w)")
    texts = (SMALL_LLAMA, gone, f"{gone}\n\n# changed again\n", SMALL_LLAMA)
    return [
        folder_release(tmp_path / str(number), f"5.{number}.0", {path_of("llama"): text})
        for number, text in enumerate(texts)
    ]


def test_check_says_drifted_in_every_release_until_it_is_mended(drifting: list[Release]) -> None:
    records = Records()
    said = []
    for release in drifting:
        report = check_static([release], [find("llama")], records)
        (entry,) = (entry for entry in report.entries if entry.part == "mlp")
        said.append((entry.verdict, entry.since, entry.failed, report.failed))
        if entry.diagnosis:
            assert "as in 5.0.0 (" in entry.diagnosis.expected
        records = records.with_findings(findings_of(release, find("llama")), "2026-01-01")
    assert said == [
        ("rewritten", "", False, False),
        ("drifted", "5.0.0", True, True),
        ("drifted", "5.0.0", True, True),
        ("rewritten", "5.0.0", False, False),
    ]
    assert list(map(str, make_matrix(records, {}).rows["llama"])) == ["○○○", "○○✗", "○○✗", "○○○"]
    together = check_static(
        drifting[1:3], [find("llama")], Records().with_findings(findings_of(drifting[0], find("llama")), "d")
    )
    assert [entry.verdict for entry in together.entries if entry.part == "mlp"] == ["drifted", "drifted"]
