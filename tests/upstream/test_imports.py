"""Upstream's source is read as text: nothing that reads it loads torch, transformers or libcst."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import patchkit.upstream

HEAVY = ("torch", "transformers", "peft", "libcst")


def test_nothing_heavy_is_imported() -> None:
    modules = [f"patchkit.upstream.{module.name}" for module in pkgutil.iter_modules(patchkit.upstream.__path__)]
    assert "patchkit.upstream.live" in modules
    code = f"import sys, {', '.join(modules)}; print([name for name in {HEAVY} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
