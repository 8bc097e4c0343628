"""Runs at the start of every Python of an environment; :mod:`patchkit.check.numeric.environments` copies it there.

It puts the packages of the environment below on ``sys.path``, after this environment's own, and hides those that
neither transformers nor PEFT nor patchkit needs: an optional integration (kernels, bitsandbytes, ...) made for the
release below may break with another one. Standard library only.
"""

from __future__ import annotations

import json
import os
import site
import sys

with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "patchkit_layer.json"), encoding="utf-8") as file:
    _layer: dict[str, list[str]] = json.load(file)

for _folder in _layer["below"]:
    site.addsitedir(_folder)
for _name in _layer["hidden"]:
    sys.modules[_name] = None  # type: ignore[assignment]  # which import and find_spec take for "not there"
