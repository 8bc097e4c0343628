"""Where the repository is, what a process of it sees, and whether there is a device."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]

_ASK = """
import sys
try:
    import torch
except ImportError:
    sys.exit()
try:
    torch.empty(1, device=sys.argv[1]).cpu()
except (AssertionError, RuntimeError) as error:
    print(str(error).splitlines()[0] if str(error) else type(error).__name__)
"""


def surroundings(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Variables of a process of this repository: its sources first on the path, and no network."""
    found = dict(os.environ if environment is None else environment)
    paths = [str(ROOT), str(ROOT / "kernels"), *filter(None, [found.get("PYTHONPATH")])]
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return {**found, **offline, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def why_no_device(device: str) -> str | None:
    """Why torch cannot use a device, in a line; None if it can.

    And None without torch: what is missing beside the device is for the sections to say.

    Args:
        device: as torch names it.
    """
    # In a process of its own: this one is to hold no memory of the device that the sections measure.
    done = subprocess.run([sys.executable, "-c", _ASK, device], capture_output=True, text=True, env=surroundings())
    return done.stdout.strip() or None
