"""Every section on a CPU, in this process: the cells are asked, nothing is measured."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from importlib.metadata import version

import pytest

from tools.gpu import __main__ as command
from tools.gpu import contenders, places
from tools.gpu.cells import NotRun, Setting, Wrong
from tools.gpu.places import ROOT, surroundings
from tools.gpu.sections import contract, environment, kernels
from tools.gpu.table_of_sections import SECTIONS
from tools.gpu.worker import MAKING

FAKE_BENCH = (sys.executable, str(ROOT / "tests" / "tools" / "gpu" / "fake_bench.py"), "passes")
CPU = Setting("cpu", True)


@pytest.fixture
def quiet(monkeypatch):
    """The variables that the command sets are this test's; the contenders are other tests'."""
    for name, value in surroundings().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(contenders, "COMMAND", FAKE_BENCH)


@pytest.mark.usefixtures("quiet")
@pytest.mark.filterwarnings("ignore")
def test_all_of_it_is_rehearsed(tmp_path, capsys):
    out = tmp_path / "gpu.json"
    code = command.main(["--device", "cpu", "--tiny", "--inline", "--out", str(out)])
    result = json.loads(out.read_text("utf-8"))
    shown = capsys.readouterr().out
    assert [part["section"] for part in result["sections"]] == [section.name for section in SECTIONS]
    failed = [one for part in result["sections"] for one in part["outcomes"] if one["status"] == "failed"]
    assert not failed
    assert code == 0
    assert result["rehearsal"] is True
    for part in result["sections"]:
        assert any(one["status"] == "passed" for one in part["outcomes"]), part
        assert f"{part['section']:<12} " in shown
    of = {part["section"]: {one["cell"]: one for one in part["outcomes"]} for part in result["sections"]}
    assert of["environment"]["patchkit.apply"]["figures"]["levels"] == {"fused": 6}
    assert of["contract"]["llama forward_backward"]["figures"]["levels"] == {"fused": 6}
    assert of["contract"]["llama forward_backward"]["figures"]["error"] <= 1e-5
    assert of["layer"]["tiny"]["figures"]["512 A: peft ms"] == 2.5
    assert of["graphs"]["capture LoRA, bfloat16"]["reason"] == "cpu has no CUDA graphs"
    assert "environment: driver: not run: " in shown or of["environment"]["driver"]["status"] == "passed"


@pytest.mark.usefixtures("quiet")
def test_a_failed_cell_is_in_the_table_and_the_exit_code(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(environment, "_settings", lambda: 1 / 0)
    out = tmp_path / "gpu.json"
    arguments = ["--device", "cpu", "--tiny", "--inline", "--only", "environment", "--out", str(out)]
    assert command.main(arguments) == 1
    assert "settings of torch: failed: ZeroDivisionError: division by zero" in capsys.readouterr().out


def test_a_cpu_measures_nothing(capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["--device", "cpu"])
    assert ended.value.code == 2
    assert "--device cpu wants --tiny" in capsys.readouterr().err


def test_without_the_device_nothing_runs_and_nothing_is_written_over(tmp_path, capsys):
    out = tmp_path / "gpu.json"
    out.write_text("what a device measured")
    with pytest.raises(SystemExit) as ended:
        command.main(["--device", "cuda:99", "--out", str(out)])
    assert ended.value.code == 2
    error = capsys.readouterr().err.replace("\n", " ")
    assert "there is no device 'cuda:99' here: " in error
    assert "--device cpu --tiny rehearses on a CPU" in error
    assert out.read_text() == "what a device measured"


def test_without_torch_the_sections_say_what_is_missing(tmp_path, monkeypatch):
    assert places.why_no_device("cpu") is None
    (tmp_path / "torch.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(places, "ROOT", tmp_path)
    assert places.why_no_device("cuda:99") is None


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
def test_cells_of_a_device_have_names_of_their_own(section):
    """What a device is asked, listed without one."""
    names = [cell.name for cell in section.cells(Setting("cuda"))]
    assert len(names) == len(set(names)) > 2
    assert MAKING not in names


def test_every_case_of_the_kernels_is_asked():
    made = kernels.cells(Setting("cuda"))
    asked = [
        case.id
        for cell in made
        if hasattr(cell.ask, "args") and cell.ask.func is kernels.judge
        for case in cell.ask.args[0]
    ]
    tables = [importlib.import_module(path.stem) for path in kernels.FOLDER.glob("*_cases.py")]
    wanted = [case.id for table in tables for case in getattr(table, "CASES", ())]
    assert len(wanted) > 500
    assert sorted(asked) == sorted(wanted)


@pytest.mark.parametrize(
    "cell", [one for one in contract._ways(CPU) if "compile" not in one.name], ids=lambda one: one.name
)
def test_every_way_of_computing_keeps_the_contract(cell):
    """With operands and sums of a device, emulated."""
    figures = cell.ask()
    assert figures["error"] <= figures["limit"]


def test_a_case_that_complains_stops_no_other():
    class Case:
        def __init__(self, name):
            self.id = name

    def complaint(case, device):
        if case.id == "raises":
            raise RuntimeError("no such kernel")
        return "off" if case.id == "off" else None

    cases = [Case(name) for name in ("raises", "fine", "off")]
    with pytest.raises(kernels.Wrong, match="2 of 3 cases, the first raises: RuntimeError: no such kernel") as wrong:
        kernels.judge(cases, complaint, "cpu")
    assert wrong.value.figures["complaints"] == {"raises": "RuntimeError: no such kernel", "off": "off"}
    assert kernels.judge(cases[1:2], complaint, "cpu") == {"cases": 1}


def test_what_is_captured_is_a_fused_step():
    """The part of a capture that a CPU can run: outputs and gradients of both calls, by fused functions."""
    import torch

    from patchkit.testing import fused_calls
    from tools.gpu.sections import graphs

    _, patched, _, _ = graphs._pair(CPU, {"lora_dropout": 0.1, "memory": "recompute"})
    (block,) = (module for name, module in patched.named_modules() if name.endswith("layers.0"))
    parameters = [parameter for parameter in block.parameters() if parameter.requires_grad]
    x = torch.randn(3, 5, block.mlp.gate_proj.in_features, requires_grad=True)
    for name, call in graphs.calls_of(block).items():
        with fused_calls() as calls:
            found = graphs.step(call, x, parameters)
        assert calls == [{"qkv": "lora_projections", "mlp": "lora_gated_mlp"}[name]]
        outputs = {"qkv": 3, "mlp": 1}[name]
        assert len(found) == outputs + 1 + 2 * 3
        assert not any(one.isnan().any() for one in found)


@pytest.mark.usefixtures("quiet")
def test_other_sections_stay_where_that_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "cells", lambda setting: [])
    out = tmp_path / "gpu.json"
    common = ["--device", "cpu", "--tiny", "--inline", "--out", str(out)]
    sections = [["layer", "step"], ["environment"], ["layer"]]
    found = []
    for names, keep in zip(sections, ([], ["--keep"], []), strict=True):
        command.main([*common, *keep, *(word for name in names for word in ("--only", name))])
        found.append([part["section"] for part in json.loads(out.read_text("utf-8"))["sections"]])
    assert found == [["layer", "step"], ["environment", "layer", "step"], ["layer"]]


def test_a_package_that_is_missing():
    with pytest.raises(Wrong, match=r"it is not installed; patchkit needs absent_thing>=3"):
        environment._package("absent_thing", ">=3")
    with pytest.raises(NotRun, match="it is not installed; tests or contenders"):
        environment._package("absent_thing", "")
    with pytest.raises(Wrong, match=r"patchkit needs <0\.1"):
        environment._package("torch", "<0.1")
    assert environment._package("torch", ">=2") == {"version": version("torch"), "needed": ">=2"}


WITHOUT = """\
import sys
for name in ("libcst", "platformdirs"):
    sys.modules[name] = None
