"""Figures that the README states are those of the files that have them."""

from __future__ import annotations

import json
import re
from pathlib import Path

from patchkit.check.results.matrix import RELEASES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
TAKE_TEXT = ("causal", "encoder", "image-text", "seq2seq")


def heads() -> dict[str, dict[str, int]]:
    """The first table of ``coverage.md``: its numbers by head and column."""
    lines = (ROOT / "coverage.md").read_text("utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| | types |"))
    columns = [cell.strip() for cell in lines[start].strip("|").split("|")]
    found = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        head, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        found[head] = {name: int(cell.split()[0]) for name, cell in zip(columns[1:], cells, strict=True)}
    return found


def test_what_is_said_of_model_types():
    table = heads()
    total = {name: sum(table[head][name] for head in TAKE_TEXT) for name in table["causal"]}
    said = re.search(r"Of the (\d+) pairs that take text, (\d+) were compared.* other (\d+) could", README)
    assert said is not None
    types, verified = total["types"], total["verified"]
    assert tuple(map(int, said.groups())) == (types, verified, types - verified)
    assert total.get("different", 0) == total["nothing to patch"] == total["no model"] == 0
    share = re.search(r"([\d.]+) % of the adapted layers run fused, two thirds of them together", README)
    assert share is not None
    layers = total["adapted layers"]
    assert f"{100 * (layers - total['upstream']) / layers:.1f}" == share[1]
    assert 0.63 < total["in blocks"] / (layers - total["upstream"]) < 0.70


def test_what_is_said_of_releases():
    matrix = (ROOT / "compat_matrix.md").read_text("utf-8")
    newest, *_, oldest = re.findall(r"[\d.]+", matrix[matrix.index("| architecture |") :].partition("\n")[0])
    first, last = (version.rpartition(".")[0] for version in (oldest, newest))
    assert f"transformers {first} to {last}" in README
    assert f"[checked on {len(RELEASES)} of these releases](compat_matrix.md)" in README
    peft = re.search(r"^PEFT ([\d.]+) to ([\d.]+), each read", matrix, re.MULTILINE)
    assert peft is not None
    assert f"PEFT {peft[1]} to {peft[2]}" in README


def test_what_is_said_of_the_hosts_time():
    """`patchkit bench --host --json benchmarks/results/host.json` makes the file."""
    found = json.loads((ROOT / "benchmarks" / "results" / "host.json").read_text("utf-8"))
    layers = [one for one in found["host"] if one["part"] == "layer"]
    said = []
    for dropout in (0.0, 0.1):
        ratios = [one["patched"] / one["plain"] for one in layers if one["dropout"] == dropout]
        assert len(ratios) == 5
        said.append(f"{min(ratios):.2f}–{max(ratios):.2f}")
    steps = [one["patched"] / one["plain"] for one in found["steps"]]
    less = sum(ratio < 1 for ratio in steps)
    assert f"a layer falls to {said[0]} of PEFT's, and to {said[1]} with dropout" in README
    assert (
        f"steps of small models take {min(steps):.2f}–{max(steps):.2f}, {less} of {len(steps)} of them less" in README
    )
