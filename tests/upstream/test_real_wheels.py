"""Real releases, fetched by pip once and then kept in the user's cache. ``-m "not wheels"`` leaves them out offline."""

from __future__ import annotations

import pytest

from patchkit.arch.registry import architectures
from patchkit.check.static.findings import findings_of
from patchkit.check.static.records import Records
from patchkit.upstream.kept_releases import fetch
from patchkit.upstream.release import installed_release

RELEASES = ("4.48.3", "4.57.6", "5.0.0", "5.23.0")


@pytest.mark.wheels
@pytest.mark.parametrize("version", RELEASES)
def test_a_release_is_what_the_records_say(version: str) -> None:
    release = fetch(version)
    assert release.hash_note.startswith("SHA-256 checked against ")
    records = {(r.finding.architecture, r.finding.class_name): r for r in Records.load().of(version)}
    for architecture in architectures().values():
        for finding in findings_of(release, architecture):
            record = records.pop((finding.architecture, finding.class_name))
            assert finding == record.finding, "patchkit/check/static/records.jsonl is stale: run make matrix"
    assert not records


@pytest.mark.wheels
def test_the_installed_release_is_that_of_its_wheel() -> None:
    installed = installed_release()
    wheel = fetch(installed.version)
    for architecture in architectures().values():
        path = architecture.module.replace(".", "/") + ".py"
        assert installed.read(path) == wheel.read(path)
