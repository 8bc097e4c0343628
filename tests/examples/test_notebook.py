"""The notebook: its cells run in order, and what they say and draw is so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

mpl = pytest.importorskip("matplotlib", reason="the notebook draws (extra: demo)")

NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebook" / "patchkit.ipynb"
CELLS = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


@pytest.mark.filterwarnings("ignore")
def test_its_cells_run(capsys):
    mpl.use("Agg")
    names = {}
    for cell in CELLS:
        exec("".join(cell["source"]), names)
    assert names["report"].share_fused == 1.0
    assert names["largest"] < 1e-5
    assert capsys.readouterr().out.startswith("the largest relative difference of a loss is ")
    losses, kept, flops = names["losses"]["patched"], names["kept"], names["flops"]
    assert losses[-1] < losses[0]
    assert kept["patched"] < 0.8 * kept["plain PEFT"]
    assert flops["patched"] == flops["plain PEFT"]
    assert not [row for row in names["patchkit"].report(names["patched"]).rows if row.level != "upstream"]


def test_its_outputs_are_kept():
    """They are shown where nobody runs it."""
    shown = {kind for cell in CELLS for output in cell["outputs"] for kind in output.get("data", [output.get("name")])}
    assert shown == {"text/html", "text/plain", "image/png", "stdout"}
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, len(CELLS) + 1))
