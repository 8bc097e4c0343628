"""The comparison of two runs, without running any."""

from __future__ import annotations

import pytest

from tools.peft_suite.outcomes import MISSING, Outcome, compare, read, write


def of(*results, **counts):
    return {f"tests/test_a.py::test_{i}": Outcome(result, counts=counts) for i, result in enumerate(results)}


@pytest.mark.parametrize(
    ("plain", "patched", "repeats", "expected"),
    [
        (of("passed"), of("passed"), [], None),
        (of("failed"), of("failed"), [], None),
        (of("passed"), of("failed"), [], (("passed",), ("failed",), False)),
        (of("failed"), of("passed"), [], (("failed",), ("passed",), False)),
        (of("passed"), of("skipped"), [], (("passed",), ("skipped",), False)),
        (of("passed"), of("error"), [], (("passed",), ("error",), False)),
        (of("xfailed"), of("xpassed"), [], (("xfailed",), ("xpassed",), False)),
        (of("passed"), {}, [], (("passed",), (MISSING,), False)),
        ({}, of("passed"), [], ((MISSING,), ("passed",), False)),
        # That it passes when run again is no excuse, as long as it always passes without patchkit.
        (
            of("passed"),
            of("failed"),
            [(of("passed"), of("passed"))],
            (("passed", "passed"), ("failed", "passed"), False),
        ),
        (
            of("passed"),
            of("failed"),
            [(of("failed"), of("passed"))],
            (("passed", "failed"), ("failed", "passed"), True),
        ),
    ],
)
def test_difference(plain, patched, repeats, expected):
    comparison = compare(plain, patched, repeats)
    found = [(one.plain, one.patched, one.unstable) for one in comparison.differences]
    assert found == ([] if expected is None else [expected])
    assert len(comparison.faults) == sum(not unstable for *_, unstable in found)


def test_only_tests_that_pass_through_fused_functions_prove_something():
    plain = of("passed", "failed", "passed", "skipped")
    patched = of("passed", "failed", "failed", "skipped", **{"fused calls": 3, "models patched": 1})
    comparison = compare(plain, patched)
    assert comparison.fused == comparison.patched_tests == ("tests/test_a.py::test_0",)
    assert comparison.counts == {"fused calls": 12, "models patched": 4}
    assert compare(plain, of("passed", **{"models patched": 1})).fused == ()
    assert comparison.results == {"passed": 1, "failed": 1, "skipped": 1}
    assert compare(plain, of("passed", "failed", "failed", "skipped")).fused == ()


@pytest.mark.parametrize(
    ("result", "error", "expected"),
    [
        ("failed", "AssertionError: 1 != 2", "AssertionError"),
        (
            "failed",
            "assert False + where False = <built-in method allclose of type object at 0x7f1b67>",
            "AssertionError",
        ),
        (
            "error",
            "huggingface_hub.errors.LocalEntryNotFoundError: no file",
            "huggingface_hub.errors.LocalEntryNotFoundError",
        ),
        ("failed", "KeyError", "KeyError"),
        ("failed", "worker 'gw0' crashed while running t", ""),
        ("skipped", "Skipped: no device", ""),
    ],
)
def test_class_of_the_exception(result, error, expected):
    assert Outcome(result, error).error_type == expected


def test_failures_with_two_exceptions_are_named():
    plain = {"t": Outcome("failed", "OSError: no hub"), "u": Outcome("failed", "assert 1 == 2")}
    patched = {"t": Outcome("failed", "AttributeError: apply_o"), "u": Outcome("failed", "assert 1 == 3")}
    assert compare(plain, patched).other_errors == ("t",)


def test_written_and_read_again(tmp_path):
    run = of("passed", **{"models patched": 2}) | {"u": Outcome("failed", "ValueError: «é»")}
    write(run, tmp_path / "run.json")
    assert read(tmp_path / "run.json") == run
