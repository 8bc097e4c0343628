"""The norms of a model that are to keep their input alone, or do so by now."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from patchkit.binding.norms import described_norm
from patchkit.binding.patch import patch_of
from patchkit.module_tree import children_of
from patchkit.planning.survey import Candidate, Survey


def norms(survey: Survey, *, asked: bool) -> Iterator[Candidate]:
    """Those that are patched; all others too if somebody asks for less memory, and there is something to patch.

    Args:
        survey: the model.
        asked: whether somebody does. If not, no source is read.
    """
    asked = asked and bool(survey.blocks or survey.layers)
    for name, module in survey.modules:
        patch = patch_of(module)
        if patch is not None:
            if "norm" in patch.parts:
                yield Candidate(name, module, ("norm",))
        elif asked and not children_of(module) and _is_norm(type(module)):
            yield Candidate(name, module, ("norm",))


def _is_norm(cls: type[nn.Module]) -> bool:
    if cls.__module__.partition(".")[0] == "torch":
        return False
    try:
        return not isinstance(described_norm(cls), str)
    except Exception:  # a class may answer anything to being looked at; its norm runs as it is
        return False
