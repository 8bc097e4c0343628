"""Source that no parser, recursion or search gets through: one part of the report, which names it, and the rest goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import synthetic_releases
from synthetic_releases import SMALL_LLAMA, folder_release, path_of, records_of
from typer.testing import CliRunner

from patchkit.arch.registry import find
from patchkit.check.results.formats import explanation
from patchkit.check.results.report import CheckReport
from patchkit.check.run import check_static
from patchkit.check.static import sweep as sweep_module
from patchkit.check.static.findings import Owner, owner_of_forward
from patchkit.check.static.records import Records
from patchkit.check.static.sweep import sweep
from patchkit.cli.main import app
from patchkit.errors import ReleaseError, RewriteError
from patchkit.rewrite.rewriter import rewrite
from patchkit.upstream.classes import class_table
from patchkit.upstream.method_text import MOST_NESTED, find_method
from patchkit.upstream.releases import release_at
from patchkit.upstream.text import failures_of

ATTENTION, MLP = SMALL_LLAMA.split("\n\n\n")
ASSIGNMENT = "        key = self.k_proj(hidden_states)\n"

EXPRESSIONS = {
    "not": "not " * 900 + "x",
    "sum": "x" + " + x" * 900,
    "attributes": "x" + ".a" * 900,
    "calls": "x" + "()" * 900,
    "lambdas": "lambda: " * 900 + "x",
    "conditions": "x if x else " * 900 + "x",
    "powers": "x**" * 900 + "x",
    "too deep for the parser": "-" * 9000 + "x",
    "strings side by side": "'a' " * 3000,
    "parentheses": "(" * 250 + "x" + ")" * 250,
}

STATEMENTS = {
    "elif": "        if x:\n            pass\n" + "        elif x:\n            pass\n" * 900,
    "null": "        x = '\0'\n",
    "large number": f"        x = {'9' * 5000}\n",
    "invalid": "        x = = 1\n",
    "unterminated": "        x = '''\n",
    "bytes": "        x = b'ü'\n",
    "surrogate": "        x = '\\ud800'\n",
} | {name: f"        x = {expression}\n" for name, expression in EXPRESSIONS.items()}

MODULES = {
    "base": f"class LlamaAttention({'f(' * 90}x{')' * 90}, {EXPRESSIONS['attributes']}):\n"
    + ATTENTION.partition("\n")[2],
    "large number in a base": ATTENTION.replace("nn.Module", f"Generic[0x{'f' * 5000}]"),
    "decorator": f"@{EXPRESSIONS['attributes']}\n{ATTENTION}",
    "default": ATTENTION.replace("self, hidden_states", f"self, hidden_states, x={EXPRESSIONS['sum']}"),
    "another method": f"{ATTENTION}\n    def other(self):\n        return {EXPRESSIONS['not']}\n",
    "module of conditions": f"{ATTENTION}\n\nif x:\n    pass\n" + "elif x:\n    pass\n" * 1500,
} | {name: ATTENTION.replace(ASSIGNMENT, ASSIGNMENT + text) for name, text in STATEMENTS.items()}


HARMLESS = {"surrogate", "large number in a base"}
"""Stranger than it looks, and no obstacle: these are rewritten."""


def check_beside_gemma(tmp_path: Path, llama: str | bytes) -> CheckReport:
    """The report on llama and gemma where both were fine before, and llama's file is this now."""
    gemma = SMALL_LLAMA.replace("Llama", "Gemma")
    known = folder_release(tmp_path / "known", "5.90.0", {path_of("llama"): SMALL_LLAMA, path_of("gemma"): gemma})
    new = folder_release(tmp_path / "new", "5.91.0", {path_of("gemma"): gemma})
    place = tmp_path / "new" / path_of("llama")
    place.parent.mkdir(parents=True)
    place.write_bytes(llama if isinstance(llama, bytes) else llama.encode())
    architectures = [find("llama"), find("gemma")]
    return check_static([new], architectures, records_of(known, "llama", "gemma"))


@pytest.mark.parametrize("kind", MODULES)
def test_one_class_is_not_the_whole_run(kind: str, tmp_path: Path) -> None:
    report = check_beside_gemma(tmp_path, f"{MODULES[kind]}\n\n\n{MLP}")
    verdicts = {(e.finding.architecture, e.part): e.verdict for e in report.entries}
    assert {part: verdicts["gemma", part] for part in ("qkv", "o", "mlp")} == dict.fromkeys(
        ("qkv", "o", "mlp"), "rewritten"
    )
    if kind in HARMLESS:
        assert not report.failed
        return
    faults = [e for e in report.entries if e.failed]
    assert {e.finding.architecture for e in faults} == {"llama"}
    assert {"qkv", "o"} <= {e.part for e in faults}
    for entry in faults:
        said = "\n".join([entry.release.version, *entry.outcome.reasons, *explanation(entry.diagnosis)])
        for name in ("5.91.0", "transformers/models/llama/modeling_llama.py:", entry.finding.class_name):
            assert name in said
        assert entry.verdict == "drifted"


