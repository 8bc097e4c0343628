"""The command line: exit statuses and messages, without running pytest."""

from __future__ import annotations

import pytest
import typer
from typer.testing import CliRunner

from tools.peft_suite.__main__ import command
from tools.peft_suite.outcomes import Outcome
from tools.peft_suite.runner import Suite, SuiteError, hub_is_reachable, versions

FUSED = Outcome("passed", counts={"fused calls": 1})


@pytest.fixture
def source(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_a.py").touch()
    return tmp_path


def invoke(*arguments):
    app = typer.Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("plain", "patched", "status", "text"),
    [
        ({"t": Outcome("passed")}, {"t": FUSED}, 0, "0 different results"),
        ({"t": Outcome("passed")}, {"t": Outcome("passed")}, 1, "nothing is proven"),
        ({"t": Outcome("passed"), "u": Outcome("passed")}, {"t": FUSED, "u": Outcome("failed")}, 1, "1 different"),
        ({}, {}, 1, "nothing is proven"),
    ],
)
def test_exit_status(monkeypatch, source, plain, patched, status, text):
    runs = []

    def run(self, arguments, *, patched, name):
        runs.append((patched, list(arguments)))
        return dict(outcomes[patched])

    outcomes = {False: plain, True: patched}
    monkeypatch.setattr(Suite, "run", run)
    result = invoke(source, "--stand-ins", "never", "--", "tests/test_a.py", "-k", "one or two")
    assert (result.exit_code, text in result.output) == (status, True)
    assert runs[:2] == [
        (False, ["tests/test_a.py", "-k", "one or two"]),
        (True, ["tests/test_a.py", "-k", "one or two"]),
    ]
    # What differs is run again, both ways, and nothing else is.
    assert runs[2:] == ([(False, ["u"]), (True, ["u"])] * 2 if "u" in plain else [])


def test_a_folder_without_tests(tmp_path):
    result = invoke(tmp_path)
    assert result.exit_code == 2
    assert "has no tests/test_*.py" in " ".join(result.output.split())
    assert "pip download" in result.output


def test_pytest_that_cannot_run(monkeypatch, source):
    def run(self, *_, **__):
        raise SuiteError("pytest ended with status 4")

    monkeypatch.setattr(Suite, "run", run)
    result = invoke(source, "--stand-ins", "never")
    assert (result.exit_code, "status 4" in result.output) == (2, True)


def test_the_version_is_that_of_the_source(source):
    (source / "src" / "peft").mkdir(parents=True)
    (source / "src" / "peft" / "__init__.py").write_text('__version__ = "9.9.9.dev0"\n')
    assert versions(source)["peft"] == "9.9.9.dev0"


@pytest.mark.parametrize(
    "variables", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_ENDPOINT": ""}]
)
def test_a_hub_that_cannot_be_reached(monkeypatch, variables):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert not hub_is_reachable(timeout=1.0)
