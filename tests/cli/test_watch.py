"""What ``patchkit watch`` and ``patchkit check`` ask of the numeric stage."""

from __future__ import annotations

import pytest
from packaging.version import Version
from typer.testing import CliRunner

from patchkit.check import TIME_LIMIT
from patchkit.check.results.report import CheckReport
from patchkit.check.run import Numbers
from patchkit.cli import check, watch
from patchkit.cli.main import app
from patchkit.upstream import index


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        (["watch", "--since", "5.22.2"], Numbers(unproven=True, record=False, seconds=TIME_LIMIT)),
        (["watch", "--since", "5.22.2", "--static"], None),
        (["watch", "--since", "5.22.2", "--write"], Numbers(unproven=True, record=True, seconds=TIME_LIMIT)),
        (["watch", "--since", "5.22.2", "--time-limit", "60"], Numbers(unproven=True, record=False, seconds=60.0)),
        (["check", "--all"], Numbers(unproven=False, record=False, seconds=TIME_LIMIT)),
        (["check", "--all", "--static"], None),
        (["check", "--all", "--unproven", "--record"], Numbers(unproven=True, record=True, seconds=TIME_LIMIT)),
        (["check", "--all", "--time-limit", "60"], Numbers(unproven=False, record=False, seconds=60.0)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_only_who_asks_for_it_writes_to_the_checkout(monkeypatch, arguments, numbers):
    asked = []

    def run(arch, transformers, records, wheels, wanted, require_hashes, *beside):
        asked.append(wanted)
        if "--write" in arguments:  # what is written then is for other tests
            raise KeyboardInterrupt
        return CheckReport((), ())

    monkeypatch.setattr(
        index, "list_versions", lambda wheels=None, package="transformers": [Version("5.22.2"), Version("9999.0.0")]
    )
    monkeypatch.setattr(check, "run_shown", run)
    monkeypatch.setattr(watch, "run_shown", run)
    CliRunner().invoke(app, arguments)
    assert asked == [numbers]


@pytest.mark.parametrize("limit", ["0", "-1", "soon"])
def test_a_time_limit_is_a_time(limit):
    assert CliRunner().invoke(app, ["check", "--all", "--time-limit", limit]).exit_code == 2
