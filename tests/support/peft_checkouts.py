"""Copies of the installed PEFT in which something reads otherwise."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from patchkit.adapters.peft_sources import READERS
from patchkit.upstream.release import Release, module_path

FILES = sorted(
    {module_path(module) for modules in READERS.values() for module in modules}
    | {"peft/tuners/tuners_utils.py", "peft/utils/other.py", "peft/utils/integrations.py"}
)

CHANGED_SCALING = {
    "peft/tuners/lora/layer.py": (
        "result = result + lora_B(lora_A(dropout(x))) * scaling\n                else:\n                    result = "
        "self.lora_variant",
        "result = result + lora_B(lora_A(dropout(x))) * (2 * scaling)\n                else:\n                    result = "
        "self.lora_variant",
    )
}
"""``Linear.forward`` that computes something else."""


def installed_peft(path: str) -> str:
    """Text of a file of the installed PEFT, which is not imported."""
    spec = importlib.util.find_spec("peft")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return (Path(spec.submodule_search_locations[0]).parent / path).read_text("utf-8")


def peft_checkout(folder: Path, version: str, changed: Mapping[str, tuple[str, str]] | None = None) -> Path:
    """A folder that holds ``peft``, as far as its layers go, with texts replaced where they first stand."""
    for path in FILES:
        text = installed_peft(path)
        if changed and path in changed:
            old, new = changed[path]
            assert old in text, f"PEFT's {path} reads otherwise now: choose another text"
            text = text.replace(old, new, 1)
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, "utf-8")
    (folder / "peft" / "__init__.py").write_text(f'__version__ = "{version}"\n')
    return folder


def peft_release(folder: Path, version: str, changed: Mapping[str, tuple[str, str]] | None = None) -> Release:
    """The same as a release."""
    return Release(version, peft_checkout(folder, version, changed), str(folder), package="peft")
