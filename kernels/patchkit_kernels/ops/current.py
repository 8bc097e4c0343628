"""Settings of the whole process, which can be changed for a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

R = TypeVar("R", bound="tuple[Any, ...]")


class Current(Generic[R]):
    """Settings, a named tuple, and what they are now.

    Attributes:
        value: that; setting it holds for everything that runs from then on, in any thread.
    """

    __slots__ = ("value",)

    def __init__(self, value: R) -> None:
        self.value = value

    @contextmanager
    def changed(self, **changes: Any) -> Iterator[R]:
        """Change some settings, for everything that runs inside, in any thread.

        Raises:
            ValueError: there is no setting of this name.
        """
        before: Any = self.value
        self.value = inside = before._replace(**changes)
        try:
            yield inside
        finally:
            self.value = before
