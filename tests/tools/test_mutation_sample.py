"""The sample, and what the repository declares for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools.mutants.equivalent import Equivalent, Equivalents, read_equivalents
from tools.mutants.finding import is_fault, mutants_of
from tools.mutants.known import KnownFaultError, known_mutants
from tools.mutants.mirror import read_mirror
from tools.mutants.sample import sample

ROOT = Path(__file__).parents[2]

CODE = "def f{0}(a, b):\n    if a and b == 1 and a < 3:\n        return None\n    return a + b * 2 + max(a, b)[0]\n\n\n"


def rooms(*numbers: int):
    return {f"room{n}": mutants_of(f"{n}.py", "".join(CODE.format(i) for i in range(n))) for n in numbers}


def keys(drawn):
    return {room: [(m.file, m.function, m.operator, m.code()) for m in found] for room, found in drawn.items()}


def test_a_seed_gives_one_sample():
    given = rooms(3, 4)
    one, same, other = (sample(given, 20, seed, lambda mutant: True) for seed in (1, 1, 2))
    assert keys(one) == keys(same) != keys(other)


def test_rooms_get_equal_shares_and_leave_what_they_lack():
    given = rooms(1, 9)
    drawn = sample(given, 12, 1, lambda mutant: True)
    assert {room: len(found) for room, found in drawn.items()} == {"room1": 6, "room9": 6}
    small = len(given["room1"])
    drawn = sample(given, 60, 1, lambda mutant: True)
    assert {room: len(found) for room, found in drawn.items()} == {"room1": small, "room9": 60 - small}


def test_the_sample_is_larger_than_all_there_is():
    given = rooms(1)
    drawn = sample(given, 1000, 1, lambda mutant: True)
    assert len({mutant.key for mutant in drawn["room1"]}) == len(given["room1"])


def test_every_operator_is_drawn_before_one_is_drawn_twice():
    given = rooms(9)
    operators = {mutant.operator for mutant in given["room9"]}
    drawn = sample(given, len(operators), 1, lambda mutant: True)
    assert {mutant.operator for mutant in drawn["room9"]} == operators


def test_only_faults_are_drawn():
    drawn = sample(rooms(2), 10, 1, lambda mutant: mutant.operator == "boundary")
    assert {mutant.operator for mutant in drawn["room2"]} == {"boundary"}


def test_another_function_changes_no_rank():
    before, after = rooms(2)["room2"], mutants_of("2.py", CODE.format(7) + "".join(CODE.format(i) for i in range(2)))
    ranks = {mutant.rank(1) for mutant in after}
    assert {mutant.rank(1) for mutant in before} <= ranks


def test_an_equivalent_is_known_by_its_code_and_its_function():
    (mutant, *_) = mutants_of("a.py", "def f(a, b):\n    return a and b\n")
    entry = Equivalent("a.py", "f", "drop condition", "a and b", "b", "because")
    assert Equivalents([entry]).argument(mutant) == "because"
    for other in ("a.py g", "b.py f"):
        file, function = other.split()
        (elsewhere, *_) = mutants_of(file, f"def {function}(a, b):\n    return a and b\n")
        assert Equivalents([entry]).argument(elsewhere) is None
    assert Equivalents([entry]).stale([mutant]) == []
    assert Equivalents([entry]).stale(mutants_of("a.py", "x = 1")) == [entry]


# --- the repository's own declaration -------------------------------------------------------------------------------


def test_every_source_file_has_tests():
    mirror = read_mirror(ROOT)
    for room in mirror.rooms:
        sources = mirror.sources(room)
        assert sources, room
        for source in sources:
            assert mirror.tests(source), source


def test_every_pattern_means_something():
    mirror = read_mirror(ROOT)
    for extra in mirror.extras:
        assert extra.why
        for pattern in (*extra.sources, *extra.tests):
            assert list(ROOT.glob(pattern)), pattern


def test_every_equivalent_still_exists():
    equivalents = read_equivalents()
    files = {entry.file for entry in equivalents.entries}
    found = [mutant for file in files for mutant in mutants_of(file, (ROOT / file).read_text("utf-8"))]
    assert equivalents.stale(found) == []
    assert all(len(entry.argument) > 20 for entry in equivalents.entries)


def test_every_known_fault_can_still_be_made():
    for mutant in known_mutants(ROOT):
        assert is_fault(mutant, (ROOT / mutant.file).read_text("utf-8")), mutant.function
        assert read_mirror(ROOT).tests(mutant.file)


def test_a_known_fault_whose_code_is_gone_is_an_error(tmp_path: Path):
    (tmp_path / "a.py").write_text("x = 1\ny = 2\nz = 2\n")
    entry = '[[fault]]\nname = "n"\neffect = "e"\nfile = "a.py"\nafter = "4"\nbefore = '
    listed = tmp_path / "known.toml"
    listed.write_text(entry + '"1"\n')
    (mutant,) = known_mutants(tmp_path, listed)
    assert (mutant.line, mutant.column, mutant.function, mutant.make()) == (1, 4, "n", "x = 4\ny = 2\nz = 2\n")
    for before in ('"3"', '"2"'):
        listed.write_text(entry + before + "\n")
        with pytest.raises(KnownFaultError, match="for the fault 'n': e"):
            known_mutants(tmp_path, listed)


@pytest.mark.parametrize(("arguments", "code", "said"), [
    (["--list", "--sample", "2", "--files", "*/silu.py"], 0, "patchkit_kernels/ops/silu.py"),
    (["--room", "nowhere"], 2, "there is no room"),
])  # fmt: skip
def test_the_command(arguments, code, said):
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tools.mutants", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert ran.returncode == code, ran.stderr
    assert said in ran.stdout + ran.stderr
