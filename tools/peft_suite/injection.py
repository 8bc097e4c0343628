"""Where ``patchkit.apply`` is called while PEFT's tests run, and what is counted.

A PEFT model comes into being in three ways: through a ``PeftModel`` or ``PeftMixedModel`` (``get_peft_model``,
``PeftModel.from_pretrained``, ``AutoPeftModel``), through ``inject_adapter_in_model`` (also called by transformers'
own ``add_adapter`` and ``load_adapter``), and by making a tuner such as ``LoraModel`` directly. The last step of the
first is ``__init__``, and all of them, and every adapter that is added later, go through ``BaseTuner.inject_adapter``.
``apply`` is called after these, so no function that tests import by name needs to be replaced.
"""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import nn

from tools.peft_suite.outcomes import BLOCKS, FUSED, MODELS, REFUSED


def inject(counts: Counter[str]) -> None:
    """From now on, in this process, patch every PEFT model as it comes into being.

    Args:
        counts: raised by one for each model patched (:data:`MODELS`; one that is patched again counts only if blocks
            were added), each block (:data:`BLOCKS`), each call of a fused function (:data:`FUSED`), and each model
            that ``apply`` refuses because all its weights are on meta (:data:`REFUSED`).
    """
    from peft import PeftMixedModel, PeftModel
    from peft.tuners.tuners_utils import BaseTuner

    _count_fused_calls(counts)
    for cls in (PeftModel, PeftMixedModel):
        cls.__init__ = _then_apply(cls.__init__, lambda self: self, counts)
    BaseTuner.inject_adapter = _then_apply(BaseTuner.inject_adapter, _injected, counts)


def _injected(tuner: Any, model: nn.Module, *_: object, **__: object) -> nn.Module:
    return model


def _then_apply(method: Callable[..., Any], model_of: Callable[..., Any], counts: Counter[str]) -> Callable[..., Any]:
    @functools.wraps(method)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        # A PeftModel's constructor is called with (self, model, ...): only `self` is the finished model.
        _apply(model_of(args[0]) if method.__name__ == "__init__" else model_of(*args, **kwargs), counts)
        return result

    return wrapper


def _apply(model: nn.Module, counts: Counter[str]) -> None:
    import patchkit
    from patchkit.errors import MetaModelError, PatchkitWarning

    before = _patched_blocks(model)
    with warnings.catch_warnings():
        # That a model has no block to patch is no news here, and a test may count warnings.
        warnings.simplefilter("ignore", PatchkitWarning)
        try:
            patchkit.apply(model)
        except MetaModelError:
            counts[REFUSED] += 1
            return
    added = _patched_blocks(model) - before
    if added > 0:
        counts[MODELS] += 1
        counts[BLOCKS] += added


def _patched_blocks(model: nn.Module) -> int:
    from patchkit.binding.patch import patch_of

    return sum(patch_of(module) is not None for module in model.modules())


def _count_fused_calls(counts: Counter[str]) -> None:
    """Count calls of the fused functions from now on; a traced one counts once for each trace."""
    from patchkit.testing.fused_calls import each_fused_call

    _open.enter_context(each_fused_call(lambda name: counts.update([FUSED])))


_open = ExitStack()
"""Held until the process ends with the tests."""
