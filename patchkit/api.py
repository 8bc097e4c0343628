"""``apply``, ``revert``, ``patched`` and ``report``: the one place where the whole flow is put together.

A model is surveyed once, every block and adapted layer in it is planned, trust says which plans stand, the classes are
swapped, and the report is made of the same plans.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import nn

from patchkit.arch.registry import architectures
from patchkit.binding.patch import patch_of
from patchkit.binding.swap import Classes, original_class, swap
from patchkit.errors import NotAModelError, PatchkitWarning, RevertError
from patchkit.module_tree import named_modules, unpatched, users_model
from patchkit.options import NamedOptions, checked, takes_options
from patchkit.planning.bypassed_heads import bypassed_heads
from patchkit.planning.plan import class_changes, current, plan, with_current_layers, with_layers
from patchkit.planning.survey import survey
from patchkit.reporting import Report
from patchkit.trust.policy import refused_before, trusted
from patchkit.tuning.record import use_for
from patchkit.version import __version__

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from patchkit.runtime.levels import Level

logger = logging.getLogger("patchkit")

_LESS_THAN_FUSED: tuple[tuple[Level, str], ...] = (
    ("upstream", "run at upstream level (equal, and nothing is saved)"),
    ("alone", "run layer by layer"),
)


@takes_options
def apply(model: nn.Module, **options: Unpack[NamedOptions]) -> Report:
    """Patch the attention projections, MLPs and adapted layers of a model, in place.

    Outputs, losses and gradients stay those of the unpatched model, up to rounding. What cannot be shown to be equal
    keeps running the code of transformers and PEFT ("upstream"), and the report says why. Each part of the model
    chooses its level (fused, alone or upstream) at every call. So adapters may be added, switched, merged or deleted
    afterwards. Applying again changes nothing, or changes to the options that are given. On a GPU that was tuned
    (``patchkit tune``), kernels of this process run as was found best there.

    Args:
        model: a ``peft.PeftModel``, a transformers model with adapters injected, or a plain transformers model.
        qkv: patch the query, key and value projections.
        o: patch the attention output projection.
        mlp: patch gated and ungated MLPs.
        linear: patch every adapted linear layer that belongs to no attention or MLP, wherever it is.
        experts: patch the experts whose stacked weights are adapted as parameters (``target_parameters`` of PEFT).
        embedding: patch the token embedding, if it has an adapter.
        head: patch the output embedding (``lm_head``), if it has an adapter.
        loss: compute the loss of a causal language model in chunks of tokens, without ever holding all logits. In
            training with labels the ``logits`` of the output are None then, unless the call asks for them by
            ``output_logits=True``. Without labels, in evaluation and in generation nothing changes. Off by default.
        norm: only with ``memory``: norms keep their input instead of a float32 copy of it.
        strict: raise, before anything is changed, if a part with an adapter would run upstream's code, or if nothing
            at all would be patched. A projection without an adapter has nothing to fuse, and is no error.
        precision: ``"peft"`` computes adapters in the dtype in which PEFT does, which is float32 over a bfloat16 base
            by default. ``"fast"`` computes them in the dtype of the activations, as other kernel libraries do, and so
            rounds more. Where both are the same dtype, and under autocast, there is no difference.
        memory: how MLPs, norms and the loss save memory in training. None, the default, keeps the outputs of gate and
            up. ``"recompute"`` keeps the input x of an MLP, and computes gate and up again in backward. A norm with a
            bfloat16 or float16 input keeps that input, and makes its float32 copy again. The loss keeps nothing for
            second derivatives.
            ``"tiled"`` does the same for a tile of tokens at a time, forward and backward. So no tensor of
            ``[tokens, intermediate]`` ever exists whole. There are ``ceil(tokens / hidden)`` tiles, or N with
            ``"tiled:N"``.
        trust: which classes of upstream may be patched. A class is proven if a tiny model with its very source has
            passed all comparisons; proofs are in the ledger that ships with patchkit, and in the user's.
            ``"ledger"``: only proven classes. ``"verify"``: a class that is not proven (of a new release, remote code,
            an edited file) is verified on a tiny model first, which takes about a second, once. ``"always"``: every
            class. A layer that is patched by itself (linear, experts, embedding, head) needs no proof of the class
            around it.

    Returns:
        The level of every part, and the reason where it is not fused.

    Raises:
        NotAModelError: ``model`` is not a ``torch.nn.Module``.
        UnknownOptionError: an option is unknown or has a value that it cannot have.
        MetaModelError: all weights are still on the ``meta`` device.
        NotPatchedError: ``strict`` is set and a part would stay at upstream level.
        RevertError: a patched module's class was changed by something else since, and other options are asked for.
    """
    _check_model(model)
    chosen = checked(options)
    seen = survey(model)
    blocks = trusted(model, plan(seen, chosen), chosen.trust)
    plans = with_layers(seen, blocks, chosen)
    bypassed = tuple(bypassed_heads(seen))
    report = Report.of(model, plans, bypassed)
    if chosen.strict:
        report.require()
    swap(class_changes(plans))
    tuned = use_for(model)
    if tuned is not None:
        logger.info("kernels run as `patchkit tune` found best on %s", tuned.date)
    _announce(report, chosen.memory, bypassed)
    return report


def revert(model: nn.Module) -> int:
    """Give every patched module of a model exactly the class that it had before ``apply``.

    Returns:
        How many modules were given their class back. If none was patched, there is a warning, and nothing happens.

    Raises:
        NotAModelError: ``model`` is not a ``torch.nn.Module``.
        RevertError: something else changed the class of a patched module since; nothing is changed then.
    """
    _check_model(model)
    patched_modules = [(name, module) for name, module in named_modules(model) if patch_of(module) is not None]
    swap([(module, original_class(module, name)) for name, module in patched_modules])
    if not patched_modules:
        warnings.warn(
            f"{unpatched(type(users_model(model))).__name__} is not patched: there is nothing to revert",
            PatchkitWarning,
            stacklevel=2,
        )
    return len(patched_modules)


@contextmanager
@takes_options
def patched(model: nn.Module, **options: Unpack[NamedOptions]) -> Iterator[Report]:
    """``apply`` for the time of a ``with`` block. After it every module has the class that it had before the block.

    In the block the model may be patched with other options, reverted, copied or rebuilt. A module that has its old
    class already is left alone. A patched module that came into the model is reverted.

    Takes the options of :func:`apply`, raises what it raises (and on leaving, what :func:`revert` raises; a warning
    instead where the block is left with another exception), and yields its report.
    """
    _check_model(model)
    before = Classes(model)
    result = apply(model, **options)
    try:
        yield result
    except BaseException:
        try:
            before.restore()
        except RevertError as error:  # what ended the block must not be lost behind this
            warnings.warn(f"the model stays patched: {error}", PatchkitWarning, stacklevel=3)
        raise
    before.restore()


def report(model: nn.Module) -> Report:
    """The level at which every part of a model would train now, and why. Nothing is changed.

    Raises:
        NotAModelError: ``model`` is not a ``torch.nn.Module``.
    """
    _check_model(model)
    seen = survey(model)
    bypassed = tuple(bypassed_heads(seen))
    _warn_of(bypassed)
    return Report.of(model, with_current_layers(seen, refused_before(current(seen))), bypassed)


def _check_model(model: object) -> None:
    if isinstance(model, nn.Module):
        return
    hint = "a class; pass an instance of it" if isinstance(model, type) else f"a {type(model).__qualname__}"
    if isinstance(model, str):
        hint = f"the name {model!r}; load it first, for instance with AutoModelForCausalLM.from_pretrained"
    raise NotAModelError(f"expected a torch.nn.Module (a PeftModel or a transformers model), found {hint}")


def _announce(report: Report, memory: str | None, bypassed: Iterable[str]) -> None:
    """Log what was patched; warn of what has an adapter and was not or is not called, and of what saves too little."""
    logger.info("patchkit %s: %s", __version__, report.summary)
    _warn_of(bypassed, stacklevel=4)
    if not report.rows:
        warnings.warn(_unsupported(report), PatchkitWarning, stacklevel=3)
    for level, what in _LESS_THAN_FUSED:
        rows = [row for row in report.at(level) if not row.expected]
        if rows:
            reasons = sorted({f"{row.module_class} {row.part}: {row.reason}" for row in rows})
            warnings.warn(
                f"{report.title}: {len(rows)} of {len(report.rows)} parts {what}: {'; '.join(reasons)}. "
                "patchkit.report(model) has the details.",
                PatchkitWarning,
                stacklevel=3,
            )
    less = _less_than_asked(report, memory) if memory is not None and report.rows else ""
    if less:
        warnings.warn(f"{report.title}: {less}", PatchkitWarning, stacklevel=3)


def _less_than_asked(report: Report, memory: str) -> str:
    """What fused MLPs do less than an option ``memory`` asks for; empty if it is nothing."""
    rows = [row for row in report.at("fused") if row.part == "mlp"]
    if not rows:
        return f"memory={memory!r} has no effect, because no MLP of it runs fused"
    less = [row for row in rows if row.memory != memory]
    reasons = sorted({f"{row.module_class}: memory={row.memory!r}, since {row.reason}" for row in less})
    return f"memory={memory!r} is less for {len(less)} of {len(rows)} MLPs ({'; '.join(reasons)})" if less else ""


def _warn_of(bypassed: Iterable[str], stacklevel: int = 3) -> None:
    for note in bypassed:
        warnings.warn(note, PatchkitWarning, stacklevel=stacklevel)


def _unsupported(report: Report) -> str:
    return (
        f"{report.title} has no layer with an adapter and no block that patchkit "
        "knows; nothing was changed and the model runs as before. Add adapters first, for instance with "
        f"peft.get_peft_model. Without adapters, these are patched: {', '.join(architectures())}."
    )
