"""The committed matrix is made from the committed records, and these are of what is installed."""

from __future__ import annotations

import datetime
import itertools
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version
from synthetic_releases import SMALL_LLAMA, folder_release, path_of, records_of

from patchkit.arch.registry import architectures
from patchkit.check.results.matrix import RELEASES, make_matrix, to_markdown
from patchkit.check.results.models import Models
from patchkit.check.results.peft_matrix import peft_matrix_of
from patchkit.check.results.torch_records import TorchRecords
from patchkit.check.static.peft_layers import SHIPPED_PEFT_RECORDS
from patchkit.check.static.records import Record, Records
from patchkit.check.static.sweep import sweep
from patchkit.rewrite import REWRITE_VERSION
from patchkit.trust.ledger import SHIPPED_LEDGER, Key, Proof, read_proofs
from patchkit.upstream.release import installed_release
from patchkit.upstream.releases import OLDEST

ROOT = Path(__file__).parents[3]
STALE = "run make matrix"


@pytest.fixture(scope="module")
def records() -> Records:
    return Records.load()


def test_the_page_is_that_of_the_records(records: Records) -> None:
    models = Models.load(ROOT / "compat_models.jsonl")
    expected = to_markdown(
        make_matrix(records, read_proofs(SHIPPED_LEDGER)),
        models,
        peft_matrix_of(SHIPPED_PEFT_RECORDS),
        TorchRecords.load(),
    )
    assert (ROOT / "compat_matrix.md").read_text() == expected, STALE


def test_every_release_of_the_list_is_recorded_for_every_architecture(records: Records) -> None:
    assert {str(release) for release in records.releases()} >= set(RELEASES), STALE
    upstream = {one.name for one in architectures().values() if one.module.startswith("transformers.")}
    for release in RELEASES:
        assert {record.finding.architecture for record in records.of(release)} == upstream, STALE


def test_the_list_leaves_nothing_out() -> None:
    """In order, each minor release of transformers 4 from the oldest that is supported, and of 5 at least every other."""
    releases = [Version(release) for release in RELEASES]
    assert releases == sorted(set(releases))
    assert [one.minor for one in releases if one.major == 4] == list(range(OLDEST.minor, 58))
    minors = [one.minor for one in releases if one.major == 5]
    assert minors[0] == 0
    assert {after - before for before, after in itertools.pairwise(minors)} <= {1, 2}
    assert minors[-4:] == [20, 21, 22, 23]


def test_the_installed_release_is_what_the_records_say(records: Records) -> None:
    """The static part is not stale; if it is and no architecture changed, ``REWRITE_VERSION`` has to be raised."""
    release = installed_release()
    recorded = records.of(release.version)
    if not recorded:
        pytest.skip(f"transformers {release.version} is not in the matrix")
    upstream = [one for one in architectures().values() if one.module.startswith("transformers.")]
    found = {(one.architecture, one.class_name): one for one in sweep([release], upstream)}
    assert found == {(r.finding.architecture, r.finding.class_name): r.finding for r in recorded}, STALE
    assert {record.rewrite for record in recorded} == {REWRITE_VERSION}, STALE


def test_adding_what_is_known_changes_nothing(records: Records) -> None:
    findings = [record.finding for record in records.entries]
    assert records.with_findings(findings, "2099-01-01") == records


def test_lines_survive_the_file(records: Records, tmp_path: Path) -> None:
    records.save(tmp_path / "records.jsonl")
    assert Records.load(tmp_path / "records.jsonl") == records
    assert (tmp_path / "records.jsonl").read_bytes() == (ROOT / "patchkit/check/static/records.jsonl").read_bytes()


def test_a_release_that_is_added_in_between_is_judged_there(tmp_path: Path) -> None:
    """Records of 1 and 3, then of 2, in which the MLP has dropout: 2 and 3 change, each against the one before."""
    gated = "self.act_fn(self.gate_proj(x)) * self.up_proj(x)"
    trap = SMALL_LLAMA.replace(gated, f"self.dropout({gated})")
    assert trap != SMALL_LLAMA
    records = Records()
    for number, text in ((1, SMALL_LLAMA), (3, SMALL_LLAMA), (2, trap)):
        release = folder_release(tmp_path / str(number), f"5.{number}.0", {path_of("llama"): text})
        records = records.with_findings([r.finding for r in records_of(release, "llama").entries], f"2026-01-0{number}")
    verdicts = [record.verdicts["mlp"] for record in records.entries if "mlp" in record.verdicts]
    assert verdicts == ["rewritten", "rewritten differently", "rewritten differently"]
    assert [record.date for record in records.entries if "mlp" in record.verdicts] == [
        "2026-01-01",
        "2026-01-02",
        "2026-01-03",
    ]


def proof_of(record: Record) -> dict[Key, Proof]:
    versions = {"torch": "2.13.0", "peft": "0.21.2", "transformers": "5.1.0", "python": "3.11.7"}
    return {record.key: Proof(record.key, "numeric", {}, {"forward_backward": 1e-7}, versions, "2026-01-03")}


def test_a_cell_is_proven_only_for_its_very_source_and_rewriter(tmp_path: Path) -> None:
    release = folder_release(tmp_path, "5.1.0", {path_of("llama"): SMALL_LLAMA})
    records = records_of(release, "llama")
    attention, mlp = records.entries
    for proofs, cell in (
        ({}, "○○○"),
        (proof_of(mlp), "○○●"),
        (proof_of(attention) | proof_of(mlp), "●●●"),
        (proof_of(replace(mlp, rewrite=REWRITE_VERSION + 1)), "○○○"),
        (proof_of(replace(mlp, finding=replace(mlp.finding, source="0" * 64))), "○○○"),
    ):
        assert str(make_matrix(records, proofs).rows["llama"][0]) == cell


def test_the_installed_release_is_pinned_to_the_newest_of_the_matrix(records: Records) -> None:
    constraints = (ROOT / "constraints.txt").read_text()
    pinned = next(line for line in constraints.splitlines() if line.startswith("transformers=="))
    assert str(records.releases()[-1]) >= pinned.partition("==")[2] or version("transformers") not in pinned
    assert max(record.date for record in records.entries) <= datetime.date.today().isoformat()
