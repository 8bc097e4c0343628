"""``patchkit check``: every output format as a snapshot, exit codes, and bad input."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from syrupy.assertion import SnapshotAssertion
from typer.testing import CliRunner, Result

import patchkit.check.static.records as records_module
from patchkit.arch import registry
from patchkit.arch.registry import find
from patchkit.arch.spec import Architecture, Attention, GatedMLP
from patchkit.check.architecture import hints
from patchkit.check.results import matrix, torch_records
from patchkit.cli.main import app
from patchkit.trust import ledger

ATTENTION = """\
class {name}Attention(nn.Module):
    def forward(self, hidden_states):
        query = self.q_proj(hidden_states)
        key = self.k_proj(hidden_states)
        value = self.v_proj({value})
        return self.{o}(attend(query, key, value))
"""

MLP = """\


class {name}MLP(nn.Module):
    def forward(self, x):
        return self.down_proj({inside})
"""

GATED = "self.act_fn(self.gate_proj(x)) * self.up_proj(x)"


def model(name: str, value: str = "hidden_states", o: str = "o_proj", inside: str = GATED) -> str:
    return ATTENTION.format(name=name, value=value, o=o) + MLP.format(name=name, inside=inside)


def checkout(folder: Path, version: str, **models: str) -> Path:
    package = folder / "transformers"
    for name, text in models.items():
        place = package / "models" / name / f"modeling_{name}.py"
        place.parent.mkdir(parents=True)
        place.write_text(text)
    (package / "__init__.py").write_text(f'__version__ = "{version}"\n')
    return folder


@pytest.fixture(autouse=True)
def own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache, records and a ledger of the test's own, and a few architectures, whatever else is registered."""
    monkeypatch.setenv("PATCHKIT_CACHE", str(tmp_path / "cache"))
    records, proofs = tmp_path / "records.jsonl", tmp_path / "ledger.jsonl"
    monkeypatch.setattr(records_module, "SHIPPED_RECORDS", records)
    known = {name: find(name) for name in ("gemma", "llama", "llava", "mistral", "qwen2")}
    for module in (registry, matrix, hints):  # whoever is first imported by a command would keep what stands here
        monkeypatch.setattr(module, "architectures", lambda: known)
    monkeypatch.setattr(ledger, "SHIPPED_LEDGER", proofs)