def test_a_file_that_is_not_utf_8(tmp_path: Path) -> None:
    report = check_beside_gemma(tmp_path, SMALL_LLAMA.encode() + b"\n# \xff\n")
    faults = [e for e in report.entries if e.failed]
    assert {(e.finding.architecture, e.part) for e in faults} == {("llama", part) for part in ("qkv", "o", "mlp")}
    for entry in faults:
        assert "modeling_llama.py:1: the source is not UTF-8: invalid start byte at byte" in entry.outcome.reasons[0]


def test_a_release_that_is_the_first_is_unmatched_rather_than_drifted(tmp_path: Path) -> None:
    source = MODULES["not"]
    release = folder_release(tmp_path, "5.91.0", {path_of("llama"): f"{source}\n\n\n{MLP}"})
    report = check_static([release], [find("llama")], Records())
    assert {e.part: e.verdict for e in report.entries} == {"qkv": "unmatched", "o": "unmatched", "mlp": "rewritten"}
    assert report.failed


def test_a_class_that_is_searched_for_in_files_that_cannot_be_read(tmp_path: Path) -> None:
    """The class is gone, and is looked for in every file of the release."""
    known = folder_release(tmp_path / "known", "5.90.0", {path_of("llama"): SMALL_LLAMA})
    new = folder_release(
        tmp_path / "new",
        "5.91.0",
        {path_of("llama"): ATTENTION, "transformers/models/a/modeling_a.py": f"{MODULES['base']}\n\n\n{MLP}"},
    )
    (tmp_path / "new/transformers/models/b").mkdir()
    (tmp_path / "new/transformers/models/b/modeling_b.py").write_bytes(b"class LlamaMLP: # \xff")
    report = check_static([new], [find("llama")], records_of(known, "llama"))
    (entry,) = (e for e in report.entries if e.failed)
    assert (entry.part, entry.verdict) == ("mlp", "drifted")


def heap_of_bases(depth: int) -> str:
    """Every class names the next ten times, in ways that Python would refuse and a reader has to bear."""
    classes = [f"class C{n}({', '.join([f'C{n + 1}'] * 10)}, C0, C{n}):\n    pass\n" for n in range(depth)]
    return "\n".join([f"class LlamaAttention({', '.join(['C0'] * 10)}):\n    pass\n", *classes])


@pytest.mark.parametrize("last", ["", ATTENTION.replace("LlamaAttention", "C3000")], ids=["without forward", "with"])
def test_repeated_and_circular_bases_are_each_looked_at_once(last: str, tmp_path: Path) -> None:
    source = f"{heap_of_bases(3000)}\n\n{last}"
    release = folder_release(tmp_path, "5.91.0", {path_of("llama"): source})
    reads = []
    object.__setattr__(release, "read", lambda path: (reads.append(path), source)[1])
    found = owner_of_forward(release, find("llama").module, "LlamaAttention")
    assert len(reads) == 1
    if last:
        assert isinstance(found, Owner)
        assert found.entry.name == "C3000"
    else:
        assert found == f"{path_of('llama')}:1: class LlamaAttention has no forward, and no base with one is found"


def test_bases_that_go_round_in_a_circle_of_modules(tmp_path: Path) -> None:
    files = {
        f"transformers/models/m{n}/modeling_m{n}.py": f"from ..m{(n + 1) % 9}.modeling_m{(n + 1) % 9} import C as B\n"
        "class C(B, B, B):\n    pass\n"
        for n in range(9)
    }
    release = folder_release(tmp_path, "5.91.0", files)
    found = owner_of_forward(release, "transformers.models.m0.modeling_m0", "C")
    assert found == "transformers/models/m0/modeling_m0.py:2: class C has no forward, and no base with one is found"


def test_the_first_base_from_the_left_that_has_forward_is_taken(tmp_path: Path) -> None:
    source = (
        "class A: pass\nclass B(A):\n    def forward(self): pass\nclass C:\n    def forward(self): pass\n"
        "class D(A, B, C): pass\nclass E(D, C): pass\n"
    )
    release = folder_release(tmp_path, "5.91.0", {path_of("llama"): source})
    found = owner_of_forward(release, find("llama").module, "E")
    assert isinstance(found, Owner)
    assert found.entry.name == "B"


def test_many_heirs(tmp_path: Path) -> None:
    """Each is a class that somebody may use: those that are not looked at are said to be unmatched."""
    heirs = [
        f"class H{n}(LlamaAttention):\n    def forward(self, x):\n        return self.o_proj(x)\n" for n in range(90)
    ]
    source = "\n".join([SMALL_LLAMA, *heirs])
    assert len(class_table(source, "a.py").heirs("LlamaAttention")) == 90
    release = folder_release(tmp_path, "5.91.0", {path_of("llama"): source})
    findings = [f for f in sweep([release], [find("llama")]) if f.class_name.startswith("H")]
    looked_at = [f for f in findings if f.parts["o"].rules]
    assert (len(findings), len(looked_at)) == (90, 64)
    for finding in findings[64:]:
        assert finding.parts["o"].reasons[0].startswith(f"{path_of('llama')}:")
        assert not finding.parts["o"].absent


