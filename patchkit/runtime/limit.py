"""The limit by which an MLP may clamp what its gate and its up projection yield."""

from __future__ import annotations

from patchkit.adapters.protocol import Reason


def read_limit(limit: object) -> float | Reason:
    """The number, or why it must be done as upstream does it."""
    if type(limit) is not float and type(limit) is not int:
        return f"its limit is a {type(limit).__name__}"
    return float(limit) if limit >= 0 else f"its limit is {limit}"
