"""Everything that tuning asks, on a CPU in Triton's interpreter: prints what was found as JSON.

Run with ``TRITON_INTERPRET=1``, which has to be set before the kernels are defined.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))

import numpy
import torch
import triton
from triton_interpreter import _repair_bf16

from patchkit.tuning.questions import TINY, Setting
from patchkit.tuning.tune import tune

if __name__ == "__main__":
    assert triton.knobs.runtime.interpret, "set TRITON_INTERPRET=1"
    _repair_bf16()
    numpy.seterr(all="ignore")
    torch.set_num_threads(1)
    titles: list[str] = []
    found = tune(Setting("cpu", TINY._replace(tokens=20), 1), titles.append)
    json.dump({"titles": titles, **found.to_json()}, sys.stdout)
