"""The language models in a model whose loss is to be computed without logits, or is so by now."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from patchkit.adapters.protocol import Reason
from patchkit.arch.spec import LanguageModel
from patchkit.binding.patch import patch_of
from patchkit.derivation.known import architecture_of
from patchkit.derivation.language_model import language_model_of
from patchkit.module_tree import children_of, unpatched
from patchkit.planning.survey import Candidate, Survey, asked_for


def language_models(survey: Survey, *, asked: bool) -> Iterator[Candidate]:
    """Those that are patched, and all others too if somebody asks for the loss.

    Args:
        survey: the model.
        asked: whether somebody does. If not, no source is read.
    """
    for name, module in survey.modules:
        patch = patch_of(module)
        if patch is not None and isinstance(patch.block, LanguageModel):
            yield _candidate(name, module, patch.block)
        elif asked and patch is None:
            yield from _described(name, module)


def _described(name: str, module: nn.Module) -> Iterator[Candidate]:
    """A module that is a language model by its source, or else one that has a head, with the reason to leave it."""
    try:
        block = language_model_of(type(module))
    except Exception as error:  # a class may answer anything to being looked at; its loss is upstream's without it
        block = f"it cannot be examined ({type(error).__name__}: {error})"
    children = children_of(module)
    if isinstance(block, LanguageModel):
        if block.head in children:
            yield _candidate(name, module, block)
        return
    heads = set(asked_for([(name, module)], "get_output_embeddings"))
    head = next((attribute for attribute, child in children.items() if child is not None and id(child) in heads), None)
    if head is not None:
        yield _candidate(name, module, LanguageModel(type(module).__qualname__, head), block)


def _candidate(name: str, module: nn.Module, block: LanguageModel, owner: Reason | None = None) -> Candidate:
    cls = unpatched(type(module))
    return Candidate(name, module, block.parts, block, architecture_of(cls, block), owner=owner)
