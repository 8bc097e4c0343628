"""The tool on a small package with tests of its own: what is killed, what survives, and that a run goes on."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.mutants.copies import files_of
from tools.mutants.finding import mutants_of
from tools.mutants.mirror import Mirror, MirrorError, read_mirror
from tools.mutants.mutant import Mutant
from tools.mutants.results import Baseline, Result, Store
from tools.mutants.running import FailsUnmutatedError, Runner
from tools.mutants.tables import difference, tally

SOURCE = '''"""A file with a guard that is tested, one that is not, and a loop."""


def inside(x, low, high):
    return low <= x and x < high


def unguarded(x):
    return x > 3


def count_down(x):
    while x > 0:
        x -= 1
    return x
'''

TESTS = """
from package.thing import count_down, inside, unguarded

def test_inside():
    assert [inside(x, 1, 3) for x in range(5)] == [False, True, True, False, False]

def test_unguarded():
    assert unguarded(5)

def test_count_down():
    assert count_down(3) == 0
"""

DECLARED = """
preload = ["pytest"]
arguments = ["-m", "not slow"]
roots = ["."]
[rooms]
only = ["package/*.py"]
"""


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one source file and one test file."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # they take longer than these tests
    root = tmp_path / "repository"
    for name, text in {
        "package/__init__.py": "",
        "package/thing.py": SOURCE,
        "tests/test_thing.py": TESTS,
        "mirror.toml": DECLARED,
        ".gitignore": "ignored\n",
        "ignored": "",
        "pytest.ini": "[pytest]\nmarkers = slow\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    return root


@pytest.fixture
def mirror(tree: Path) -> Mirror:
    return read_mirror(tree, tree / "mirror.toml")


@pytest.fixture
def run(tree: Path, mirror: Mirror, tmp_path: Path) -> Callable[..., tuple[dict[str, Result], list[str]]]:
    """Tries mutants of the file, picked by operator and the code they leave."""

    def run(*mutants: Mutant) -> tuple[dict[str, Result], list[str]]:
        said: list[str] = []
        store = Store(tmp_path / "results.jsonl")
        return Runner(mirror, store, tmp_path / "work", 1, said.append).run(mutants), said

    return run


def mutant(operator: str, after: str, text: str = SOURCE) -> Mutant:
    return next(m for m in mutants_of("package/thing.py", text) if m.operator == operator and m.code()[1] == after)


def test_killed_survived_and_timed_out(run, tree, monkeypatch):
    monkeypatch.setattr("tools.mutants.running.START_SECONDS", 5.0)
    monkeypatch.setattr("tools.mutants.running.PATIENCE", 5.0)
    killed, survived = mutant("boundary", "x <= high"), mutant("boundary", "x >= 3")
    endless = mutant("drop update", "pass")
    before = {name: (tree / name).read_bytes() for name in files_of(tree)}
    found, _ = run(killed, survived, endless)
    assert {m.code()[1]: found[m.key].verdict for m in (killed, survived, endless)} == {
        "x <= high": "killed",
        "x >= 3": "survived",
        "pass": "timed out",
    }
    assert found[killed.key].by == "tests/test_thing.py::test_inside"
    assert not found[killed.key].loud
    assert {name: (tree / name).read_bytes() for name in files_of(tree)} == before
    count = tally([killed, survived, endless], found, {survived.key: "because"})
    assert count.rate == 0.5
    assert count.counts == {"killed": 1, "timed out": 1, "equivalent": 1}


def test_what_is_known_is_not_tried_again_until_a_test_changes(run, tree):
    killed, survived = mutant("boundary", "x <= high"), mutant("boundary", "x >= 3")
    first, _ = run(killed, survived)
    again, said = run(killed, survived)
    assert again == first
    assert said == []
    tests = tree / "tests" / "test_thing.py"
    tests.write_text(TESTS + "    assert not unguarded(3)\n".replace("    ", "\ndef test_boundary():\n    ", 1))
    after, said = run(killed, survived)
    assert after[survived.key].verdict == "killed"
    assert after[survived.key].by.endswith("test_boundary")
    assert after[killed.key] == first[killed.key]
    assert not any("x <= high" in line for line in said)


def test_a_source_that_changed_is_tried_again(run, tree):
    survived = mutant("boundary", "x >= 3")
    first, _ = run(survived)
    text = SOURCE + "\n"
    (tree / "package" / "thing.py").write_text(text)
    other = mutant("boundary", "x >= 3", text)
    found, said = run(other)
    assert other.key not in first
    assert found[other.key].verdict == "survived"
    assert said


def test_a_mutant_that_cannot_be_imported_is_loud(run, tree):
    text = SOURCE + "\nTABLE = [1, 2]\nLAST = TABLE[1]\n"
    (tree / "package" / "thing.py").write_text(text)
    loud = next(m for m in mutants_of("package/thing.py", text) if m.operator == "off by one")
    found, _ = run(loud)
    assert found[loud.key].verdict == "killed"
    assert found[loud.key].loud


def test_files_that_cannot_be_imported_without_a_fault_prove_nothing(run, tree):
    (tree / "tests" / "test_thing.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(FailsUnmutatedError, match=r"tests/test_thing\.py fails without a fault"):
        run(mutant("boundary", "x >= 3"))


def test_a_test_that_is_red_anyway_kills_nothing(run, tree):
    """Whatever its id looks like; the others go on."""
    red = "import pytest\n@pytest.mark.parametrize('x', [1], ids=['a - b c'])\ndef test_red(x): assert False\n" + TESTS
    (tree / "tests" / "test_thing.py").write_text(red)
    killed, survived = mutant("boundary", "x <= high"), mutant("boundary", "x >= 3")
    found, said = run(killed, survived)
    assert (found[killed.key].verdict, found[survived.key].verdict) == ("killed", "survived")
    assert found[killed.key].by.endswith("test_inside")
    (line,) = [line for line in said if line.startswith("left out")]
    assert "tests/test_thing.py::test_red fails without a fault" in line


def test_a_file_whose_tests_are_all_left_out_kills_nothing(run, tree):
    (tree / "tests" / "test_thing.py").write_text("import pytest\n@pytest.mark.slow\ndef test_thing(): assert False\n")
    survived = mutant("boundary", "x >= 3")
    assert run(survived)[0][survived.key].verdict == "survived"


def test_a_source_without_tests_is_an_error(tree, mirror):
    (tree / "tests" / "test_thing.py").unlink()
    with pytest.raises(MirrorError, match="no test mirrors"):
        mirror.tests("package/thing.py")


def test_the_tests_of_a_source(tree, mirror):
    for name in ("tests/test_thing_more.py", "tests/test_others.py"):
        (tree / name).touch()
    assert mirror.sources("only") == ["package/thing.py"]
    assert mirror.tests("package/thing.py") == ["tests/test_thing.py", "tests/test_thing_more.py"]
    (tree / "mirror.toml").write_text(
        DECLARED + '[[extra]]\nsources = ["package/t*.py"]\ntests = ["tests/test_o*.py"]\nwhy = "both"\n'
    )
    extended = read_mirror(tree, tree / "mirror.toml")
    assert extended.tests("package/thing.py")[-1] == "tests/test_others.py"


def test_ignored_files_are_not_copied(tree):
    assert "ignored" not in files_of(tree)
    assert "package/thing.py" in files_of(tree)


def test_half_a_line_is_no_result(tmp_path: Path):
    path = tmp_path / "results.jsonl"
    store = Store(path)
    store.add(Result("a", "killed", "t", False, 1.0, "s"))
    store.add(Baseline("tests/test_a.py", "s", 2.0))
    with path.open("a") as file:
        file.write('{"key": "b", "verd')
    store = Store(path)
    assert store.result("b", "s") is None
    store.add(Result("c", "survived", "", False, 1.0, "s"))
    store = Store(path)
    assert [store.result(key, "s") is not None for key in "abc"] == [True, False, True]
    assert store.baseline("tests/test_a.py", "s") == Baseline("tests/test_a.py", "s", 2.0)
    assert store.result("a", "other tests") is not None, "a test that kills goes on killing"
    assert store.result("c", "other tests") is None


def test_a_survivor_is_shown_as_a_diff():
    shown = difference(mutant("boundary", "x >= 3"), SOURCE)
    assert "-    return x > 3\n+    return x >= 3" in shown
    assert "package/thing.py" in shown
