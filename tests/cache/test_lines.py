"""Files of one record a line: what is read of them, and what is said of one that is damaged."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from patchkit.cache.lines import read_lines
from patchkit.errors import CacheError


def test_each_line_that_is_not_empty_in_order(tmp_path: Path) -> None:
    place = tmp_path / "numbers"
    place.write_text("3\n\n1\n2")
    assert list(read_lines(place, int)) == [3, 1, 2]


def test_a_file_that_is_not_there_says_nothing(tmp_path: Path) -> None:
    assert list(read_lines(tmp_path / "numbers", int)) == []


def test_a_separator_of_other_lines_is_of_the_text(tmp_path: Path) -> None:
    place = tmp_path / "texts"
    place.write_text("a\u2028b\nc")
    assert list(read_lines(place, str)) == ["a\u2028b", "c"]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    place = tmp_path / "numbers"
    place.write_text("1\n\nx\n")
    with pytest.raises(CacheError, match=re.escape(f"{place}:3 is damaged: invalid literal")):
        list(read_lines(place, int))


@pytest.mark.parametrize("kind", ["a folder", "no text"])
def test_a_file_that_cannot_be_read_is_named(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "numbers"
    place.mkdir() if kind == "a folder" else place.write_bytes(b"\xff")
    with pytest.raises(CacheError, match=re.escape(f"{place} cannot be read")):
        list(read_lines(place, int))
