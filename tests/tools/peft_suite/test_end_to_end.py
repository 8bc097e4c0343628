"""The whole tool on a small suite: what differs is found, with its reason in the exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
UTILITIES = """
CONFIG = dict(vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
              num_key_value_heads=1)
"""


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """A folder as an unpacked source distribution of PEFT: no ``tests/__init__.py``."""
    folder = tmp_path_factory.mktemp("peft")
    (folder / "tests").mkdir()
    (folder / "tests" / "test_fake.py").write_text((HERE / "fake_suite.py").read_text())
    (folder / "tests" / "testing_utils.py").write_text(UTILITIES)
    (folder / "tests" / "test_broken.py").write_text("import no_such_module_at_all\n")
    return folder


@pytest.fixture(scope="module")
def everything(suite):
    """The suite run once, on two processes, so that what is counted has to cross from one to the other."""
    json_file = suite / "outcomes.json"
    command = [sys.executable, "-W", "ignore", "-m", "tools.peft_suite", str(suite), "--stand-ins", "never"]
    command += ["--json", str(json_file), "--repeats", "0", "--jobs", "2"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode in (0, 1), result.stdout + result.stderr
    return result, json.loads(json_file.read_text())


WAYS = ("get_peft_model", "from_pretrained", "mixed", "inject_adapter_in_model", "tuner", "transformers")


def test_every_way_to_a_peft_model_is_patched(everything):
    result, found = everything
    faults = {one["test"].partition("::")[2]: one for one in found["differences"]}
    expected = {f"test_passes_plain_only[{way}]" for way in WAYS} | {"test_passes_patched_only"}
    assert set(faults) == expected
    assert result.returncode == 1
    assert "7 different results, and 0 of tests that are unstable without patchkit" in result.stdout
    for name, one in faults.items():
        plain, patched = ("failed", "passed") if name == "test_passes_patched_only" else ("passed", "failed")
        assert (one["plain"], one["patched"]) == ([plain], [patched])


@pytest.mark.parametrize(
    ("test", "result", "error"),
    [
        ("test_fake.py::test_runs_fused", "passed", ""),
        ("test_fake.py::test_same_random_numbers_in_every_run", "passed", ""),
        ("test_fake.py::test_no_apply_on_meta", "passed", ""),
        ("test_fake.py::test_fails_in_both", "failed", "LookupError"),
        ("test_fake.py::test_skipped", "skipped", "no such device"),
        ("test_fake.py::test_expected_to_fail", "xfailed", "ValueError"),
        ("test_fake.py::test_error", "error", "OSError"),
        ("test_broken.py", "error", "ModuleNotFoundError"),
    ],
)
def test_equal_outcomes(everything, test, result, error):
    _, found = everything
    for run_name in ("plain", "patched"):
        outcome = found[run_name][f"tests/{test}"]
        assert outcome["result"] == result
        assert error in outcome["error"]


def test_what_ran_patched_is_counted(everything):
    _, found = everything
    counts = found["patched"]["tests/test_fake.py::test_runs_fused"]["counts"]
    # One layer: an attention and an MLP; q/k/v and the MLP's activation are fused, and o has no adapter.
    assert counts == {"models patched": 1, "blocks patched": 2, "fused calls": 2}
    assert found["patched"]["tests/test_fake.py::test_no_apply_on_meta"]["counts"]["models on meta"] > 0
    assert found["fused"] == ["tests/test_fake.py::test_runs_fused"]
    assert not any(outcome["counts"] for outcome in found["plain"].values())
