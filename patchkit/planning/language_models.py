"""The language models in a model whose loss is to be computed without logits, or is so by now."""

from __future__ import annotations

from collections.abc import Iterator

from patchkit.arch.spec import LanguageModel
from patchkit.binding.patch import patch_of
from patchkit.derivation.known import architecture_of
from patchkit.derivation.language_model import language_model_of
from patchkit.module_tree import children_of, unpatched
from patchkit.planning.survey import Candidate, Survey


def language_models(survey: Survey, *, asked: bool) -> Iterator[Candidate]:
    """Those that are patched, and all others too if somebody asks for the loss.

    Args:
        survey: the model.
        asked: whether somebody does. If not, no source is read.
    """
    for name, module in survey.modules:
        patch = patch_of(module)
        block = patch.block if patch is not None else None
        if not isinstance(block, LanguageModel):
            block = _described(module) if asked and patch is None else None
        if block is not None and block.head in children_of(module):
            cls = unpatched(type(module))
            yield Candidate(name, module, block.parts, block, architecture_of(cls, block))


def _described(module: object) -> LanguageModel | None:
    try:
        return language_model_of(type(module))
    except Exception:  # a class may answer anything to being looked at; its loss is upstream's without it
        return None
