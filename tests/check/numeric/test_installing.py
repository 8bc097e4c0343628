"""What pip is asked for, and how its failure is told."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

from patchkit.check.numeric import installing
from patchkit.errors import ReleaseEnvironmentError
from patchkit.processes.children import ChildError

REASONS = {
    # what pip said: what is told
    "ERROR: no such release": "no such release",
    "ERROR:   no such release  ": "no such release",
    "Looking\nERROR: a\nERROR: b\nWARNING: c\n": "a; b",
    "ERROR: a\nERROR: a\nERROR: b\nERROR: a": "a; b",
    "Traceback\n  File\nMemoryError: all of it\n\n": "MemoryError: all of it",
    "an ERROR: in the middle": "an ERROR: in the middle",
    "ERROR: none (from versions: 1.0, 1.1, 2.0)": "none (the newest is 2.0)",
    "ERROR: none (from versions: 1.0)": "none (the newest is 1.0)",
    "ERROR: none (from versions: none)": "none (the newest is none)",
    "ERROR: a (from versions: 1, 2)\nERROR: b (from versions: 3, 4)": "a (the newest is 2); b (the newest is 4)",
}


@pytest.mark.parametrize("said", REASONS)
def test_how_a_failure_is_told(said: str) -> None:
    assert installing._reason(said) == REASONS[said]


class Done:
    def __init__(self, code: int, said: str) -> None:
        self.code, self.said = code, said


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a pip that succeeds was asked, and how."""
    found: dict[str, Any] = {}

    def run_child(command: list[str], *, seconds: float, environment: dict[str, str]) -> Done:
        found.update(command=command, seconds=seconds, environment=environment)
        return Done(found.get("code", 0), "ERROR: it is not there")

    monkeypatch.setattr(installing, "run_child", run_child)
    monkeypatch.setattr(installing, "isolated", lambda python, module, *arguments: [str(python), module, *arguments])
    monkeypatch.setattr(installing, "variables_for_pip", lambda settings: settings)
    monkeypatch.setattr(installing, "pip_settings", lambda command: found.get("settings", {}))
    (tmp_path / "bin").mkdir()
    return found


@pytest.mark.parametrize("what", ["a version", "a wheel", "a checkout"])
def test_what_pip_is_asked_for(what: str, asked: dict[str, Any], tmp_path: Path) -> None:
    """Nothing is built but a checkout, and what is pinned is not installed again."""
    python = tmp_path / "bin" / "python"
    wanted = {
        "a version": "transformers==5.0.0",
        "a wheel": str(tmp_path / "a.whl"),
        "a checkout": str(tmp_path / "bin"),
    }[what]
    (tmp_path / "a.whl").touch()
    installing.install(python, (wanted, "peft==0.18.1"), "5.0.0", 7.0)
    command = asked["command"]
    assert command[:3] == [str(python), "pip", "install"]
    assert command[-2:] == [wanted, "peft==0.18.1"]
    constraints = tmp_path / "constraints.txt"
    assert command[command.index("--constraint") + 1] == str(constraints)
    assert {"--quiet", "--no-input", "--disable-pip-version-check", "--no-compile"} <= set(command)
    assert (":all:" in command) == ("--only-binary" in command) == (what != "a checkout")
    assert asked["seconds"] == 7.0
    pins = dict(line.split("==") for line in constraints.read_text().splitlines())
    assert pins.items() >= {name: version(name).split("+")[0] for name in ("torch", "numpy", "libcst")}.items()
    assert set(pins) <= {"torch", "triton", "numpy", "libcst"}


def test_what_is_not_installed_is_not_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    def known(name: str) -> str:
        if name == "triton":
            raise PackageNotFoundError
        return "2.13.0+cpu"

    monkeypatch.setattr(installing, "version", known)
    assert list(installing._pins()) == ["torch==2.13.0", "numpy==2.13.0", "libcst==2.13.0"]


WHERE = {
    "index-url", "extra-index-url", "find-links", "no-index", "trusted-host", "cert", "client-cert", "proxy", "timeout",
    "default-timeout", "retries", "cache-dir", "no-cache-dir", "keyring-provider", "use-feature", "use-deprecated",
}  # fmt: skip
WHAT = {
    "target",
    "prefix",
    "root",
    "user",
    "python",
    "dry-run",
    "constraint",
    "requirement",
    "no-deps",
    "pre",
    "only-binary",
}


def test_which_settings_of_pip_count(asked: dict[str, Any], tmp_path: Path) -> None:
    """Those that say where it looks and how it gets there; not those that say what is installed and where to."""
    asked["settings"] = {name: f"of {name}" for name in WHERE | WHAT}
    installing.install(tmp_path / "bin" / "python", ("transformers==5.0.0",), "5.0.0", 7.0)
    assert asked["environment"] == {name: f"of {name}" for name in WHERE}


def test_a_pip_that_fails(asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked["code"] = 1
    with pytest.raises(ReleaseEnvironmentError, match=r"^transformers 5\.0 cannot be installed: it is not there$"):
        installing.install(tmp_path / "bin" / "python", ("transformers==5.0.0",), "5.0", 7.0)

    def stopped(*_: object, **__: object) -> None:
        raise ChildError("it took too long")

    monkeypatch.setattr(installing, "run_child", stopped)
    with pytest.raises(
        ReleaseEnvironmentError, match=r"5\.0 cannot be installed: pip was stopped, because it took too long$"
    ):
        installing.install(tmp_path / "bin" / "python", ("transformers==5.0.0",), "5.0", 7.0)
