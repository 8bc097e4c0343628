"""That the release which is read, rewritten and run is the one that was named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from packaging.version import Version
from synthetic_releases import SMALL_LLAMA, folder_release, path_of, records_of
from trap_folder import set_traps, sprung

from patchkit.arch import registry
from patchkit.arch.registry import architectures, find
from patchkit.arch.spec import Architecture, Attention
from patchkit.check import run
from patchkit.check.numeric.environments import running_environment
from patchkit.check.run import check_static
from patchkit.check.static import findings as static
from patchkit.check.static.sweep import sweep
from patchkit.errors import ReleaseError
from patchkit.trust.key import key_of
from patchkit.trust.ledger import SHIPPED_LEDGER, Proof, find_proof, read_proofs
from patchkit.upstream import index, releases
from patchkit.upstream.index import pip_settings
from patchkit.upstream.release import INSTALLED, WHEEL, Release, installed_release
from patchkit.upstream.releases import release_at, resolve


@pytest.mark.parametrize("name", ["5.22.2", "latest", "installed", ">=5.20", "v5.22.2"])
def test_a_folder_in_the_current_one_is_no_release(name, tmp_path, monkeypatch):
    folder_release(tmp_path / name, "9.9.9", {path_of("llama"): SMALL_LLAMA})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(releases, "list_versions", lambda wheels=None, package="transformers": [Version("5.22.2")])
    monkeypatch.setattr(releases, "fetch", lambda version, wheels, package: Release(version, tmp_path, WHEEL))
    if name == "v5.22.2":  # a version too, as they are written
        assert [one.version for one in resolve([name])] == ["5.22.2"]
        return
    (found,) = resolve([name])
    assert found.version == (installed_release().version if name == INSTALLED else "5.22.2")
    (named,) = resolve([f"./{name}"])
    assert named.version == "9.9.9"
    assert not named.is_installed
    assert named.origin != WHEEL


def test_a_path_without_a_separator_is_explained(tmp_path, monkeypatch):
    (tmp_path / "checkout").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ReleaseError, match=r"or a path \(with a separator: \./checkout\)"):
        resolve(["checkout"])


@pytest.mark.parametrize("name", [INSTALLED, WHEEL])
def test_a_folder_with_the_name_of_an_origin_is_built_from_there(name, tmp_path, monkeypatch):
    folder_release(tmp_path / name, "9.9.9", {path_of("llama"): SMALL_LLAMA})
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(run, "environment_for", lambda *arguments, **options: asked.append((arguments, options)))
    run.environment_of(release_at(Path(name)), 1.0)
    assert asked == [((Path(name),), {"expected": "9.9.9", "seconds": 1.0})]


def test_what_is_imported_is_what_is_installed(tmp_path, monkeypatch):
    """Another transformers before the installed one, as with PYTHONPATH: its version counts, not that of the metadata."""
    folder_release(tmp_path, "9.9.9", {path_of("llama"): SMALL_LLAMA})
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "transformers", raising=False)
    assert (installed_release().version, installed_release().location) == ("9.9.9", tmp_path)
    environment = running_environment()
    assert (environment.versions["transformers"], environment.place) == ("9.9.9", tmp_path / "transformers")


COMMAND = "import sys; from patchkit.cli.main import main; main()"


def test_nothing_of_the_current_folder_runs_in_a_sweep(tmp_path):
    """Neither in the command nor in its processes, of which there are some from 24 pairs on."""
    traps, script = set_traps(tmp_path / "traps"), tmp_path / "command"
    script.write_text(COMMAND)
    for version in ("5.90.0", "5.91.0"):
        folder_release(tmp_path / version, version, {path_of("llama"): SMALL_LLAMA})
    done = subprocess.run(
        [sys.executable, script, "check", "--all", "--static", "--json", "-t", "../5.90.0", "-t", "../5.91.0"],
        cwd=traps,
        env={**os.environ, "PATCHKIT_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    found = json.loads(done.stdout)["results"]
    assert {one["release"] for one in found} == {"5.90.0", "5.91.0"}
    assert {one["verdict"] for one in found if one["architecture"] == "llama"} == {"rewritten"}
    assert not sprung(traps)


def test_processes_find_what_one_process_finds(tmp_path):
    chosen = [find(name) for name in ("llama", "gemma")]
    wanted = [folder_release(tmp_path / v, v, {path_of("llama"): SMALL_LLAMA}) for v in ("5.90.0", "5.91.0")]
    shown = []
    found = sweep(wanted, chosen, processes=2, progress=lambda *done: shown.append(done))
    assert found == sweep(wanted, chosen, processes=1)
    assert shown == [(done, 4) for done in range(5)]


def test_an_error_in_a_process_is_that_error(tmp_path):
    release = folder_release(tmp_path, "5.90.0", {path_of("llama"): SMALL_LLAMA})
    (tmp_path / path_of("llama")).write_bytes(b"\xff")
    chosen = [find("llama"), find("gemma")]
    errors = []
    for processes in (1, 2):
        try:
            errors.append(sweep([release], chosen, processes=processes))
        except ReleaseError as error:
            errors.append(str(error))
    assert errors[0] == errors[1]


def test_the_version_of_the_rewriter_is_in_the_key_of_an_outcome(tmp_path, monkeypatch):
    """What an older rewriter made of a source says nothing of what this one makes of it."""
    release = folder_release(tmp_path, "5.90.0", {path_of("llama"): SMALL_LLAMA})
    rewrites = []
    rewrite = static._rewrite
    monkeypatch.setattr(static, "_rewrite", lambda *arguments: rewrites.append(1) or rewrite(*arguments))
    for version, expected in ((1001, 2), (1001, 2), (1002, 4), (1001, 4)):
        monkeypatch.setattr(static, "REWRITE_VERSION", version)
        assert static.findings_of(release, find("llama"))
        assert len(rewrites) == expected


def test_drift_goes_on_until_it_is_repaired(tmp_path):
    """Two releases running: each is held against the last in which the part was rewritten, not against the one before."""
    broken = SMALL_LLAMA.replace("self.o_proj(", "self.output(")
    texts = {"5.90.0": SMALL_LLAMA, "5.91.0": broken, "5.92.0": broken, "5.93.0": SMALL_LLAMA}
    made = {
        version: folder_release(tmp_path / version, version, {path_of("llama"): text})
        for version, text in texts.items()
    }
    records = records_of(made["5.90.0"], "llama")
    expected = {"5.91.0": "drifted", "5.92.0": "drifted", "5.93.0": "rewritten"}
    for version in ("5.91.0", "5.92.0", "5.93.0"):
        report = check_static([made[version]], [find("llama")], records)
        (entry,) = [entry for entry in report.entries if entry.part == "o"]
        assert (version, entry.verdict, entry.since) == (version, expected[version], "5.90.0")
        records = records.with_findings(
            {one.finding.class_name: one.finding for one in report.entries}.values(), "2026-01-02"
        )
    verdicts = [record.verdicts["o"] for record in records.entries if "o" in record.verdicts]
    assert verdicts == ["rewritten", "drifted", "drifted", "rewritten"]


def listing(monkeypatch, text):
    monkeypatch.setattr(index, "_pip", lambda *arguments, **_: text if arguments == ("config", "list") else "")


@pytest.mark.parametrize(
    ("lines", "command", "expected"),
    [
        (["global.index-url='a'"], "download", "a"),
        (["global.index-url='a'", "download.index-url='b'"], "download", "b"),
        (["download.index-url='b'", "global.index-url='a'"], "download", "b"),
        (["global.index-url='a'", "download.index-url='b'"], "install", "a"),
        (["global.index-url='a'", "install.index-url='b'"], "install", "b"),
        ([":env:.index-url='c'", "download.index-url='b'", "global.index-url='a'"], "download", "c"),
        (["global.index-url='a'", "download.index-url='b'", ":env:.index-url='c'"], "download", "c"),
        (["wheel.index-url='d'"], "download", None),
    ],
)
def test_precedence_of_pips_settings(monkeypatch, lines, command, expected):
    """https://pip.pypa.io/en/stable/topics/configuration/: the environment, then the command, then global."""
    listing(monkeypatch, "\n".join(lines))
    assert pip_settings(command).get("index-url") == expected


