"""Where the repository is, and what a process of it sees."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]


def surroundings(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Variables of a process of this repository: its sources first on the path, and no network."""
    found = dict(os.environ if environment is None else environment)
    paths = [str(ROOT), str(ROOT / "kernels"), *filter(None, [found.get("PYTHONPATH")])]
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return {**found, **offline, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
