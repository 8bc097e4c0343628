"""Environments of other releases: made by pip from wheels of two lines, or by a stand-in for pip; and what runs there.

With real releases where an index can be reached.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from installed_packages import install_package
from synthetic_releases import make_index, make_wheel
from trap_folder import set_traps, sprung

from patchkit.check.numeric import environments
from patchkit.check.numeric.environments import (
    Environment,
    environment_for,
    environments_directory,
    running_environment,
)
from patchkit.check.numeric.outcomes import ArchitectureOutcome
from patchkit.errors import CacheError, ReleaseEnvironmentError, WorkerLostError
from patchkit.processes.interpreters import isolated, variables_for_release
from patchkit.upstream import index

pytest_plugins = ["proof_fixtures"]
pytestmark = pytest.mark.usefixtures("cache")

VERSION = "4.99.0"


def stubs(version):
    """A transformers of one line, and torch and PEFT too, since importing those takes seconds."""
    versions = {"transformers": version, "torch": "2.13.0", "peft": "0.21.2"}
    return {f"{name}/__init__.py": f"__version__ = {text!r}\n" for name, text in versions.items()}


@pytest.fixture
def pip(monkeypatch):
    """Stands in for pip: puts stubs into the environment. Returns what it was asked for."""
    asked = []

    def install(python, requirements, label, seconds):
        asked.append(requirements)
        for path, text in stubs(VERSION if Path(requirements[0]).exists() else label).items():
            place = environments._site_packages(python.parents[1]) / path
            place.parent.mkdir(exist_ok=True)
            place.write_text(text)

    monkeypatch.setattr(environments, "install", install)
    return asked


@pytest.fixture
def quick(monkeypatch):
    """No process is started: for tests that are about folders."""

    def answer(building, function, *_):
        package = environments._site_packages(building) / "transformers"
        label = package.joinpath("__init__.py").read_text().split("'")[1]
        versions = {"transformers": label, "torch": "2", "peft": "0", "python": "3"}
        return {"place": str(package), "versions": versions} if "versions" in function else []

    monkeypatch.setattr(environments, "_ask", answer)


def contents():
    return sorted(path.name for path in environments_directory().iterdir() if not path.name.endswith(".lock"))


def python_of(environment, code, tmp_path, shown=()):
    (tmp_path / "asks.py").write_text(code)
    command = isolated(environment.python, "asks", shown=shown)
    setup = json.loads(command[-2])
    command[-2] = json.dumps({**setup, "first": [str(tmp_path)]})
    variables = variables_for_release(tmp_path)
    return subprocess.run(command, capture_output=True, text=True, check=True, env=variables).stdout.strip()


def test_the_running_environment_serves_its_own_release(pip):
    import transformers

    assert environment_for(transformers.__version__) == running_environment()
    assert running_environment().python == Path(sys.executable)
    assert running_environment().place == Path(transformers.__file__).parent
    assert not pip


def test_it_is_made_once_and_reused(pip):
    made = environment_for(VERSION)
    assert made.versions["transformers"] == VERSION
    assert environment_for(VERSION) == made
    assert len(pip) == 1
    assert contents() == [made.path.name]


def test_it_has_its_own_transformers_the_running_torch_and_this_patchkit(pip, tmp_path):
    import torch

    import patchkit

    made = environment_for(VERSION)
    shutil.rmtree(made.place.parent / "torch")
    code = "import transformers, torch, patchkit; print(transformers.__version__, torch.__file__, patchkit.__file__)"
    assert python_of(made, code, tmp_path).split() == [VERSION, torch.__file__, patchkit.__file__]


def test_optional_packages_of_the_release_below_are_hidden(pip, tmp_path):
    """Also in the processes that it starts."""
    environment = environment_for(VERSION)
    hidden = json.loads((environments._site_packages(environment.path) / "patchkit_layer.json").read_text())["hidden"]
    assert "pytest" in hidden
    assert not {"torch", "numpy", "libcst", "rich", "transformers", "peft", "patchkit"} & set(hidden)
    code = (
        "import subprocess, sys; sub = 'import importlib.util; print(importlib.util.find_spec(\"pytest\"))';"
        "print(subprocess.run([sys.executable, '-c', sub], capture_output=True, text=True).stdout)"
    )
    assert python_of(environment, code, tmp_path) == "None"


def test_plugins_and_what_they_need_are_not_hidden(pip, tmp_path, monkeypatch):
    """Whenever they were installed: the environment may be older."""
    site = tmp_path / "site-packages"
    monkeypatch.syspath_prepend(str(site))
    source = (
        'import acme_needs\nfrom patchkit.arch.spec import Architecture\nX = Architecture("acme", (), "acme_kit")\n'
    )
    install_package(site, "acme-kit", {"acme_kit.py": source}, architectures={"x": "acme_kit:X"}, needs=["needs-acme"])
    install_package(site, "Needs_Acme", {"acme_needs.py": ""})
    install_package(site, "other-acme", {"acme_other.py": ""})
    made = environment_for(VERSION)
    code = (
        "import importlib.util, json; from patchkit.arch.registry import architectures;"
        "found = {name: bool(importlib.util.find_spec(name)) for name in ('acme_kit', 'acme_needs', 'acme_other')};"
        "print(json.dumps([found, 'acme' in architectures()]))"
    )
    nothing = dict.fromkeys(("acme_kit", "acme_needs", "acme_other"), False)
    assert json.loads(python_of(made, code, tmp_path)) == [nothing, False]
    shown = made.kind(tmp_path, "module:function", 1.0).shown
    assert shown == ("acme_kit", "acme_needs")
    found = {**nothing, "acme_kit": True, "acme_needs": True}
    assert json.loads(python_of(made, code, tmp_path, shown)) == [found, True]
    assert running_environment().kind(tmp_path, "module:function", 1.0).shown == ()


class TestTheReleaseIsTheOneNamed:
    """With pip itself, and a wheel from an index that is a folder."""

    @pytest.fixture
    def published(self, tmp_path, use_index):
        wheel = make_wheel(tmp_path / "wheels", VERSION, stubs(VERSION))
        use_index(make_index(tmp_path / "index", wheel))

    @pytest.mark.parametrize(
        "setting",
        [
            "target",
            "prefix",
            "root",
            "user",
            "dry-run",
            "python",
            "require-virtualenv",
            "platform",
            "file",
            "PYTHONPATH",
        ],
    )
    @pytest.mark.usefixtures("published")
    def test_whatever_pip_is_told_elsewhere(self, setting, tmp_path, monkeypatch):
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        if setting == "file":
            address = os.environ["PIP_INDEX_URL"]
            (tmp_path / "pip.conf").write_text(
                f"[global]\nindex-url = {address}\n[install]\ntarget = {elsewhere}\nno-deps = true\nuser = false\n"
            )
            monkeypatch.delenv("PIP_INDEX_URL")
            monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
        elif setting == "PYTHONPATH":
            set_traps(tmp_path / "traps")
            monkeypatch.setenv("PYTHONPATH", str(tmp_path / "traps"))
            monkeypatch.setenv("PYTHONHOME", str(elsewhere))
        else:
            values = {"python": sys.executable, "platform": "win32"}
            flags = {"user", "dry-run", "require-virtualenv"}
            value = "1" if setting in flags else values.get(setting, str(elsewhere))
            monkeypatch.setenv(f"PIP_{setting.upper().replace('-', '_')}", value)
        made = environment_for(VERSION)
        assert made.versions["transformers"] == VERSION
        assert made.place == environments._site_packages(made.path) / "transformers"
        assert (made.place / "__init__.py").read_text() == stubs(VERSION)["transformers/__init__.py"]
        assert not list(elsewhere.iterdir())
        assert not (tmp_path / "traps").exists() or not sprung(tmp_path / "traps")

    @pytest.mark.usefixtures("published")
    def test_what_lies_in_the_current_folder_is_not_run(self, tmp_path, monkeypatch):
        traps = set_traps(tmp_path / "traps")
        monkeypatch.chdir(traps)
        assert environment_for(VERSION).versions["transformers"] == VERSION
        assert index.list_versions()
        assert not sprung(traps)

    def test_a_wheel_that_says_another_version(self, tmp_path, use_index):
        """Its file name and metadata are of one release, its code of another."""
        wheel = make_wheel(tmp_path / "wheels", VERSION, stubs("4.98.0"))
        use_index(make_index(tmp_path / "index", wheel))
        with pytest.raises(ReleaseEnvironmentError, match=r"4\.99\.0 was asked for, but .* says that it is 4\.98\.0"):
            environment_for(VERSION)
        assert contents() == []

    def test_a_pip_that_installs_nothing(self, pip, monkeypatch):
        """The transformers of the environment below is no other release, whatever it is called."""
        monkeypatch.setattr(environments, "install", lambda *_: None)
        with pytest.raises(
            ReleaseEnvironmentError, match=r"4\.99\.0 was not installed into its environment: .* there is"
        ):
            environment_for(VERSION)
        assert contents() == []

    @pytest.mark.parametrize("damage", ["no package", "another version", "no versions", "no JSON"])
    def test_a_damaged_environment_is_made_anew(self, pip, quick, damage):
        made = environment_for(VERSION)
        about = made.path / environments._ABOUT
        data = json.loads(about.read_text())
        if damage == "no package":
            shutil.rmtree(made.place)
        elif damage == "another version":
            data["versions"]["transformers"] = "5.23.0"
        else:
            data["versions"] = []
        about.write_text("{" if damage == "no JSON" else json.dumps(data))
        assert environment_for(VERSION) == made
        assert len(pip) == 2

    def test_pip_is_stopped_at_its_time_limit(self, tmp_path, monkeypatch, use_index):
        import http.server

        class Slow(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                time.sleep(60)

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        use_index(f"http://127.0.0.1:{server.server_port}/simple")
        with pytest.raises(
            ReleaseEnvironmentError,
            match=r"4\.99\.0 cannot be installed: pip was stopped, because it was not done after 3 s",
        ):
            environment_for(VERSION, seconds=3.0)
        server.shutdown()
        assert contents() == []


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError(28, "No space left on device"), ReleaseEnvironmentError("no")]
)
def test_an_interrupted_build_leaves_nothing(pip, quick, monkeypatch, error):
    def fail(*_, **__):
        raise error

    working = environments.install
    monkeypatch.setattr(environments, "install", fail)
    with pytest.raises(
        KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else ReleaseEnvironmentError
    ) as caught:
        environment_for(VERSION)
    if isinstance(error, OSError):
        assert "No space left on device" in str(caught.value)
    assert contents() == []
    monkeypatch.setattr(environments, "install", working)
    assert environment_for(VERSION).versions["transformers"] == VERSION  # the lock is free


def test_what_a_killed_build_left_is_built_over(pip, quick):
    place = environments_directory() / environments._name(VERSION, None)
    left = place.with_name(place.name + ".building")
    for folder in (left, place):  # a folder without its note is no environment
        (folder / "lib").mkdir(parents=True)
    assert environment_for(VERSION).path == place
    assert contents() == [place.name]


def test_two_at_once_build_once(pip, quick, monkeypatch):
    working = environments.install

    def slow(*arguments, **options):
        time.sleep(0.5)
        working(*arguments, **options)

    monkeypatch.setattr(environments, "install", slow)
    found = []
    threads = [threading.Thread(target=lambda: found.append(environment_for(VERSION))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1]
    assert len(pip) == 1


def test_an_older_peft_where_the_installed_one_does_not_run(pip, quick, monkeypatch):
    answer, broken = environments._ask, ["ImportError: cannot import name 'x' from 'transformers'"]

    def fail_once(building, function, *rest):
        if "versions" in function and broken:
            raise WorkerLostError(broken.pop())
        return answer(building, function, *rest)

    monkeypatch.setattr(environments, "_ask", fail_once)
    assert environment_for(VERSION).versions["transformers"] == VERSION
    assert [requirements[1:] for requirements in pip] == [(), ("peft==0.18.1",)]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import nothing_of_this_name", "nothing_of_this_name"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("import os; os._exit(0)", "ended with exit code 0 before it had answered"),
        ("pass", "has no attribute '__version__'"),
        ("import time; time.sleep(60)", "took longer than 5 s"),
        ("print('{}', flush=True); import os; os._exit(0)", "ended with exit code 0"),
    ],
)
def test_a_release_that_does_not_run_is_an_error(pip, monkeypatch, code, said):
    working = environments.install

    def install(python, requirements, label, seconds):
        working(python, requirements, label, seconds)
        (environments._site_packages(python.parents[1]) / "transformers" / "__init__.py").write_text(code)

    monkeypatch.setattr(environments, "install", install)
    with pytest.raises(ReleaseEnvironmentError, match=rf"installed, but does not run with torch .*{said}"):
        environment_for(VERSION, seconds=5.0)
    assert contents() == []


def test_the_least_used_go_first(pip, quick, monkeypatch):
    monkeypatch.setattr(environments, "LIMIT", 2)
    for day, version in enumerate(("4.99.1", "4.99.2", "4.99.3")):
        note = environment_for(version).path / environments._ABOUT
        if version != "4.99.3":
            os.utime(note, (1e9 + day * 86400,) * 2)
    assert [name.split("-")[0] for name in contents()] == ["4.99.2", "4.99.3"]


@pytest.mark.parametrize("release", ["latest-and-greatest", "", "/nowhere/transformers", Path("/nowhere")])
def test_what_is_no_release(release):
    with pytest.raises(ReleaseEnvironmentError, match=r"is no version of transformers|no wheel or checkout .* is at"):
        environment_for(release)


def test_a_folder_of_that_name_is_no_release(tmp_path, monkeypatch, pip, quick):
    """It would be built, and its code would run."""
    (tmp_path / VERSION / "src" / "transformers").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert environment_for(VERSION).versions["transformers"] == VERSION
    assert pip == [(f"transformers=={VERSION}",)]


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
    with pytest.raises(CacheError, match=r"cannot be (written to|read)"):
        environment_for(VERSION)


OUTCOME = '{"status": "passed", "architecture": "llama", "versions": {}, "blocks": [], "seconds": 1.0}'
HOSTILE = {
    "leaves": ("import os; os._exit(0)", "ended with exit code 0 before it had answered"),
    "leaves with an exception": ("import sys; sys.exit(0)", "SystemExit: 0"),
    "prints an outcome": (f"import os; os.write(1, b'{OUTCOME}\\n'); print('{OUTCOME}', flush=True); os._exit(0)", "exit code 0"),
    "is killed": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", r"killed \(SIGKILL; .*memory runs out"),
    "hangs": ("import time; time.sleep(600)", "took longer than 20 s and was stopped"),
}  # fmt: skip


@pytest.mark.skipif(os.name == "nt", reason="signals are not there")
@pytest.mark.parametrize(("code", "said"), HOSTILE.values(), ids=HOSTILE)
def test_a_release_that_ends_its_process_is_no_pass(pip, quick, code, said):
    """Every architecture that was asked for has an outcome, and it says why there is no other."""
    made = environment_for(VERSION)
    shutil.rmtree(made.place.parent / "torch")  # which is imported first, and is the real one
    shutil.rmtree(made.place.parent / "peft")
    (made.place / "__init__.py").write_text(code)
    found = list(made.check(["llama", "gemma"], jobs=2, seconds=20.0))
    assert [outcome.architecture for outcome in found] == ["llama", "gemma"]
    for outcome in found:
        assert outcome.status == "inapplicable"
        assert not outcome.proofs
        (problem,) = outcome.problems.values()
        assert re.search(said, problem)


class TestWhatAWorkerSays:
    """Answers of a worker that runs the release's code, made up here."""

    VERSIONS = {"transformers": VERSION, "torch": "2.13.0", "peft": "0.21.2", "python": "3.11.7"}  # noqa: RUF012

    def checked(self, monkeypatch, tmp_path, plan, answers):
        environment = Environment(Path(sys.executable), self.VERSIONS, tmp_path, tmp_path)
        monkeypatch.setattr(environments, "Worker", lambda kind: FakeWorker(plan))
        monkeypatch.setattr(environments, "ask_all", lambda kind, requests, jobs, first: enumerate(answers(requests)))
        return list(environment.check(["llama", "gemma"]))

    def outcome(self, architecture, **changes):
        outcome = ArchitectureOutcome(architecture, self.VERSIONS, problems={architecture: "as expected"})
        return json.dumps({"place": changes.pop("place", None), "outcome": replace(outcome, **changes).to_json()})

    @pytest.mark.parametrize(
        "plan",
        [
            "",
            "null",
            "[]",
            "{}",
            '{"llama": ["llama"]}',
            '{"gemma": [], "llama": []}',
            '{"llama": 1, "gemma": 2}',
            "[" * 99999,
            json.dumps({"llama": ["llama"], "gemma": ["gemma"] * 1000}),
        ],
    )
    def test_a_plan_that_is_none(self, monkeypatch, tmp_path, plan):
        found = self.checked(monkeypatch, tmp_path, plan, lambda requests: [])
        assert [outcome.architecture for outcome in found] == ["llama", "gemma"]
        assert all("sent what is no answer" in str(outcome.problems) for outcome in found)

    def test_an_architecture_without_a_model_is_asked_for_all_the_same(self, monkeypatch, tmp_path):
        def answers(requests):
            assert [json.loads(one) for one in requests] == [
                {"architecture": name, "model": ""} for name in ("llama", "gemma")
            ]
            return [WorkerLostError("gone")] * 2

        found = self.checked(monkeypatch, tmp_path, '{"llama": [], "gemma": []}', answers)
        assert [outcome.problems for outcome in found] == [{"llama": "gone"}, {"gemma": "gone"}]

    @pytest.mark.parametrize("said", ["", "{}", "[]", '{"place": 1, "outcome": 2}', '{"place": "/", "outcome": "{}"}'])
    def test_an_outcome_that_is_none(self, monkeypatch, tmp_path, said):
        plan = '{"llama": ["llama"], "gemma": ["gemma"]}'
        found = self.checked(monkeypatch, tmp_path, plan, lambda requests: [said.encode()] * 2)
        assert all("sent what is no outcome" in str(outcome.problems) for outcome in found)

    def test_the_outcome_of_another_architecture(self, monkeypatch, tmp_path):
        said = self.outcome("llama", place=str(tmp_path))
        plan = '{"llama": ["llama"], "gemma": ["gemma"]}'
        llama, gemma = self.checked(monkeypatch, tmp_path, plan, lambda requests: [said.encode()] * 2)
        assert llama.problems == {"llama": "as expected"}
        assert gemma.problems == {"gemma": "its process sent what is no outcome: it is of llama"}

    @pytest.mark.parametrize("wrong", ["place", "version"])
    def test_another_release_than_the_environments(self, monkeypatch, tmp_path, wrong):
        changes = {"place": "/usr/lib/transformers"} if wrong == "place" else {
            "place": str(tmp_path), "versions": {**self.VERSIONS, "transformers": "5.23.0"}
        }  # fmt: skip
        said = self.outcome("llama", **changes)
        plan = '{"llama": ["llama"], "gemma": ["gemma"]}'
        with pytest.raises(ReleaseEnvironmentError, match=r"was to run transformers 4\.99\.0, .* but ran"):
            self.checked(monkeypatch, tmp_path, plan, lambda requests: [said.encode()] * 2)


class FakeWorker:
    def __init__(self, plan):
        self.plan = plan

    def ask(self, request):
        return self.plan.encode()

    def stop(self):
        pass


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
