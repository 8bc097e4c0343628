"""The workflows: pinned actions, least permissions, and nothing that runs a release may write to the repository."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from patchkit.check.results import peft_proposal, proposal

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / ".github/workflows").glob("*.yml"))
WORKFLOWS = {file.name: yaml.safe_load(file.read_text()) for file in FILES}
JOBS = {(name, job): body for name, workflow in WORKFLOWS.items() for job, body in workflow["jobs"].items()}
STEPS = [(*place, step) for place, job in JOBS.items() for step in job["steps"]]

RUNS_RELEASES = {("watch.yml", "check"), ("watch.yml", "peft")}
WRITES = {("watch.yml", "propose"), ("watch.yml", "propose-peft")}
PUBLISHES = ("release.yml", "publish")


def test_there_are_workflows() -> None:
    assert set(WORKFLOWS) == {"ci.yml", "dependencies.yml", "nightly.yml", "release.yml", "watch.yml", "weekly.yml"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_actions_are_pinned_by_hash_and_say_their_version(file: Path) -> None:
    uses = [line for line in file.read_text().splitlines() if re.match(r"\s*(- )?uses:", line)]
    assert uses
    for line in uses:
        assert re.fullmatch(r"\s*(- )?uses: (actions|pypa)/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line


def test_one_action_is_one_version() -> None:
    pins: dict[str, set[str]] = {}
    for _, _, step in STEPS:
        if "uses" in step:
            pins.setdefault(step["uses"].partition("@")[0], set()).add(step["uses"])
    assert {name: len(versions) for name, versions in pins.items()} == dict.fromkeys(pins, 1)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_permits_nothing_that_a_job_does_not_ask_for(name: str) -> None:
    assert WORKFLOWS[name]["permissions"] == {}
    assert "pull_request_target" not in triggers(WORKFLOWS[name])
    assert "workflow_run" not in triggers(WORKFLOWS[name])


def triggers(workflow: dict[Any, Any]) -> dict[str, Any]:
    return workflow[True]  # YAML 1.1 reads "on" as a boolean


@pytest.mark.parametrize("place", JOBS, ids="/".join)
def test_every_job_has_its_permissions_and_a_time_limit(place: tuple[str, str]) -> None:
    job = JOBS[place]
    assert 0 < job["timeout-minutes"] <= 120
    if place == PUBLISHES:
        assert job["permissions"] == {"id-token": "write"}
    elif place not in WRITES:
        assert job["permissions"] in ({}, {"contents": "read"})
    assert {place} != WRITES or job["permissions"] == {"contents": "write", "pull-requests": "write"}


def test_no_checkout_leaves_its_token_on_the_disk() -> None:
    checkouts = [step for _, _, step in STEPS if step.get("uses", "").startswith("actions/checkout@")]
    assert len(checkouts) == len(JOBS) - 2  # watch.yml/verdict needs none, and what publishes takes what was built
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


@pytest.mark.parametrize(("name", "job", "step"), STEPS, ids=lambda value: value if isinstance(value, str) else "")
def test_no_step_restores_a_cache_or_puts_an_expression_into_a_script(
    name: str, job: str, step: dict[str, Any]
) -> None:
    """What a release left in a cache would be run by the next job that restores it, in whichever workflow."""
    assert "/cache" not in step.get("uses", "")
    assert "cache" not in step.get("with", {})
    assert "${{" not in step.get("run", "")


def test_what_runs_releases_cannot_write_and_has_no_secrets() -> None:
    runs = {
        (name, job)
        for name, job, step in STEPS
        if re.search(r"patchkit watch|main watch(?!.* --list)", step.get("run", ""))
    }
    assert runs == RUNS_RELEASES
    for place in runs:
        job = JOBS[place]
        assert job["permissions"] == {"contents": "read"}
        text = yaml.safe_dump(job)
        assert not re.search(r"secrets|github\.token|GH_TOKEN|GITHUB_TOKEN", text)
    assert "secrets" not in "".join(file.read_text() for file in FILES)


LISTS = {"propose": 'watch --list ${SINCE:+--since "$SINCE"}', "propose-peft": "watch --peft --list"}
ADOPTS = {"propose": "adopt", "propose-peft": "adopt --peft"}


@pytest.mark.parametrize("name", sorted(job for _, job in WRITES))
def test_what_writes_runs_nothing_of_the_release(name: str) -> None:
    """Its steps are ours, on our checkout; the other job's files are an argument of `patchkit adopt` and no more, and
    which releases may be taken is asked of the index."""
    job = JOBS["watch.yml", name]
    scripts = [step["run"] for step in job["steps"] if "run" in step]
    assert not any(re.search(r"patchkit watch|\b(make|source|eval|sh|bash)\s", script) for script in scripts)
    (download,) = (step for step in job["steps"] if "download-artifact" in step.get("uses", ""))
    place = download["with"]["path"]
    assert place.startswith("${{ runner.temp }}/"), "beside the checkout, where nothing is imported from"
    readers = [step for step in job["steps"] if place in step.get("env", {}).values()]
    assert [step["run"].splitlines()[:-1] for step in readers] == [
        [
            f'python -m patchkit.cli.main {LISTS[name]} > "$RUNNER_TEMP/new"',
            'mapfile -t new < "$RUNNER_TEMP/new"',
            '[ "${#new[@]}" -gt 0 ] || exit 0',
            f'release=$(python -m patchkit.cli.main {ADOPTS[name]} "$PROPOSAL" "${{new[@]/#/--release=}}" --body "$BODY")',
        ]
    ]
    with_token = [step for step in job["steps"] if "GH_TOKEN" in step.get("env", {})]
    assert with_token == [job["steps"][-1]], "the token is there when everything else is done"
    assert "PIP_EXTRA_INDEX_URL" not in yaml.safe_dump(WORKFLOWS["watch.yml"].get("env", {}))


def test_a_proposal_has_the_files_that_adopt_reads() -> None:
    """What a job copies, beside its output, is what the job that reads it expects, and what that one commits."""
    for job, other, files in (("check", "propose", proposal.FILES), ("peft", "propose-peft", peft_proposal.PEFT_FILES)):
        (script,) = (step["run"] for step in JOBS["watch.yml", job]["steps"] if "patchkit watch" in step.get("run", ""))
        (copied,) = re.findall(r"^cp (.*) proposal/$", script, re.MULTILINE)
        assert {*(Path(one).name for one in copied.split()), "watch.log"} == set(files)
        assert all((ROOT / one).is_file() for one in copied.split())
        (committed,) = re.findall(r"git commit .* -- (.*)", JOBS["watch.yml", other]["steps"][-1]["run"])
        assert set(committed.split()) == {"compat_matrix.md", *copied.split()}
        names = [
            step["with"]["name"]
            for one in (job, other)
            for step in JOBS["watch.yml", one]["steps"]
            if "artifact" in step.get("uses", "")
        ]
        assert len(names) == 2
        assert len(set(names)) == 1


def test_what_publishes_runs_nothing_of_the_repository() -> None:
    """The token of the trusted publisher is given to a job that only downloads and uploads, and that a person allows."""
    job = JOBS[PUBLISHES]
    assert [step["uses"].partition("@")[0] for step in job["steps"]] == [
        "actions/download-artifact",
        "pypa/gh-action-pypi-publish",
    ]
    assert job["environment"] == "pypi"
    assert triggers(WORKFLOWS["release.yml"]) == {"push": {"tags": ["v*"]}}
    asking = [place for place, one in JOBS.items() if "id-token" in one["permissions"]]
    assert asking == [PUBLISHES]


def test_every_setting_of_a_cpu_has_a_job() -> None:
    matrix = JOBS["weekly.yml", "numeric"]["strategy"]["matrix"]
    assert matrix == {"aten": ["as-is", "default", "avx2"], "onednn": ["as-is", "AVX2"], "threads": [1, 2]}
    assert "schedule" in triggers(WORKFLOWS["weekly.yml"])


def test_the_table_of_settings(tmp_path: Path) -> None:
    """Two runs of a test that says what it sees; one of them fails."""
    seen = tmp_path / "test_seen.py"
    seen.write_text(
        "import os\n\ndef test_seen():\n"
        "    assert os.environ.get('ATEN_CPU_CAPABILITY') in (None, 'default')\n"
        "    assert 'ONEDNN_MAX_CPU_ISA' not in os.environ\n"
        "    assert os.environ['OMP_NUM_THREADS'] == '2'\n"
    )
    options = ["--aten", "default,avx2,as-is", "--onednn", "as-is", "--threads", "2", str(seen)]
    result = subprocess.run(
        [sys.executable, "tests/cpu_settings.py", *options], cwd=ROOT, capture_output=True, text=True
    )
    rows = [line.split()[:6] for line in result.stdout.splitlines()[-3:]]
    assert rows == [
        ["default", "as-is", "2", "1", "0", "0"],
        ["avx2", "as-is", "2", "0", "1", "0"],
        ["as-is", "as-is", "2", "1", "0", "0"],
    ]
    assert result.returncode == 1


def test_zizmor() -> None:
    zizmor = shutil.which("zizmor", path=str(Path(sys.executable).parent))
    if zizmor is None:
        pytest.skip("zizmor is not installed (extra: dev); `make lint` runs it")
    options = ["--offline", "--persona=pedantic", "--min-severity=low"]
    result = subprocess.run([zizmor, *options, ".github/workflows"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
