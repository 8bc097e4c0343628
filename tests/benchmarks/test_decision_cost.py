"""The benchmark of the choice of level measures choices that really are made, and says so in figures."""

from __future__ import annotations

import json
import sys

import pytest

import benchmarks.decision_cost as decision_cost


@pytest.mark.filterwarnings("ignore")
def test_every_part_in_every_state(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(decision_cost, "CALLS", 1)
    monkeypatch.setattr(decision_cost, "BATCHES", 3)
    monkeypatch.setattr(sys, "argv", ["decision_cost.py", "--json", str(tmp_path / "costs.json")])
    decision_cost.main()
    costs = json.loads((tmp_path / "costs.json").read_text())["costs"]
    assert [(cost["state"], cost["block"]) for cost in costs] == [
        (state, part) for state in decision_cost.STATES for part in ("qkv", "o", "mlp")
    ]
    assert {cost["level"] for cost in costs if cost["state"] == "LoRA everywhere"} == {"fused"}
    assert all(0 < cost["fastest"] <= cost["microseconds"] for cost in costs)
    assert "LoRA on q and v" in capsys.readouterr().out
