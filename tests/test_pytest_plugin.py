"""``pytest --patchkit-arch``: a test for each part of each block, faults without tracebacks, and no cost where unused."""

from __future__ import annotations

import subprocess
import sys

import pytest

from patchkit.check.architecture import verification as room
from patchkit.check.architecture.verification import NUMBERS, Verdict, Verification
from patchkit.errors import ReleaseError

pytest_plugins = ["pytester"]

FINE = (
    Verdict("LlamaAttention", "qkv", "rewritten by qkv-together"),
    Verdict("LlamaAttention", "o", "rewritten by output-call"),
    Verdict("LlamaMLP", "mlp", "rewritten by gated-mlp"),
    Verdict("LlamaAttention", NUMBERS, "passed in llama"),
    Verdict("LlamaMLP", NUMBERS, "passed in llama"),
)
NAMES = [
    f"patchkit::llama::{name}"
    for name in ("LlamaAttention::qkv", "LlamaAttention::o", "LlamaAttention::numbers", "LlamaMLP::mlp", "LlamaMLP::numbers")
]  # fmt: skip


@pytest.fixture
def run(pytester, monkeypatch):
    """Runs pytest with the plugin, in this process; what verification finds is made up."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    asked = []

    def _run(*arguments, verdicts=FINE):
        def verification(name):
            asked.append(name)
            if isinstance(verdicts, Exception):
                raise verdicts
            return Verification(name, "transformers 9", tuple(verdicts))

        monkeypatch.setattr(room, "verification", verification)
        result = pytester.runpytest_inprocess("-p", "patchkit.pytest_plugin", "-v", *arguments)
        return result, asked

    return _run


def outcomes(result):
    lines = [line.split() for line in result.outlines if line.startswith("patchkit::")]
    return {line[0]: line[1] for line in lines}


def test_a_test_for_each_part_and_for_the_numbers(run):
    result, asked = run("--patchkit-arch", "llama")
    assert outcomes(result) == dict.fromkeys(NAMES, "PASSED")
    assert result.ret == 0
    assert asked == ["llama"], "all of them share one verification"


def test_beside_other_tests_and_chosen_like_them(run, pytester):
    pytester.makepyfile("def test_one():\n    pass\ndef test_two():\n    pass\n")
    run_all, _ = run("--patchkit-arch", "llama")
    run_all.assert_outcomes(passed=7)
    chosen, _ = run("--patchkit-arch", "llama", "-k", "numbers or two")
    chosen.assert_outcomes(passed=3, deselected=4)


def test_globs_and_towers_of_other_architectures(run):
    result, asked = run("--patchkit-arch", "llav*", "--patchkit-arch", "pixtral")
    assert {name.split("::")[1] for name in outcomes(result)} == {"llava", "pixtral"}
    assert "patchkit::llava::LlamaAttention::qkv" in outcomes(result), "that of its text model"
    assert asked == ["llava", "pixtral"]


def test_a_fault_is_told_without_a_traceback(run):
    fault = Verdict("LlamaAttention", "o", "not rewritten", ("`self.dense` is never called",))
    result, _ = run("--patchkit-arch", "llama", verdicts=[FINE[0], fault, *FINE[2:]])
    assert [name for name, outcome in outcomes(result).items() if outcome == "FAILED"] == [NAMES[1]]
    result.stdout.fnmatch_lines(["LlamaAttention o: not rewritten", "    `self.dense` is never called"])
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*pytest_plugin.py*")


def test_numbers_that_nothing_showed_fail_for_every_block(run):
    nothing = Verdict("", NUMBERS, "acme: not shown", ("its tiny model cannot be built",))
    result, _ = run("--patchkit-arch", "llama", verdicts=[*FINE[:3], nothing])
    assert [name for name, outcome in outcomes(result).items() if outcome == "FAILED"] == [NAMES[2], NAMES[4]]
    result.stdout.fnmatch_lines(["    its tiny model cannot be built"])


def test_no_verdict_is_no_pass(run):
    result, _ = run("--patchkit-arch", "llama", verdicts=FINE[1:])
    assert outcomes(result)[NAMES[0]] == "FAILED"
    result.stdout.fnmatch_lines(["LlamaAttention qkv: nothing was shown"])


def test_an_error_is_that_of_each_test(run):
    result, asked = run("--patchkit-arch", "llama", verdicts=ReleaseError("acme is not installed"))
    assert outcomes(result) == dict.fromkeys(NAMES, "FAILED")
    assert len(asked) == 1
    result.stdout.fnmatch_lines(["acme is not installed"])


def test_an_unknown_name_is_wrong_usage(run):
    result, _ = run("--patchkit-arch", "lama")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--patchkit-arch: unknown architecture 'lama'; did you mean llama*"])


def test_without_the_option_nothing_is_loaded(pytester):
    pytester.makepyfile(
        "import sys\ndef test():\n    assert not {'torch', 'transformers', 'patchkit.arch'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "patchkit.pytest_plugin"]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})
    assert "1 passed" in done.stdout, done.stdout + done.stderr
