"""Verifying on the spot that the loss of a language model is what it was: the same checks, of its loss alone.

A patched model has no logits in training, so the harness is given a model that shows its loss and nothing else. The
head has an adapter, and so have gradients to flow through it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from patchkit.arch.discovery import Found
from patchkit.binding.classes import patched_class
from patchkit.binding.patch import Refusal
from patchkit.check.numeric.clean_room import in_clean_room
from patchkit.check.numeric.proving import Subject, Trial, prove
from patchkit.check.numeric.tiny_instances import TinyInstance, WithoutCache
from patchkit.module_tree import unpatched
from patchkit.testing import add_lora, tiny_inputs_for, tiny_model_from
from patchkit.trust.key import key_of

LOSS_CHECKS = (
    "forward_backward",
    "eval",
    "no_grad",
    "repeated_backward",
    "ragged_padding",
    "dropout",
    "checkpointing_non_reentrant",
)
"""What is verified, of ``patchkit.testing.CHECKS``: not half precision, of whose rounding one number says nothing."""


class LossAlone(WithoutCache):
    """A language model that shows its loss and nothing else."""

    def forward(self, **inputs: Any) -> CausalLMOutputWithPast:
        """The inputs of the model, with labels."""
        loss = super().forward(**inputs).loss
        return CausalLMOutputWithPast(loss=loss, logits=loss.reshape(1, 1))


def verify_losses_on_the_spot(
    model: nn.Module, classes: Mapping[type[nn.Module], Found]
) -> dict[type[nn.Module], Trial | str]:
    """What tiny instances show of the losses of classes, or why nothing can be shown.

    Args:
        model: the model that is to be patched; only the configurations of its language models are read.
        classes: unpatched classes, each with a language model that is of it.
    """
    return in_clean_room(partial(_verify, classes))


def _verify(classes: Mapping[type[nn.Module], Found]) -> dict[type[nn.Module], Trial | str]:
    trials: dict[type[nn.Module], Trial | str] = {}
    for cls, found in classes.items():
        try:
            trials[cls] = _trial(cls, found)
        except Exception as error:  # code that nobody knows runs here, and may raise anything
            trials[cls] = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return trials


def _trial(cls: type[nn.Module], found: Found) -> Trial | str:
    config = getattr(found.module, "config", None)
    if config is None:
        return "it has no configuration"
    instance = _instance(config, cls, found)
    subject = subject_of(cls, found)
    if isinstance(subject, str):
        return subject
    (trial,) = prove(instance.model, instance.inputs, [subject], LOSS_CHECKS)
    shown = trial.status == "failed" or (trial.status == "passed" and trial.results[0].passed)
    return trial if shown else trial.results[0].reason or trial.reason


def _instance(config: Any, cls: Any, found: Found) -> TinyInstance:
    """A small model of a class, with adapters on its head, that shows its loss."""
    tiny = tiny_model_from(config, head=unpatched(cls))
    inputs = tiny_inputs_for(tiny)
    # A scaling that is no power of two, so that leaving it out or applying it twice rounds differently.
    names = list(found.block.projections())
    adapted = add_lora(tiny, target_modules=names, task_type=None, r=4, lora_alpha=11)
    return TinyInstance(LossAlone(adapted).train(), inputs)


def subject_of(cls: type[nn.Module], found: Found) -> Subject | str:
    """A class whose loss is to be proven, or why it cannot be patched."""
    key = key_of(cls, found.module, found.block)
    patched = patched_class(cls, found.block, frozenset(found.block.parts))
    if isinstance(patched, Refusal):
        return "; ".join(sorted({skip.reason for skip in patched.skips}))
    return key if isinstance(key, str) else Subject(key, cls, patched, found.block)
