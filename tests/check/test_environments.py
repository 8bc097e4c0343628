"""Environments of other releases: made by a stand-in for pip here; with real releases where an index can be reached."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from patchkit.check import environments
from patchkit.check.environments import Environment, environment_for, environments_directory, running_environment
from patchkit.errors import CacheError, ReleaseEnvironmentError

pytest_plugins = ["proof_fixtures"]
pytestmark = pytest.mark.usefixtures("cache")

VERSION = "4.99.0"


@pytest.fixture
def pip(monkeypatch):
    """Stands in for pip: puts a transformers of two lines into the environment. Returns what it was asked for."""
    asked = []

    def install(building, *requirements, label):
        asked.append(requirements)
        package = environments._site_packages(building) / "transformers"
        package.mkdir(exist_ok=True)
        (package / "__init__.py").write_text(f"__version__ = {label!r}\n")

    monkeypatch.setattr(environments, "_pip", install)
    # The real probe imports torch and PEFT, which wants more of transformers than this.
    probe = "import json, sys, transformers; json.dump({'transformers': transformers.__version__}, sys.stdout)"
    monkeypatch.setattr(environments, "_PROBE", probe)
    return asked


@pytest.fixture
def quick(monkeypatch):
    """No process is started: for tests that are about folders."""

    def answer(_, code, *__):
        return {"transformers": VERSION} if code == environments._PROBE else []

    monkeypatch.setattr(environments, "_python_json", answer)


def contents():
    return sorted(path.name for path in environments_directory().iterdir() if not path.name.endswith(".lock"))


def python_of(environment, code):
    command = [environment.python, "-c", code]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env=environments._variables()
    ).stdout.strip()


def test_the_running_environment_serves_its_own_release(pip):
    import transformers

    assert environment_for(transformers.__version__) == running_environment()
    assert running_environment().python == Path(sys.executable)
    assert not pip


def test_it_is_made_once_and_reused(pip):
    made = environment_for(VERSION)
    assert made.versions["transformers"] == VERSION
    assert environment_for(VERSION) == made
    assert len(pip) == 1
    assert contents() == [made.path.name]


def test_it_has_its_own_transformers_the_running_torch_and_this_patchkit(pip):
    import torch

    import patchkit

    code = "import transformers, torch, patchkit; print(transformers.__version__, torch.__file__, patchkit.__file__)"
    assert python_of(environment_for(VERSION), code).split() == [VERSION, torch.__file__, patchkit.__file__]


def test_optional_packages_of_the_release_below_are_hidden(pip):
    """Also in the processes that it starts."""
    environment = environment_for(VERSION)
    hidden = json.loads((environments._site_packages(environment.path) / "patchkit_layer.json").read_text())["hidden"]
    assert "pytest" in hidden
    assert not {"torch", "numpy", "libcst", "rich", "transformers", "peft", "patchkit"} & set(hidden)
    code = (
        "import subprocess, sys; sub = 'import importlib.util; print(importlib.util.find_spec(\"pytest\"))';"
        "print(subprocess.run([sys.executable, '-c', sub], capture_output=True, text=True).stdout)"
    )
    assert python_of(environment, code) == "None"


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError(28, "No space left on device"), ReleaseEnvironmentError("no")]
)
def test_an_interrupted_build_leaves_nothing(pip, quick, monkeypatch, error):
    def fail(*_, **__):
        raise error

    working = environments._pip
    monkeypatch.setattr(environments, "_pip", fail)
    with pytest.raises(
        KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else ReleaseEnvironmentError
    ) as caught:
        environment_for(VERSION)
    if isinstance(error, OSError):
        assert "No space left on device" in str(caught.value)
    assert contents() == []
    monkeypatch.setattr(environments, "_pip", working)
    assert environment_for(VERSION).versions["transformers"] == VERSION  # the lock is free


def test_what_a_killed_build_left_is_built_over(pip, quick):
    place = environments_directory() / environments._name(VERSION, None)
    left = place.with_name(place.name + ".building")
    for folder in (left, place):  # a folder without its note is no environment
        (folder / "lib").mkdir(parents=True)
    assert environment_for(VERSION).path == place
    assert contents() == [place.name]


def test_two_at_once_build_once(pip, quick, monkeypatch):
    working = environments._pip

    def slow(*arguments, **options):
        time.sleep(0.5)
        working(*arguments, **options)

    monkeypatch.setattr(environments, "_pip", slow)
    found = []
    threads = [threading.Thread(target=lambda: found.append(environment_for(VERSION))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1]
    assert len(pip) == 1


def test_an_older_peft_where_the_installed_one_does_not_run(pip, monkeypatch):
    answers = iter(["ImportError: cannot import name 'x' from 'transformers'", {"transformers": VERSION}])
    monkeypatch.setattr(
        environments, "_python_json", lambda _, code, *__: next(answers) if code == environments._PROBE else []
    )
    assert environment_for(VERSION).versions == {"transformers": VERSION}
    assert [requirements[1:] for requirements in pip] == [(), ("peft==0.18.1",)]


def test_a_release_that_does_not_run_is_an_error(pip, monkeypatch):
    monkeypatch.setattr(environments, "_PROBE", "import nothing_of_this_name")
    with pytest.raises(ReleaseEnvironmentError, match=r"installed, but does not run with torch .*nothing_of_this_name"):
        environment_for(VERSION)
    assert contents() == []


def test_the_least_used_go_first(pip, quick, monkeypatch):
    monkeypatch.setattr(environments, "LIMIT", 2)
    for day, version in enumerate(("4.99.1", "4.99.2", "4.99.3")):
        note = environment_for(version).path / environments._ABOUT
        if version != "4.99.3":
            os.utime(note, (1e9 + day * 86400,) * 2)
    assert [name.split("-")[0] for name in contents()] == ["4.99.2", "4.99.3"]


@pytest.mark.parametrize("release", ["latest-and-greatest", "", "/nowhere/transformers"])
def test_what_is_no_release(release):
    with pytest.raises(ReleaseEnvironmentError, match="is no version of transformers, and no wheel or checkout"):
        environment_for(release)


def test_a_wheel_and_a_checkout_are_known_by_their_content(tmp_path, pip, quick):
    wheel = tmp_path / "transformers-4.99.0-py3-none-any.whl"
    places = set()
    for content in (b"one", b"two"):
        wheel.write_bytes(content)
        places.add(environment_for(wheel).path.name)
    package = tmp_path / "src" / "transformers"
    package.mkdir(parents=True)
    for text in ("a = 1\n", "a = 12\n"):
        (package / "module.py").write_text(text)
        places.add(environment_for(tmp_path).path.name)
    assert len(places) == 4
    assert {requirements[0] for requirements in pip} == {str(wheel), str(tmp_path)}


def test_a_cache_that_cannot_be_written(cache):
    cache.write_text("a file")
    with pytest.raises(CacheError, match="cannot be written to"):
        environment_for(VERSION)


def fake_python(tmp_path, code):
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\nimport sys\n{code}\n")
    script.chmod(0o755)
    return Environment(script, {"transformers": VERSION})


OUTCOME = '{"status": "passed", "architecture": "llama", "versions": {}, "blocks": [], "seconds": 1.0}'


@pytest.mark.skipif(os.name == "nt", reason="a script is no program there")
class TestCheck:
    def test_outcomes_are_read_between_other_lines(self, tmp_path):
        environment = fake_python(tmp_path, f"print('a warning')\nprint('''{OUTCOME}''')\nprint()\nsys.exit(1)")
        assert [outcome.architecture for outcome in environment.check(["llama"])] == ["llama"]

    def test_much_on_stderr_does_not_stop_it(self, tmp_path):
        environment = fake_python(tmp_path, f"sys.stderr.write('x' * 1_000_000)\nprint('''{OUTCOME}''')")
        assert len(list(environment.check(["llama"]))) == 1

    def test_a_crash_is_an_error_with_its_last_line(self, tmp_path):
        environment = fake_python(
            tmp_path, "sys.stderr.write('Traceback\\nImportError: no such thing\\n'); sys.exit(3)"
        )
        with pytest.raises(
            ReleaseEnvironmentError, match=rf"transformers {VERSION} stopped with exit code 3: ImportError"
        ):
            list(environment.check(["llama"]))

    def test_who_stops_reading_stops_it(self, tmp_path):
        mark = tmp_path / "finished"
        code = f"print('''{OUTCOME}''', flush=True)\nimport time; time.sleep(60); open({str(mark)!r}, 'w')"
        outcomes = fake_python(tmp_path, code).check(["llama"])
        next(outcomes)
        outcomes.close()  # waits for the process, which would take a minute
        assert not mark.exists()


@pytest.mark.wheels
class TestWithPip:
    @pytest.mark.parametrize("release", ["4.48.3", "5.0.0"])
    def test_a_real_release(self, release):
        environment = environment_for(release)
        assert environment.versions["transformers"] == release
        (outcome,) = environment.check(["llama"])
        assert outcome.status == "passed", outcome
        assert outcome.versions["transformers"] == release

    def test_a_release_that_there_is_not(self):
        with pytest.raises(
            ReleaseEnvironmentError, match=r"transformers 4\.0\.999 cannot be installed: .*4\.0\.999"
        ) as caught:
            environment_for("4.0.999")
        assert "\n" not in str(caught.value)
        assert not [name for name in contents() if name.startswith("4.0.999")]
