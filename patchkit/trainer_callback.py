"""``TrainerCallback``: ``patchkit.apply`` for a model that only exists once a Trainer has built it."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import transformers

from patchkit.api import apply, patched
from patchkit.errors import NotAModelError, UnknownOptionError
from patchkit.options import checked
from patchkit.version import __version__

if TYPE_CHECKING:
    from torch import nn
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from patchkit.reporting import Report

logger = logging.getLogger("patchkit")


class TrainerCallback(transformers.TrainerCallback):  # type: ignore[misc]
    """Patches the model of a Hugging Face ``Trainer``, or of a trainer of TRL, when training begins.

        trainer = SFTTrainer(model, peft_config=LoraConfig(...), callbacks=[patchkit.TrainerCallback()], ...)

    By then adapters and gradient checkpointing are in place, a checkpoint to resume from is loaded, and the model may
    be wrapped (DistributedDataParallel, FSDP, ``torch.compile``). All of this stays: only the classes of modules inside
    the model change. The optimizer's parameters, the keys of ``state_dict`` and what is saved stay the same. Code that
    ``torch.compile`` made before, for example for an evaluation, is compiled once more.

    If training begins again (``auto_find_batch_size``, a second ``train()``, a model of ``model_init``), the model
    that it then has is patched. One that is patched already stays patched.

    The logger ``patchkit`` logs one line that says what was patched, at level INFO. Where that level is not shown, the
    main process logs it at WARNING.

    Args:
        revert_at_end: when training ends, give every module the class that it had when training began. Without it the
            model stays patched, as after :func:`patchkit.apply`; saved files are the same either way. Training that
            stops with an exception has no end: the model then stays patched until it is trained again with this
            callback, or :func:`patchkit.revert` is called.
        **options: of :func:`patchkit.apply`.

    Attributes:
        report: what :func:`patchkit.apply` returned when training last began; None before.

    Raises:
        UnknownOptionError: at once, if an option is unknown or has a value of the wrong type. When training begins,
            whatever :func:`patchkit.apply` raises; nothing is changed then.
    """

    def __init__(self, *, revert_at_end: bool = False, **options: Any) -> None:
        checked(options)
        if not isinstance(revert_at_end, bool):
            raise UnknownOptionError(f"option 'revert_at_end' takes True or False, found {revert_at_end!r}")
        self.report: Report | None = None
        self._revert_at_end = revert_at_end
        self._options = options
        self._undo = ExitStack()

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Patch the model.

        Raises:
            NotAModelError: the trainer passes no model to its callbacks.
        """
        if model is None:
            raise NotAModelError(
                "this trainer passes no model to on_train_begin, which a transformers.Trainer does. Call "
                "patchkit.apply(model) yourself before training, without this callback."
            )
        self._undo.close()  # of a training that was not brought to its end
        if self._revert_at_end:
            self.report = self._undo.enter_context(patched(model, **self._options))
        else:
            self.report = apply(model, **self._options)
        if state.is_world_process_zero and not logger.isEnabledFor(logging.INFO):
            logger.warning("patchkit %s: %s", __version__, self.report.summary)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Revert, if that was asked for.

        Raises:
            RevertError: something else changed the class of a patched module since; nothing is changed then.
        """
        self._undo.close()
