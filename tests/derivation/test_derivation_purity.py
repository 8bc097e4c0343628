"""A description is derived from text where torch, transformers and libcst are not installed."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
for name in ("torch", "transformers", "peft", "libcst", "numpy"):
    assert name not in sys.modules, name
    sys.modules[name] = None  # importing it from here on raises
from patchkit.arch.spec import MLP
from patchkit.derivation.derive import derive_from_text

source = "class Block:\\n    def forward(self, x): return self.fc2(self.activation_fn(self.fc1(x)))\\n"
assert derive_from_text(source, "Block") == MLP("Block")
"""


def test_nothing_heavy_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