def test_a_process_that_dies_of_one_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gemma = SMALL_LLAMA.replace("Llama", "Gemma")
    files = {path_of("llama"): SMALL_LLAMA, path_of("gemma"): gemma}
    release = folder_release(tmp_path, "5.91.0", files)
    monkeypatch.setenv("PYTHONPATH", str(Path(synthetic_releases.__file__).parent))
    monkeypatch.setattr(sweep_module, "ANSWER", "dying_worker:answer")
    found = sweep([release], [find("llama"), find("gemma")], processes=2)
    rules = {(f.architecture, f.class_name): [bool(part.rules) for part in f.parts.values()] for f in found}
    assert rules == {
        ("llama", "LlamaAttention"): [False, False],
        ("llama", "LlamaMLP"): [False],
        ("gemma", "GemmaAttention"): [True, True],
        ("gemma", "GemmaMLP"): [True],
    }
    said = f"{path_of('llama')}:1: the process that read it died"
    assert all(part.reasons[0].startswith(said) for f in found[:2] for part in f.parts.values())


@pytest.mark.parametrize("kind", STATEMENTS)
def test_the_rewriter_raises_its_own_error_alone(kind: str) -> None:
    """Also where little is left of the stack."""
    source = MODULES[kind]
    block = find("llama").blocks[0]
    for used in (0, 300):
        if kind in HARMLESS:
            assert called_at_depth(used, lambda: rewrite(source, block, filename="a.py")).sites
        else:
            with pytest.raises(RewriteError, match=r"^a\.py:"):
                called_at_depth(used, lambda: rewrite(source, block, filename="a.py"))


def called_at_depth(depth: int, function):
    return called_at_depth(depth - 1, function) if depth else function()


def test_what_is_nested_as_deep_as_allowed_is_rewritten() -> None:
    block = find("llama").blocks[0]
    for levels, fine in ((MOST_NESTED - 8, True), (MOST_NESTED + 1, False)):
        source = ATTENTION.replace(ASSIGNMENT, f"{ASSIGNMENT}        x = {'not ' * levels}x\n")
        if fine:
            assert len(called_at_depth(200, lambda s=source: rewrite(s, block)).sites) == 2
        else:
            with pytest.raises(RewriteError, match="forward is nested too deeply to rewrite"):
                find_method(source, "LlamaAttention", "forward", "a.py")


@pytest.mark.parametrize("error", [RecursionError(), MemoryError(), ValueError("x"), KeyError("x"), AssertionError()])
def test_failures_of(error: Exception) -> None:
    def fail() -> None:
        with failures_of("a.py", "it fails", 7):
            raise error

    with pytest.raises(RewriteError, match=r"^a\.py:7: it fails: ") as raised:
        fail()
    assert raised.value.__cause__ is error


def test_a_passing_failure_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process had no memory; the next one has."""
    from patchkit.rewrite import rewriter

    release = folder_release(tmp_path, "5.91.0", {path_of("llama"): SMALL_LLAMA})

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(rewriter, "find_method", fail)
        failed = check_static([release], [find("llama")], Records())
    assert {e.verdict for e in failed.entries} == {"unmatched"}
    assert {e.verdict for e in check_static([release], [find("llama")], Records()).entries} == {"rewritten"}


def test_diff_names_the_file_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from patchkit.arch import registry

    for name, content in (("bad", b"# \xff"), ("deep", MODULES["not"].encode()), ("fine", SMALL_LLAMA.encode())):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        (tmp_path / name / "modeling.py").write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    known = {name: replace(find("llama"), name=name, module=f"{name}.modeling") for name in ("bad", "deep", "fine")}
    monkeypatch.setattr(registry, "architectures", lambda: known)
    result = CliRunner().invoke(app, ["diff", "--arch", "*"])
    assert result.exit_code == 2
    errors = result.stderr.splitlines()
    assert [line.split(":")[2].strip() for line in errors] == ["bad/modeling.py", "deep/modeling.py"]
    assert "self.apply_mlp(x)" in result.stdout


@pytest.mark.parametrize(
    "text", ["__version__ = 'x'\n", f"__version__ = {'-' * 9000}1\n", f"x = {'a.' * 5000}b\n", "\0"]
)
def test_a_checkout_whose_version_cannot_be_read(text: str, tmp_path: Path) -> None:
    folder_release(tmp_path, "5.91.0", {path_of("llama"): SMALL_LLAMA})
    (tmp_path / "transformers" / "__init__.py").write_text(text)
    with pytest.raises(ReleaseError, match=r"__init__\.py"):
        release_at(tmp_path)
