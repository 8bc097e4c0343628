"""Numbers of bytes as people write them, and as they read them."""

from __future__ import annotations

import re

from patchkit.errors import EstimateError

_UNITS = {"": 1, **{f"{letter}B": 1000**power for power, letter in enumerate("kMGT", 1)}}
_UNITS |= {f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", 1)} | {"B": 1}
_BY_NAME = {name.lower(): factor for name, factor in _UNITS.items()}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def bytes_of(size: str | int) -> int:
    """Bytes of a size such as ``"80GiB"``, ``"24 GB"`` or a number.

    Raises:
        EstimateError: it is none, or not above zero.
    """
    found = _SIZE.fullmatch(str(size)) if not isinstance(size, bool) else None
    factor = _BY_NAME.get(found[2].lower()) if found else None
    if found is None or factor is None or float(found[1]) * factor < 1:
        raise EstimateError(f"{size!r} is no size of memory; write it as 80GiB, 24GB or a number of bytes")
    return int(float(found[1]) * factor)


def shown(size: float) -> str:
    """Bytes in GiB or MiB, with three digits."""
    unit, name = (2**30, "GiB") if abs(size) >= 2**30 else (2**20, "MiB")
    value = size / unit
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {name}"


def whole_number(name: str, value: object, *, least: int = 1) -> int:
    """A whole number of at least so much.

    Raises:
        EstimateError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise EstimateError(f"{name} must be a whole number of at least {least}, found {value!r}")
    return value
