"""``patchkit`` without a command, and what it must not import."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from patchkit.cli.main import app
from patchkit.version import __version__

HEAVY = {"torch", "transformers", "peft", "triton"}
"""Each takes from a second to many to import."""


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"patchkit {__version__}\n")


@pytest.mark.parametrize("command", ["diff", "env", "archs", "check", "matrix", "watch", "adopt", "cache"])
def test_help_names_every_command(command: str) -> None:
    assert command in CliRunner().invoke(app, ["--help"]).output
    assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0


@pytest.mark.parametrize("arguments", [["no-such-command"], ["diff"], ["diff", "--no-such-option"]])
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["archs"],
        ["diff", "--help"],
        ["diff", "--arch", "gemma3"],
        ["diff", "--arch", "x"],
        ["check", "--help"],
        ["check", "--arch", "gemma3", "--static"],
        ["cache"],
    ],
    ids=" ".join,
)
def test_imports_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        "from patchkit.cli.main import app\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        f"print('HEAVY', sorted({HEAVY!r} & set(sys.modules)))\n"
    )
    outcome = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert outcome.stdout.splitlines()[-1] == "HEAVY []"


@pytest.mark.parametrize("code", [0, None, 1, "done"])
def test_nothing_that_is_loaded_ends_a_command_as_if_it_were_done(
    monkeypatch: pytest.MonkeyPatch, code: object
) -> None:
    def leave() -> None:
        raise SystemExit(code)

    monkeypatch.setattr("patchkit.cli.archs.architectures", leave)
    result = CliRunner().invoke(app, ["archs"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"something ended the command (SystemExit({'' if code is None else repr(code)}" in result.stderr