from tools.gpu.__main__ import main
sys.exit(main(["--device", "cpu", "--tiny", "--inline", "--only", "environment", "--only", "kernels", "--out", sys.argv[1]]))
"""


def test_what_is_missing_fails_what_needs_it_and_nothing_else(tmp_path):
    """Where packages are missing that no kernel needs, no model is patched; kernels and fused functions are tested all the same."""
    out = tmp_path / "gpu.json"
    subprocess.run([sys.executable, "-c", WITHOUT, str(out)], cwd=ROOT, env=surroundings(), check=False, timeout=300)
    parts = json.loads(out.read_text("utf-8"))["sections"]
    failed = {one["cell"] for part in parts for one in part["outcomes"] if one["status"] == "failed"}
    assert failed == {"patchkit.apply"}
    assert sum(one["status"] == "passed" for one in parts[1]["outcomes"]) > 5


def test_what_patchkit_needs():
    needed = environment.requirements()
    assert needed["torch"].startswith(">=")
    assert {"torch", "triton", "transformers", "peft", "libcst", "typer"} <= set(needed)


def test_a_loss_without_logits_is_cut_into_chunks(monkeypatch):
    from patchkit_kernels.lora import cross_entropy

    parts, original = [], cross_entropy._parts
    monkeypatch.setattr(cross_entropy, "_parts", lambda *given: parts.append(given) or original(*given))
    figures = contract._loss(CPU, "forward_backward", "llama")
    assert figures["error"] <= 1e-5
    assert parts
    assert {chunk for _, chunk in parts} == {8}
