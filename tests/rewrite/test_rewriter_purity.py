"""The rewriter runs where neither torch nor transformers is installed."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
from patchkit.arch.spec import Attention, GatedMLP
from patchkit.rewrite.rewriter import rewrite

for name in ("torch", "transformers", "peft", "triton", "numpy"):
    assert name not in sys.modules, name
    sys.modules[name] = None  # importing it from here on raises
source = "class Block:\\n    def forward(self, x): return self.o_proj(x), self.down_proj(x)\\n"
assert rewrite(source, Attention("Block")).sites
assert rewrite(source, GatedMLP("Block")).sites
"""


def test_neither_torch_nor_transformers_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
