"""TOML files of the tool."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_toml(path: Path) -> dict[str, Any]:
    """What a TOML file holds."""
    return dict(tomllib.loads(path.read_text("utf-8")))