def test_precedence_is_that_of_pip_itself(tmp_path, monkeypatch):
    (tmp_path / "pip.conf").write_text("[global]\nproxy = a\n[download]\nproxy = b\n[install]\nproxy = d\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.delenv("PIP_PROXY", raising=False)
    assert [pip_settings(command)["proxy"] for command in ("download", "install", "wheel")] == ["b", "d", "a"]
    monkeypatch.setenv("PIP_PROXY", "c")
    assert [pip_settings(command)["proxy"] for command in ("download", "install", "wheel")] == ["c", "c", "c"]


def test_every_architecture_has_patchkits_own_description():
    """So that the shipped ledger, whose keys have none, holds for them."""
    for architecture in architectures().values():
        for finding in static.findings_of(installed_release(), architecture):
            assert not finding.source or static.key_of_finding(finding).description == ""


@pytest.fixture
def plugin(monkeypatch):
    """A plugin whose class inherits LlamaAttention's forward, and says that q and k are called the other way round."""
    from transformers.models.llama.modeling_llama import LlamaAttention

    mine = type("Mine", (LlamaAttention,), {"__module__": __name__})
    architecture = Architecture("mine", ("mine",), __name__, (Attention("Mine", q="k_proj", k="q_proj"),))
    monkeypatch.setattr(registry, "plugin_architectures", lambda: [("plugin 'acme'", architecture)])
    registry.architectures.cache_clear()
    registry.blocks_by_class.cache_clear()
    yield mine
    registry.architectures.cache_clear()
    registry.blocks_by_class.cache_clear()


def test_a_plugin_with_other_names_has_not_patchkits_proof(plugin):
    """The source is proven, but not for this description of it."""
    own, foreign = key_of(plugin.__mro__[1]), key_of(plugin)
    assert own.description == ""
    assert foreign == own._replace(description="Attention(q='k_proj', k='q_proj')")
    proof = read_proofs(SHIPPED_LEDGER).get(own)
    assert proof is not None
    assert find_proof(foreign) is None
    line = replace(proof, key=foreign).to_line()
    assert Proof.from_line(line).key == foreign
    assert Proof.from_line(proof.to_line()).key == own
    assert "description" not in proof.to_line()
