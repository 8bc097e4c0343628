"""What a worker runs in a test: llama's source ends its process, as a parser in native code can."""

from __future__ import annotations

import os
import pickle

from patchkit.check.static import sweep


def answer(request: bytes) -> bytes:
    if pickle.loads(request)[1] == "llama":
        os._exit(1)
    return sweep.answer(request)
