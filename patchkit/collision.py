"""The other package whose module is called ``patchkit`` too.

This package is distributed as ``patchkit-lora``, because ``patchkit`` on the package index is somebody else's. Both
install a module ``patchkit``: installed into one folder, the files of one lie among those of the other.
"""

from __future__ import annotations

import os

_FOLDER = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

REMEDY = "pip uninstall -y patchkit patchkit-lora && pip install patchkit-lora"


def other_package(folder: str = _FOLDER) -> str:
    """Name and version of the other package, if it is installed where this one is; empty if it is not.

    Args:
        folder: that holds the module ``patchkit``; of a checkout there is none that pip installs into.
    """
    try:
        found = sorted(name for name in os.listdir(folder) if name.startswith("patchkit-") and name.endswith("-info"))
    except OSError:  # a zip file
        return ""
    return found[0].rpartition(".")[0].replace("-", " ") if found else ""


def message(other: str) -> str:
    """What is wrong, and what to do."""
    return (
        f"{other} is installed in the folder of patchkit-lora, and both have a module named patchkit, so files of one "
        f"may have taken the place of the other's. Say: {REMEDY}"
    )
