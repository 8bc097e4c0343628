"""What the numbers of a process are held against.

A proof comes from a process that ran the release's code. It is believed only for a class and source that the static
stage finds in the text of that release; and an architecture has passed only if each of its blocks has numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from patchkit.arch.registry import architectures
from patchkit.check.numeric.outcomes import ArchitectureOutcome
from patchkit.check.results.report import CheckReport
from patchkit.check.static.findings import Finding, findings_of, key_of_finding
from patchkit.trust.ledger import Key, Proof
from patchkit.upstream.release import Release


class Evidence:
    """What the static stage knows of one release.

    Attributes:
        release: the release.
        known: the findings of each architecture. More are looked for when a tiny model has blocks of another one.
    """

    def __init__(self, release: Release, findings: Iterable[Finding]) -> None:
        self.release = release
        self.known: dict[str, list[Finding]] = {}
        for finding in findings:
            self.known.setdefault(finding.architecture, []).append(finding)

    @classmethod
    def of(cls, release: Release, report: CheckReport) -> Evidence:
        """What a static report says of a release."""
        return cls(release, (entry.finding for entry in report.entries if entry.release == release))

    def weighed(self, outcome: ArchitectureOutcome) -> ArchitectureOutcome:
        """The outcome; what cannot be, or is missing, is one of its problems, and what cannot be is left out."""
        blocks, problems = [], dict(outcome.problems or {})
        for block in outcome.blocks:
            if block.proof is None or self._has(Proof.from_line(block.proof).key):
                blocks.append(block)
            else:
                problems[block.class_name] = (
                    f"its numbers are of a source that {self.release.package} {self.release.version} does not have "
                    f"at {self.release.location}"
                )
        weighed = replace(outcome, blocks=tuple(blocks), problems=problems)
        if weighed.status == "passed":
            problems.update(self._missing(weighed))
        return weighed

    def _has(self, key: Key) -> bool:
        """Whether the release has what a proof is of. A tiny model has blocks of other architectures too."""
        key = as_text_has_it(key)
        if key in self._keys():
            return True
        for architecture in architectures().values():
            if architecture.module.partition(".")[0] == self.release.package and architecture.name not in self.known:
                self.known[architecture.name] = findings_of(self.release, architecture)
        return key in self._keys()

    def _keys(self) -> set[Key]:
        return {key_of_finding(one) for found in self.known.values() for one in found}

    def _missing(self, outcome: ArchitectureOutcome) -> dict[str, str]:
        """The blocks of an architecture that are rewritten, and of which no class has numbers."""
        proven = {as_text_has_it(proof.key) for proof in outcome.proofs}
        blocks: dict[str, list[Finding]] = {}
        for finding in self.known.get(outcome.architecture, []):
            if any(part.rules for part in finding.parts.values()):
                blocks.setdefault(finding.block, []).append(finding)
        return {
            name: "it is rewritten, but no model showed its numbers"
            for name, findings in blocks.items()
            if not any(key_of_finding(one) in proven for one in findings)
        }


def as_text_has_it(key: Key) -> Key:
    """A key without the hash of what a class calls elsewhere, which only a live model knows.

    The proof keeps that hash: it holds where a model with the same code there is patched, and nowhere else.
    """
    return key._replace(outside="")
