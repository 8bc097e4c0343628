"""The files of a proposal: which, how large, which releases, and what a name may hold."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from patchkit.check.results.proposal_files import MOST_BYTES, MOST_RELEASES, are_names, ask_releases, lines_of, texts_of
from patchkit.errors import ProposalError


def test_the_texts_are_those_of_the_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("é\n", "utf-8")
    (tmp_path / "watch.log").write_bytes(b"\xff\n")
    assert texts_of(tmp_path, ["a.jsonl", "watch.log"]) == {"a.jsonl": "é\n", "watch.log": "\ufffd\n"}


def test_a_file_may_be_large_and_no_larger(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    os.truncate(tmp_path / "a", MOST_BYTES)
    assert len(texts_of(tmp_path, ["a"])["a"]) == MOST_BYTES
    os.truncate(tmp_path / "a", MOST_BYTES + 1)
    with pytest.raises(ProposalError, match=r"^a has more than 16777216 bytes$"):
        texts_of(tmp_path, ["a"])


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ProposalError, match="cannot be read"):
        texts_of(tmp_path / "none", ["a"])


def test_empty_lines_are_counted_and_left_out() -> None:
    assert list(lines_of("a", "x\n\ny z\n")) == [("a:1", "x"), ("a:3", "y z")]


def test_which_releases_may_be_taken() -> None:
    ask_releases("a", ["1.0.0"], [])
    ask_releases("a", [], ["1.0.0"])
    ask_releases("a", ["1.0.0", "1.1.0", "1.0.0"], ["1.0", "1.1", "1.2"])
    with pytest.raises(
        ProposalError, match=r"^a has 1\.2\.0, 1\.10\.0, and 1\.1\.0 was asked for; say `--release` for"
    ):
        ask_releases("a", ["1.10.0", "1.1.0", "1.2.0"], ["1.1.0"])


def test_how_many_releases_may_be_taken() -> None:
    ask_releases("a", [f"1.{minor}.0" for minor in range(MOST_RELEASES)], [])
    with pytest.raises(ProposalError, match=r"^a has more than 64 new releases$"):
        ask_releases("a", [f"1.{minor}.0" for minor in range(MOST_RELEASES + 1)], [])


@pytest.mark.parametrize(
    ("word", "fine", "with_colon"),
    [("a b,=+-._9", True, True), ("a: b", False, True), ("", False, False), ("x" * 80, True, True),
     ("x" * 81, False, False), ("<b>", False, False), ("é", False, False), ("a\n", False, False)],
)  # fmt: skip
def test_names(word: str, fine: bool, with_colon: bool) -> None:
    assert are_names(["a", word]) == fine
    assert are_names(["a", word], ":") == with_colon
