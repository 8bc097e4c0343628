"""What a helper interpreter imports, and what it sees of the user's environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from trap_folder import TRAPS, set_traps, sprung

from patchkit.processes.interpreters import isolated, variables_for_pip, variables_for_release
from patchkit.processes.workers import WorkerKind, ask_all

TOKENS = (
    "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "GITHUB_TOKEN", "GH_TOKEN", "ACTIONS_RUNTIME_TOKEN", "ACTIONS_ID_TOKEN_REQUEST_URL",
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "OPENAI_API_KEY", "SSH_AUTH_SOCK", "NPM_CONFIG__AUTH",
    "TWINE_PASSWORD", "DATABASE_URL", "TORCH_HUB_TOKEN", "CUDA_REGISTRY_PASSWORD", "TRITON_API_KEY", "MY_PRIVATE_THING",
)  # fmt: skip


def python(*arguments, folder, **variables):
    """The output of an isolated interpreter that runs a module of the standard library, or of the path."""
    command = isolated(Path(sys.executable), *arguments)
    done = subprocess.run(command, cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_folder_one_stands_in_is_not_imported_from(tmp_path):
    """Neither by the interpreter, nor by what multiprocessing spawns from it, nor through a distribution that lies there."""
    traps = set_traps(tmp_path / "traps")
    code = (
        "import sys, multiprocessing, importlib.metadata as m\n"
        "import importlib.util\n"
        "def work(x): return x\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    process = context.Process(target=print, args=('spawned',)); process.start(); process.join()\n"
        "    found = [importlib.util.find_spec(name) for name in sys.argv[1:]]\n"
        "    print([spec.origin for spec in found if spec], [e.name for e in m.entry_points(group='patchkit.architectures')])\n"
    )
    script = tmp_path / "elsewhere" / "looks.py"
    script.parent.mkdir()
    script.write_text(code)
    said = subprocess.run(
        [sys.executable, "-I", str(script), *TRAPS], cwd=traps, capture_output=True, text=True, check=True
    ).stdout  # how the standard library behaves
    assert "spawned" in said
    assert str(traps) not in said
    out = python(
        "site", folder=traps, PYTHONPATH=str(traps), PYTHONHOME="/nowhere", PYTHONSTARTUP=str(traps / "pip.py")
    )
    assert str(traps) not in out
    assert not sprung(traps)


@pytest.mark.parametrize("path", ["", ".", os.pathsep, ".." + os.pathsep + "traps"])
def test_a_relative_pythonpath_is_not_followed(tmp_path, monkeypatch, path):
    """Even where this process imports as the user says: ``PYTHONPATH=$PYTHONPATH:x`` names the current folder."""
    traps = set_traps(tmp_path / "traps")
    monkeypatch.chdir(traps)
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.syspath_prepend(str(traps))
    kind = WorkerKind(Path(sys.executable), "json:loads", os.environ, traps, 60.0, like_this=True)
    list(ask_all(kind, [b"1"], 1))  # an int is no answer, but everything was imported
    assert not sprung(traps)
    assert json.loads(isolated(Path(sys.executable), "json", like_this=True)[-2])["first"] == []


def test_this_very_patchkit_is_imported_and_nothing_else_from_its_folder(tmp_path):
    import patchkit

    script = "import patchkit, patchkit_kernels, sys; print(patchkit.__file__, patchkit_kernels.__file__)"
    (tmp_path / "shows.py").write_text(script)
    setup = json.loads(isolated(Path(sys.executable), "x")[-2])
    assert set(setup["packages"]) == {"patchkit", "patchkit_kernels"}
    assert (setup["first"], setup["folders"]) == ([], [])
    setup["first"] = [str(tmp_path)]
    command = isolated(Path(sys.executable), "shows")
    command[-2] = json.dumps(setup)
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert out.split()[0] == patchkit.__file__


def test_an_interpreter_without_any_package_finds_patchkit(tmp_path):
    """As in a fresh environment: no installation of patchkit there, and no PYTHONPATH."""
    base = Path(sys.base_prefix) / ("python.exe" if os.name == "nt" else f"bin/python3.{sys.version_info.minor}")
    if not base.exists():
        pytest.skip("this Python does not say where its base interpreter is")
    command = isolated(base, "patchkit.arch.spec")
    assert subprocess.run(command, cwd=tmp_path, env={}, capture_output=True).returncode == 0


def test_no_token_reaches_the_code_of_a_release(monkeypatch, tmp_path):
    for name in TOKENS:
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("http_proxy", "http://user:secret@proxy")
    monkeypatch.setenv("PIP_INDEX_URL", "https://user:secret@index/simple")
    seen = variables_for_release(tmp_path)
    assert "secret" not in str(seen.values())
    assert seen["OMP_NUM_THREADS"] == "1"
    assert seen["HF_HUB_OFFLINE"] == "1"
    assert seen["HOME"] == str(tmp_path)
    assert seen["PATH"] == os.environ["PATH"]
    assert not [name for name in seen if name.startswith(("PYTHON", "PIP_"))]


def test_without_any_variable_there_are_a_home_and_no_network(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "environ", {})
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    assert variables_for_release(tmp_path) == {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path), **offline}
    assert variables_for_pip({}) == {"PIP_CONFIG_FILE": os.devnull}


SEEN = {
    # whether the code of a release sees a variable, and pip
    "PATH": (True, True), "lc_all": (True, True), "TZ": (True, True), "DYLD_FALLBACK_LIBRARY_PATH": (True, True),
    "OMP_NUM_THREADS": (True, False), "KMP_AFFINITY": (True, False), "CUDA_VISIBLE_DEVICES": (True, False),
    "TRITON_CACHE_DIR": (True, False), "https_proxy": (False, True), "NO_PROXY": (False, True),
    "SSL_CERT_FILE": (False, True), "XDG_CONFIG_HOME": (False, True), "NETRC": (False, True), "MYPATH": (False, False),
    "PATHS": (False, False), "OMP": (False, False), "CUDA_TOKEN": (False, False), "XDG_PASSWORD": (False, False),
    "TORCH_API_KEY": (False, False), "TORCH_APIKEY": (False, False), "lc_secret": (False, False),
    "OMP_ACCESS_KEY": (False, False), "OMP_PASSWD": (False, False), "XDG_CREDENTIALS": (False, False),
}  # fmt: skip


@pytest.mark.parametrize("name", SEEN)
def test_who_sees_a_variable(name, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "environ", {name: "value"})
    seen = (variables_for_release(tmp_path).get(name) == "value", variables_for_pip({}).get(name) == "value")
    assert seen == SEEN[name]


def test_pip_sees_its_settings_proxies_and_certificates_and_no_tokens(monkeypatch):
    for name in TOKENS:
        monkeypatch.setenv(name, "secret")
    kept = {"https_proxy": "http://proxy", "NO_PROXY": "here", "REQUESTS_CA_BUNDLE": "/ca.pem", "HOME": "/home/me"}
    for name, value in kept.items():
        monkeypatch.setenv(name, value)
    for name in ("PIP_TARGET", "PIP_USER", "PYTHONPATH", "PYTHONHOME", "PIP_CONFIG_FILE"):
        monkeypatch.setenv(name, "/elsewhere")
    seen = variables_for_pip({"index-url": "https://index/simple"})
    assert kept.items() <= seen.items()
    assert seen["PIP_INDEX_URL"] == "https://index/simple"
    assert seen["PIP_CONFIG_FILE"] == os.devnull
    assert not {"secret", "/elsewhere"} & set(seen.values())