@pytest.fixture
def releases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A known release, and a new one in which llama's MLP got dropout and gemma's output projection another name."""
    monkeypatch.chdir(tmp_path)
    known = checkout(tmp_path / "known", "5.90.0", llama=model("Llama"), gemma=model("Gemma"), qwen2=model("Qwen2"))
    result = run("matrix", "--transformers", "./known", "-o", "matrix.md")
    assert result.exit_code == 0, result.output
    del known
    return checkout(
        tmp_path / "new",
        "5.91.0",
        llama=model("Llama", inside=f"self.dropout({GATED})"),
        gemma=model("Gemma", o="out_proj"),
        qwen2=model("Qwen2", value="other"),
    )


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def check(*arguments: str) -> Result:
    return run("check", "--static", "--transformers", "./new", *arguments)


@pytest.mark.usefixtures("releases")
def test_table(snapshot: SnapshotAssertion) -> None:
    result = check("--arch", "llama", "--arch", "gemma", "--arch", "qwen*")
    assert result.exit_code == 1
    assert result.stderr == ""
    assert result.stdout == snapshot


@pytest.mark.usefixtures("releases")
def test_json(snapshot: SnapshotAssertion) -> None:
    result = check("--arch", "llama", "--arch", "gemma", "--json")
    assert result.exit_code == 1
    data = json.loads(result.stdout)
    assert data["verified"] is False
    del data["patchkit"], data["rewrite"]
    assert data == snapshot


@pytest.mark.usefixtures("releases")
def test_junit(snapshot: SnapshotAssertion, tmp_path: Path) -> None:
    assert check("--arch", "llama", "--arch", "gemma", "--arch", "mistral", "--junit", "junit.xml").exit_code == 1
    text = (tmp_path / "junit.xml").read_text()
    assert text == snapshot
    cases = ElementTree.fromstring(text).findall("*/testcase")
    passed = {f"{case.get('classname')} {case.get('name')}" for case in cases if not len(case)}
    assert passed == {f"patchkit.static.{n.lower()} {n}{p}" for n, p in PASSED}, "a skip is never shown as a pass"


PASSED = (("Llama", "Attention qkv"), ("Llama", "Attention o"), ("Gemma", "Attention qkv"), ("Gemma", "MLP mlp"))


@pytest.mark.usefixtures("releases")
def test_github(snapshot: SnapshotAssertion) -> None:
    result = check("--arch", "llama", "--arch", "gemma", "--github")
    commands = [line for line in result.stdout.splitlines() if line.startswith("::")]
    assert commands == snapshot
    for command in commands:
        assert re.fullmatch(r"::(error|warning) file=patchkit/arch/\w+\.py,title=[^:]+::.+", command)


@pytest.mark.usefixtures("releases")
def test_diff(snapshot: SnapshotAssertion, monkeypatch: pytest.MonkeyPatch) -> None:
    from patchkit.upstream import kept_releases
    from patchkit.upstream.releases import release_at

    monkeypatch.setattr(kept_releases, "fetch", lambda *_: release_at(Path("known")))
    result = check("--arch", "llama", "--diff")
    assert result.stdout.partition("# llama")[2] == snapshot


@pytest.mark.usefixtures("releases")
def test_all_verified() -> None:
    result = run("check", "--static", "--transformers", "./known", "--arch", "llama")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == "verified: 3 rewritten; no model was run"


@pytest.mark.usefixtures("releases")
def test_markdown(snapshot: SnapshotAssertion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_records, "SHIPPED_TORCH_RECORDS", tmp_path / "none.jsonl")
    result = run("matrix", "--transformers", "./known", "--transformers", "./new", "-o", "m.md", "--html", "m.html")
    assert result.exit_code == 0, result.output
    text = re.sub(r"\d{4}-\d\d-\d\d", "DATE", (tmp_path / "m.md").read_text())
    text = re.sub(r"patchkit [\d.]+, rewriter \d+", "patchkit VERSION", text)
    assert text == snapshot
    data = re.search(r'<script type="application/json" id="data">(.*)</script>', (tmp_path / "m.html").read_text())
    assert data is not None
    found = json.loads(data[1])
    assert found["releases"] == ["5.90.0", "5.91.0"]
    newest_first = {row["name"]: [cell["text"] for cell in reversed(row["cells"])] for row in found["rows"]}
    assert newest_first == {
        line.split(" | ")[0].strip("| "): [cell.strip(" |") for cell in line.split(" | ")[1:]]
        for line in text.splitlines()
        if re.match(r"\| (?!architecture)[a-z0-9_]+ \| [^ ]+ \| [^ ]+ \|$", line)
    }


@pytest.mark.usefixtures("releases")
def test_a_matrix_with_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of transformers is a row, with the user's own proofs of it; one of another package is named."""
    blocks = (Attention("LlamaAttention", q="q_proj"), GatedMLP("LlamaMLP"))
    mine = Architecture("mine", ("llama",), find("llama").module, blocks[1:])
    acme = Architecture("acme", ("acme",), "acme.modeling", blocks)
    known = {"llama": find("llama"), "mine": mine, "acme": acme}
    for module in (registry, matrix):
        monkeypatch.setattr(module, "architectures", lambda: known)
    result = run("matrix", "--transformers", "./known", "-o", "m.md")
    assert result.exit_code == 0, result.output
    rows = {line.split(" | ")[0].strip("| "): line for line in (tmp_path / "m.md").read_text().splitlines()}
    assert rows["mine"].endswith(" ○ |")
    assert "acme" not in rows
    assert "acme is no row: acme.modeling is not part of transformers; `patchkit check --arch acme`" in " ".join(
        result.stderr.split()
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["check", "--arch", "lama", "--static"], "unknown architecture 'lama'; did you mean llama"),
        (["check", "--arch", "none*", "--static"], "no architecture matches 'none*'"),
        (["check", "--arch", "llama", "-t", "./nowhere"], "nowhere does not exist"),
        (["check", "--arch", "llama", "-t", "new"], "'new' is not a release, a range such as"),
        (["check", "--arch", "llama", "-t", "4.90", "--wheels", "."], "has no wheel of transformers"),
        (["check", "--arch", "llama", "-t", "broken.whl"], "broken.whl is damaged or cut short"),
        (["check", "--arch", "llama", "--static", "--junit", "no/such\0/junit.xml"], ""),
        (["cache", "--clear", "all the rest"], "the cache has no 'all the rest'"),
        (["matrix", "-t", "broken.whl"], "broken.whl is damaged or cut short"),
        (["watch", "--since", "yesterday"], "'yesterday' is not a release"),
        (["watch"], "nothing is recorded"),
        (["check"], "say which: --arch NAME, or --all"),
        (["check", "--arch", "llama", "--all"], "--all is every architecture; leave out one of them"),
        (["check", "--all", "--device", "cuda", "--static"], "--static runs no model; leave out one of them"),
        (["check", "--all", "--device", "cuda", "--record"], "were made on the CPU; leave out one of them"),
        (["check", "--all", "--device", "meta"], "the device 'meta' holds no numbers"),
        (["bench", "--arch", "llama", "--device", "nowhere"], "there is no device 'nowhere' here: "),
        (["bench", "--arch", "llama", "--device", "meta"], "there is no device 'meta' here: "),
        (["bench", "--arch", "llama", "--dtype", "int8"], "'int8' is not a floating dtype of torch"),
        (["matrix", "--every"], "say --records FILE"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_clear_line_and_exit_2(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.whl").write_bytes(b"PK\3\4 and then nothing")
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert said in " ".join(result.stderr.replace("│", " ").split())
    left = {path.name for path in tmp_path.rglob("*") if path.is_file() and "outcomes" not in path.parts}
    assert left <= {"broken.whl", "CACHEDIR.TAG"}


@pytest.mark.usefixtures("releases")
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=["Ctrl-C", "disk full"]
)
def test_a_matrix_that_is_not_finished_is_not_written(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in tmp_path.glob("*") if path.is_file()}

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("os.replace", fail)
    result = run("matrix", "--transformers", "./new", "-o", "matrix.md")
    assert result.exit_code == (130 if isinstance(error, KeyboardInterrupt) else 2)
    (line,) = result.stderr.splitlines()
    assert ("interrupted" if isinstance(error, KeyboardInterrupt) else "No space left on device") in line
    assert {path: path.read_bytes() for path in tmp_path.glob("*") if path.is_file() and path.suffix != ".lock"} == {
        path: content for path, content in before.items() if path.suffix != ".lock"
    }


@pytest.mark.usefixtures("releases")
def test_damaged_records_are_named(tmp_path: Path) -> None:
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write('{"release": "5.91.0"}\n')
    result = check("--arch", "llama")
    assert result.exit_code == 2
    assert re.search(r"records\.jsonl:\d+ is damaged: .*; restore the file, or delete the line", result.stderr)


@pytest.mark.usefixtures("releases")
def test_watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from packaging.version import Version

    from patchkit.upstream import index, releases

    known = {"5.90.0": "known", "5.91.0": "new"}
    monkeypatch.setattr(
        index, "list_versions", lambda wheels=None, package="transformers": [Version(version) for version in known]
    )
    monkeypatch.setattr(
        releases, "fetch", lambda version, wheels, package: releases.release_at(tmp_path / known[version])
    )
    result = run("watch", "--static", "--write")
    assert result.exit_code == 1, result.output
    assert result.stdout.startswith("new: 5.91.0\n")
    assert "to do: make the edits above" in result.stdout
    assert "| 5.91.0 | 5.90.0 |" in (tmp_path / "compat_matrix.md").read_text()
    again = run("watch", "--static")
    assert (again.exit_code, again.stdout) == (0, "nothing new: no release after 5.91.0 that the matrix lacks\n")


@pytest.mark.usefixtures("releases")
def test_cache(tmp_path: Path) -> None:
    check("--arch", "llama")
    assert re.search(r"│ outcomes +│ +\d+ │", run("cache").stdout)
    assert run("cache", "--clear", "outcomes").stdout.startswith("deleted ")
    assert not (tmp_path / "cache" / "outcomes").exists()
