"""Ctrl-C: exit code 130 in one line, without a traceback, and nothing that was started goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from patchkit.cli import main as cli
from patchkit.cli.main import app
from patchkit.processes import children

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")

SLOW_INDEX = """
import socket, sys
with socket.create_server(("127.0.0.1", 0)) as server:
    print(server.getsockname()[1], flush=True)
    kept = []
    while True:
        kept.append(server.accept())
        print("asked", flush=True)
"""


def interruptible() -> None:
    """In a process before it begins: a shell lets what it starts in the background ignore the signal."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def in_session(session: int) -> list[str]:
    """The processes that have the environment variable of this test, by their command lines."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if f"PATCHKIT_TEST={session}".encode() in (place / "environ").read_bytes():
                found.append((place / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # it has ended
            continue
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are looked up in /proc")
@pytest.mark.parametrize("whole_group", [True, False], ids=["at a terminal", "to the command alone"])
def test_while_an_index_says_nothing(tmp_path: Path, whole_group: bool) -> None:
    """A terminal sends the signal to every process of the command; `kill -INT` to one."""
    with subprocess.Popen([sys.executable, "-c", SLOW_INDEX], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = f"http://127.0.0.1:{server.stdout.readline().strip()}/simple"
        mark = os.getpid()
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
        environment = {
            **kept,
            "PIP_INDEX_URL": address,
            "PIP_CONFIG_FILE": os.devnull,
            "PATCHKIT_CACHE": str(tmp_path / "cache"),
            "PATCHKIT_TEST": str(mark),
        }
        command = [sys.executable, "-m", "patchkit.cli.main", "check", "-a", "llama", "--static", "-t", "4.90.0"]
        process = subprocess.Popen(
            command,
            env=environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=interruptible,
        )
        try:
            assert server.stdout.readline() == "asked\n"
            (os.killpg if whole_group else os.kill)(process.pid, signal.SIGINT)
            output, said = process.communicate(timeout=30)
        finally:
            process.kill()
            server.kill()
    assert (process.returncode, output) == (130, "")
    assert said == "patchkit: interrupted; files are as they were\n"
    for _ in range(50):
        if not (left := in_session(mark)):
            break
        time.sleep(0.1)
    assert left == []
    assert not list((tmp_path / "cache").rglob(".fetch-*"))


SWEEP = """
import os, signal, sys, threading, time
from pathlib import Path
import patchkit.check.static.sweep as module
from patchkit.arch.registry import architectures
from patchkit.upstream.release import installed_release
from patchkit.cli import main
import typer

def progress(done, of):
    if done == 2:
        os.killpg(0, signal.SIGINT)

if __name__ == "__main__":
    @main.app.command()
    def swept() -> None:
        chosen = [one for one in architectures().values() if one.module.startswith("transformers.")]
        module.sweep([installed_release()], chosen, processes=2, progress=progress)
    sys.argv = ["patchkit", "swept"]
    main.main()
"""


def test_while_processes_rewrite(tmp_path: Path) -> None:
    """The processes of a pool get the signal of a terminal too; each would print a traceback."""
    script = tmp_path / "script.py"
    script.write_text(SWEEP)
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PATCHKIT_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        start_new_session=True,
        preexec_fn=interruptible,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (130, "patchkit: interrupted; files are as they were\n")


@pytest.mark.parametrize(
    ("command", "within"),
    [
        ("archs", "patchkit.cli.archs.architectures"),
        ("bench", "patchkit.testing.comparison.compare_architecture"),
        ("cache", "patchkit.cache.contents.entries"),
        ("check --all", "patchkit.check.run.resolve"),
        ("diff --arch llama", "patchkit.cli.diff.select"),
        ("env", "patchkit.cli.env.Facts.read"),
        ("matrix", "patchkit.upstream.releases.resolve"),
        ("watch", "patchkit.upstream.index.list_versions"),
    ],
)
def test_every_command(command: str, within: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(within, interrupted)
    result = CliRunner().invoke(app, command.split())
    assert (result.exit_code, result.stderr) == (130, "patchkit: interrupted; files are as they were\n")


def test_before_a_command_began(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupted)
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert done.value.code == 130
    assert capsys.readouterr().err == ""


def test_a_fault_of_patchkit_is_not_drift(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Python's own exit code for it is 1, which a scheduled job takes for a fault of the release."""

    def broken() -> None:
        raise RecursionError("too deep")

    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert done.value.code == 2
    assert "RecursionError: too deep" in capsys.readouterr().err


def test_what_a_child_started_ends_with_it() -> None:
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']).wait()"
    environment = {**os.environ, "PATCHKIT_TEST": f"{os.getpid()}0"}
    with pytest.raises(children.ChildError, match="was not done after 1 s"):
        children.run_child([sys.executable, "-c", code], seconds=1.0, environment=environment)
    for _ in range(50):
        if not (left := in_session(int(f"{os.getpid()}0"))):
            break
        time.sleep(0.1)
    assert left == []
