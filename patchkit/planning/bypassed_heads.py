"""Adapted heads that another library's loss does not call.

A fused loss takes hidden states and the head's weight, so that there are no logits. Liger-Kernel, Unsloth and Apple's
cut cross-entropy read ``lm_head.weight`` for it. Of a head with an adapter that is the base layer's weight: the adapter
changes nothing and gets no gradient, and nobody says so.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

from torch import nn

from patchkit.adapters.formula import name_of
from patchkit.adapters.registry import carries_adapter
from patchkit.module_tree import children_of, state_of, unpatched
from patchkit.planning.survey import Survey, asked_for

_LOSS = re.compile(r"linear_?cross_?entropy|fused\w*_(ce|cross_entropy)|CausalLMLoss$|apply_lce", re.IGNORECASE)
_READS = "weight"
_OURS = ("transformers", "patchkit", "peft", "torch")
_DEPTH = 3


def bypassed_heads(survey: Survey) -> Iterator[str]:
    """What the user should know of each head whose adapter a loss passes by: one line, with what to do."""
    adapted = {id(layer.module) for layer in survey.layers if "head" in layer.parts and carries_adapter(layer.module)}
    for name, module in survey.modules if adapted else ():
        heads = adapted.intersection(asked_for([(name, module)], "get_output_embeddings"))
        if not heads:
            continue
        forward = _forward_of(module)
        if forward is not None and _is_fused_loss(forward):
            attribute = next((key for key, child in children_of(module).items() if id(child) in heads), "lm_head")
            cls = unpatched(type(module)).__name__
            yield (
                f"{name_of(forward)} computes the loss of {cls} from {attribute}.weight and "
                f"does not call {attribute}: its adapter changes nothing and is not trained. Switch that loss off "
                "(Liger-Kernel: fused_linear_cross_entropy=False) and call patchkit.apply(model, loss=True), or take "
                f"{attribute} out of target_modules."
            )


def _forward_of(module: nn.Module) -> FunctionType | None:
    """The function that runs as ``forward``, below its wrappers."""
    found: Any = state_of(module).get("forward")
    if found is None:
        found = inspect.getattr_static(unpatched(type(module)), "forward", None)
    for _ in range(8):  # wrappers upon wrappers
        found = getattr(found, "__func__", found)
        inner = getattr(found, "__wrapped__", None)
        if inner is None:
            break
        found = inner
    return found if isinstance(found, FunctionType) else None


def _is_fused_loss(function: FunctionType) -> bool:
    """Whether a function of another library names a fused loss and reads a weight, itself or in its own helpers."""
    if function.__module__.partition(".")[0] in _OURS:
        return False
    names: set[str] = set()
    _gather(function, names, _DEPTH, set())
    return _READS in names and any(map(_LOSS.search, names))


def _gather(function: FunctionType, names: set[str], depth: int, seen: set[FunctionType]) -> None:
    """The names that a function's code uses, and that of the functions of its own package that it names."""
    if depth == 0 or function in seen:
        return
    seen.add(function)
    package = function.__module__.partition(".")[0]
    used = set(_names_in(function.__code__))
    names |= used
    for name in used:
        helper = function.__globals__.get(name)
        if isinstance(helper, FunctionType) and helper.__module__.partition(".")[0] == package:
            _gather(helper, names, depth - 1, seen)


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)
