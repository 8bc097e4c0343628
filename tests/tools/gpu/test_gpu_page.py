"""Predictions beside results: from a result made by hand, from none, and the page of the repository."""

from __future__ import annotations

import json

import pytest

from tools.gpu import page as pages
from tools.gpu.cells import Setting
from tools.gpu.page import NOT_MEASURED, PAGE, PREDICTIONS, current, page
from tools.gpu.sections import layer
from tools.gpu.table_of_sections import SECTIONS

PREDICTED = {
    "source": "modelled, before any device was measured",
    "device": "NVIDIA H200",
    "about": "A roofline.",
    "planned": {"P1": "pieces"},
    "groups": [
        {
            "title": "Rates",
            "rows": [
                {"what": "bf16 GEMM", "unit": "TFLOP/s", "predicted": 770, "from": ["micro", "bf16 GEMM", "TFLOP/s"]},
                {"what": "copy", "unit": "TB/s", "predicted": 4.1, "from": ["micro", "copy", "TB/s"]},
            ],
        },
        {
            "title": "One layer",
            "rows": [
                {
                    "what": "4096 A: patchkit",
                    "unit": "µs",
                    "predicted": 8371,
                    "planned": {"P1": 5669},
                    "from": ["layer", "plain", "4096 A: patchkit ms"],
                    "factor": 1000,
                }
            ],
        },
    ],
}


def results(**changes):
    def passed(cell, **figures):
        return {"cell": cell, "status": "passed", "figures": figures, "seconds": 1.0}

    failed = {"cell": "copy", "status": "failed", "reason": "RuntimeError: a | b <c>\nmore", "seconds": 0.0}
    absent = {"cell": "driver", "status": "not run", "reason": "no nvidia-smi", "seconds": 0.0}
    found = {
        "date": "2026-12-01",
        "device": "cuda",
        "rehearsal": False,
        "sections": [
            {
                "section": "environment",
                "title": "what is here",
                "seconds": 2.04,
                "outcomes": [
                    absent,
                    passed("device", name="NVIDIA H200"),
                    passed("settings of torch", torch="2.11.0+cu130"),
                    passed("package triton", version="3.6.0"),
                ],
            },
            {
                "section": "micro",
                "title": "facts",
                "seconds": 30.0,
                "outcomes": [failed, passed("bf16 GEMM", **{"TFLOP/s": 731.5})],
            },
            {
                "section": "layer",
                "title": "one layer",
                "seconds": 99.6,
                "outcomes": [passed("plain", **{"4096 A: patchkit ms": 5.9, "4096 A: liger": "not installed"})],
            },
        ],
    }
    return found | changes


def test_predicted_and_measured_side_by_side():
    text = page(PREDICTED, results())
    assert "| bf16 GEMM | TFLOP/s | 770 | 732 | 0.95 |" in text
    assert "| 4096 A: patchkit | µs | 8,371 (P1 5,669) | 5,900 | 0.70 |" in text
    assert f"| copy | TB/s | 4.1 | {NOT_MEASURED} | |" in text  # its cell failed
    assert "*Measured*: NVIDIA H200, 2026-12-01, torch 2.11.0+cu130, triton 3.6.0." in text
    assert "*Predicted*: modelled, before any device was measured, for one NVIDIA H200." in text
    assert "| facts | 1 | 1 | 0 | 30 |" in text
    assert "* micro, copy: failed: RuntimeError: a \\| b &lt;c> more" in text
    assert text.index("micro, copy: failed") < text.index("environment, driver: not run")


def test_nothing_is_measured_yet():
    text = page(PREDICTED, None)
    assert text.count(f"| {NOT_MEASURED} | |") == 3
    assert "What ran" not in text


def test_a_rehearsal_is_no_result():
    with pytest.raises(ValueError, match="a rehearsal, which measures nothing"):
        page(PREDICTED, results(rehearsal=True))


def test_a_prediction_is_never_shown_as_measured():
    for row in page(PREDICTED, results(sections=[])).splitlines():
        if row.startswith("| ") and "---" not in row and "predicted" not in row:
            assert NOT_MEASURED in row or "section" in row


def test_the_page_of_the_repository_is_current():
    assert PAGE.read_text("utf-8") == current(), "run python -m tools.gpu.page"


def test_the_predictions_are_of_cells_that_there_are():
    """Otherwise a figure would never be measured, and nobody would notice."""
    predictions = json.loads(PREDICTIONS.read_text("utf-8"))
    assert predictions["source"] == "modelled, before any device was measured"
    cells = {
        section.name: {cell.name for cell in section.cells(Setting("cuda"))}
        for section in SECTIONS
        if section.name in ("micro", "choices", "layer")
    }
    for group in predictions["groups"]:
        for row in group["rows"]:
            section, cell, figure = row["from"]
            assert cell in cells[section], row
            assert row["predicted"] > 0
            if section == "layer":
                case, contender = figure.removesuffix(" ms").split(": ")
                tokens, precision = case.split()
                said, _ = layer.CASES[cell]
                assert {f"--tokens {tokens}", f"--precision {precision}", f"--only {contender}"} <= {
                    f"{one} {other}" for one, other in zip(said.split()[::2], said.split()[1::2], strict=True)
                }, row


def test_the_figures_that_cells_give_are_those_that_are_predicted():
    from tools.gpu.cells import outcome_of

    given = {
        (section.name, cell.name.split(",")[0]): set(outcome_of(cell)["figures"])
        for section in SECTIONS
        if section.name in ("micro", "choices")
        for cell in section.cells(Setting("cpu", True))
    }
    for group in json.loads(PREDICTIONS.read_text("utf-8"))["groups"]:
        for row in group["rows"]:
            section, cell, figure = row["from"]
            if section != "layer":
                assert figure in given[section, cell.split(",")[0]], row


def test_main_writes_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    monkeypatch.setattr(pages, "PAGE", tmp_path / "gpu.md")
    assert pages.main() == 0
    assert (tmp_path / "gpu.md").read_text("utf-8") == current()
    assert capsys.readouterr().out == "gpu.md\n"
