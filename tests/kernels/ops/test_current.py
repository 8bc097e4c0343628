"""Settings of the process, changed for a time."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from patchkit_kernels.ops.current import Current


class Settings(NamedTuple):
    count: int = 1
    name: str = "usual"


def test_a_change_ends_with_its_region() -> None:
    current = Current(Settings())
    before = current.value
    with current.changed(count=2) as inside:
        assert current.value is inside
        assert inside == Settings(2)
        with current.changed(name="other"):
            assert current.value == Settings(2, "other")
        assert current.value is inside
    assert current.value is before


def test_a_change_ends_with_an_error() -> None:
    current = Current(Settings())
    with pytest.raises(ZeroDivisionError), current.changed(count=2):
        _ = 1 / 0
    assert current.value == Settings()


def test_there_are_no_other_settings() -> None:
    current = Current(Settings())
    with pytest.raises(ValueError, match="unknown"), current.changed(unknown=1):
        pass
    assert current.value == Settings()
