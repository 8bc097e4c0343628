"""The comparison with peers: what it says is read or run, and the page follows from the rows."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

import pytest

import benchmarks.peers.compare as compare
from benchmarks.peers.measuring import Row, difference, line_of

PLACE = Path(compare.__file__).parent
PEERS = dict.fromkeys(compare.PEERS, "1.0")


def test_a_line_that_is_gone_has_to_be_read_again(tmp_path):
    (tmp_path / "file.py").write_text("def first():\n    mask\ndef second():\n    mask\n")
    assert line_of(str(tmp_path), "file.py", "mask") == "file.py:2"
    assert line_of(str(tmp_path), "file.py", "mask", after="def second") == "file.py:4"
    with pytest.raises(ValueError, match="read it again"):
        line_of(str(tmp_path), "file.py", "no such line")


def test_nothing_is_said_to_be_zero_that_is_not():
    import torch

    one = torch.ones(4)
    assert difference(one, one.clone()) == "0"
    assert difference(one * (1 + 1e-6), one) == "9.5e-07"


def test_the_page_has_each_row_under_its_peer():
    rows = [Row(f"setting {peer}", "what", "1", peer, "2", "1", "run") for peer in compare.PEERS]
    text = "\n".join(compare.page(rows, PEERS, "2026-01-02"))
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert [section.split()[0] for section in sections] == [*compare.PEERS, "Again"]
    for peer, section in zip(compare.PEERS, sections, strict=False):
        assert f"| setting {peer} | what | 1 | 2 | 1 | run |" in section
        assert section.count("| setting ") == 2  # the heading, and its own row


def test_the_page_that_is_committed_is_of_these_scripts():
    text = (PLACE / "README.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| setting | what")]
    assert len(rows) >= 15
    for row in rows:
        assert re.search(r"\| (run|read)[^|]* \|$", row), row
    assert re.search(
        r"^\d{4}-\d\d-\d\d: axolotl [\d.]+, liger-kernel [\d.]+, unsloth [\d.]+; patchkit ", text, re.MULTILINE
    )
    assert {path.name for path in PLACE.glob("*.py")} == {*compare.SCRIPTS, "compare.py", "measuring.py"}


def test_wheels_that_are_missing_are_named(tmp_path):
    about = "axolotl-1.0.dist-info/METADATA"
    with zipfile.ZipFile(tmp_path / "axolotl-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(about, "Metadata-Version: 2.1\nName: axolotl\nVersion: 1.0\n")
    with pytest.raises(SystemExit, match="has no wheel of liger-kernel, unsloth"):
        compare.unpacked(tmp_path, tmp_path / "out")


def test_a_script_that_fails_ends_the_comparison(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("raise ValueError('it is gone: read it again')")
    with pytest.raises(SystemExit, match=r"(?s)script\.py failed:.*read it again"):
        compare.rows_of(script, tmp_path)
