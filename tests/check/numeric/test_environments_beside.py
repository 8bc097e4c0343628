"""Environments with another PEFT or torch: what pip is asked for, and that what runs there is what was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from patchkit.check.numeric import environments, installing
from patchkit.check.numeric.environments import Beside, environment_for, running_environment
from patchkit.errors import ReleaseEnvironmentError
from patchkit.processes.children import Done

pytest_plugins = ["proof_fixtures"]
pytestmark = pytest.mark.usefixtures("cache")

PEFT = Beside("peft==0.20.0", "0.20.0")
TORCH = Beside(torch="2.8.0")
BOTH = Beside("peft==0.20.0", "0.20.0", "2.8.0")


@pytest.fixture
def pip(monkeypatch):
    """Stands in for pip and for the processes of an environment: packages are folders with a version."""
    asked, versions = [], {"transformers": transformers.__version__, "torch": "2.13.0", "peft": "0.21.2"}

    def install(python, requirements, label, seconds, **options):
        asked.append((requirements, options))
        for requirement in requirements:
            name, _, version = requirement.partition("==")
            place = environments._site_packages(python.parents[1]) / name
            place.mkdir()
            (place / "__init__.py").write_text(f"__version__ = {version!r}\n")

    def answer(building, function, names, seconds):
        if "versions" not in function:
            return []
        own = environments._site_packages(building)
        told = dict(versions, python="3.11.7")
        for file in own.glob("*/__init__.py"):
            told[file.parent.name] = file.read_text().split("'")[1]
        places = {name: str((own if (own / name).is_dir() else Path("/below")) / name) for name in names}
        return {"place": places[names[0]], "places": places, "versions": told}

    monkeypatch.setattr(environments, "install", install)
    monkeypatch.setattr(environments, "_ask", answer)
    return asked


CASES = {
    # what is asked for: what pip is, and the versions
    "PEFT": (None, PEFT, ("peft==0.20.0",), {"peft": "0.20.0"}),
    "torch": (None, TORCH, ("torch==2.8.0",), {"torch": "2.8.0"}),
    "both": (None, BOTH, ("peft==0.20.0", "torch==2.8.0"), {"peft": "0.20.0", "torch": "2.8.0"}),
    "the installed transformers by its number": (
        transformers.__version__,
        PEFT,
        ("peft==0.20.0",),
        {"peft": "0.20.0"},
    ),
    "another transformers too": (
        "4.99.0",
        BOTH,
        ("transformers==4.99.0", "peft==0.20.0", "torch==2.8.0"),
        {"transformers": "4.99.0", "peft": "0.20.0", "torch": "2.8.0"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_installed_and_what_is_taken_from_below(case, pip):
    release, beside, requirements, versions = CASES[case]
    made = environment_for(release, beside=beside)
    ((asked, options),) = pip
    assert asked == requirements
    assert options["named"].endswith(str(beside))
    assert options.get("free", frozenset()) == ({"torch", "triton"} if beside.torch else frozenset())
    assert {**made.versions, **versions} == made.versions
    own = "transformers" in versions
    assert (made.place == running_environment().place) != own
    assert environment_for(release, beside=beside) == made
    assert len(pip) == 1, "it is kept"


def test_each_has_a_folder_of_its_own_that_tells_what_it_is(pip):
    names = {environment_for(None, beside=one).path.name for one in (PEFT, TORCH, BOTH)}
    assert len(names) == 3
    assert {name.rpartition("-")[0].removeprefix(f"{transformers.__version__}-") for name in names} == {
        "peft-0.20.0",
        "torch-2.8.0",
        "peft-0.20.0-torch-2.8.0",
    }


def test_nothing_else_is_the_running_environment():
    assert environment_for(None) == running_environment()


@pytest.mark.parametrize(("beside", "name"), [(PEFT, "peft"), (TORCH, "torch")])
@pytest.mark.parametrize("fault", ["another version", "elsewhere", "silent"])
def test_what_was_not_installed_where_it_should_be_is_an_error(beside, name, fault, pip, monkeypatch):
    answer = environments._ask

    def wrong(building, function, *rest):
        told = answer(building, function, *rest)
        if told and fault == "another version":
            told["versions"][name] = "0.1"
        elif told and fault == "elsewhere":
            told["places"][name] = "/below/package"
        elif told:
            del told["places"]
        return told

    monkeypatch.setattr(environments, "_ask", wrong)
    said = "does not tell its version" if fault == "silent" else f"{name} .* was not installed into its environment"
    with pytest.raises(ReleaseEnvironmentError, match=said):
        environment_for(None, beside=beside)
    assert not list(environments.environments_directory().glob("*/patchkit-environment.json"))


@pytest.mark.parametrize(
    ("beside", "said"),
    [
        (TORCH, ["torch 2.8.0 cannot be installed: ", "No matching distribution found for torch==2.8.0"]),
        (PEFT, ["PEFT 0.20.0 cannot be installed: ", "No matching distribution found for peft==0.20.0"]),
        (BOTH, ["PEFT 0.20.0, torch 2.8.0 cannot be installed: "]),
    ],
)
def test_a_release_that_no_index_has_is_a_clear_error(beside, said, tmp_path, monkeypatch):
    """pip itself, with an index that is an empty folder."""
    monkeypatch.setattr(installing, "pip_settings", lambda _: {"no-index": "true", "find-links": str(tmp_path)})
    with pytest.raises(ReleaseEnvironmentError) as error:
        environment_for(None, beside=beside)
    assert all(part in str(error.value) for part in said)


@pytest.mark.parametrize("free", [frozenset(), frozenset({"torch", "triton"})])
def test_torch_is_pinned_unless_it_is_asked_for(free, tmp_path, monkeypatch):
    monkeypatch.setattr(installing, "run_child", lambda *_, **__: Done(0, "", ""))
    monkeypatch.setattr(installing, "pip_settings", lambda _: {})
    (tmp_path / "bin").mkdir()
    installing.install(tmp_path / "bin" / "python", ("torch==2.8.0",), "5.23.0", 9.0, named="torch 2.8.0", free=free)
    pinned = {line.partition("==")[0] for line in (tmp_path / "constraints.txt").read_text().splitlines()}
    assert {"numpy", "libcst"} <= pinned
    assert ("torch" in pinned) == (not free)
