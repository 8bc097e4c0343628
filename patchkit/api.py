"""``apply``, ``revert``, ``patched`` and ``report``: the one place where the whole flow is put together."""

from __future__ import annotations

import difflib
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from patchkit.adapters.readers import carries_adapter
from patchkit.arch.discovery import Found, find_blocks
from patchkit.arch.registry import architectures
from patchkit.arch.spec import Part
from patchkit.binding.ownership import find_displaced
from patchkit.binding.patch import Patch, patch_of
from patchkit.binding.restoring import Classes
from patchkit.binding.swap import original_class, swap
from patchkit.describe import fed_with_gradient
from patchkit.errors import (
    MetaModelError,
    NotAModelError,
    NotPatchedError,
    PatchkitWarning,
    RevertError,
    UnknownOptionError,
)
from patchkit.layers import find_layers
from patchkit.module_tree import named_modules, state_of
from patchkit.planning import (
    Planned,
    describe_block,
    describe_layer_now,
    describe_plan,
    plan_block,
    plan_layer_or_leave,
    refuse,
    skips_of,
)
from patchkit.reporting import Report, Row
from patchkit.rewrite.sites import Skip
from patchkit.runtime.precision import AdapterPrecision
from patchkit.trust.policy import TRUSTS, Trust, refusal_of, refusals
from patchkit.version import __version__

logger = logging.getLogger("patchkit")

_BLOCKS: tuple[Part, ...] = ("qkv", "o", "mlp")
_PARTS: tuple[Part, ...] = (*_BLOCKS, "embedding", "head")
_OPTIONS = (*_PARTS, "strict", "precision", "trust")
_PRECISIONS: tuple[AdapterPrecision, ...] = ("peft", "fast")
_CHOICES: dict[str, tuple[str, ...]] = {"precision": _PRECISIONS, "trust": TRUSTS}


def apply(
    model: nn.Module,
    *,
    qkv: bool = True,
    o: bool = True,
    mlp: bool = True,
    embedding: bool = True,
    head: bool = True,
    strict: bool = False,
    precision: AdapterPrecision = "peft",
    trust: Trust = "verify",
    **unknown: object,
) -> Report:
    """Patch the attention projections, gated MLPs, adapted embedding and adapted head of a model, in place.

    Outputs, losses and gradients stay those of the unpatched model up to rounding. What cannot be proven equal keeps
    running upstream's code, and the report says why. Levels are chosen at every call, so adapters may be added,
    switched, merged or deleted afterwards. Applying again changes nothing, or changes to the options given.

    Args:
        model: a ``peft.PeftModel``, a transformers model with adapters injected, or a plain transformers model.
        qkv: patch the query, key and value projections.
        o: patch the attention output projection.
        mlp: patch the gated MLP.
        embedding: patch the token embedding, if it has an adapter.
        head: patch the output embedding (``lm_head``), if it has an adapter.
        strict: raise, before anything is changed, if a block would stay at upstream level although it has an adapter,
            or if no block at all would be patched. A projection without an adapter has nothing to fuse: no error.
        precision: ``"peft"`` computes the adapters in the dtype in which PEFT does (float32 over a bfloat16 base by
            default); ``"fast"`` in that of the activations, as other kernel libraries do, with the rounding that this
            brings. Where both are the same dtype, and under autocast, there is no difference.
        trust: which source of upstream may be patched. ``"ledger"``: only classes whose source is proven, in the ledger
            that ships with patchkit or in the user's. ``"verify"``: an unknown one (a new release, remote code, a
            locally edited file) is verified on a tiny instance first, which takes about a second once and is then
            remembered. ``"always"``: every one. Embedding and head keep upstream's ``forward`` around them: nothing
            of theirs is asked.
        **unknown: no other option exists; one that is passed is an error with a hint.

    Returns:
        The level of every block, and the reason where it is not fused.

    Raises:
        NotAModelError: ``model`` is not a ``torch.nn.Module``.
        UnknownOptionError: an option is unknown or has a value that it cannot have.
        MetaModelError: all weights are still on the ``meta`` device.
        NotPatchedError: ``strict`` is set and a block would stay at upstream level.
        RevertError: a patched module's class was changed by something else since, and other options are asked for.
    """
    _check_model(model)
    wanted: dict[str, bool] = {"qkv": qkv, "o": o, "mlp": mlp, "embedding": embedding, "head": head}
    check_options({**wanted, "strict": strict, "precision": precision, "trust": trust, **unknown})
    parts = frozenset(name for name in _BLOCKS if wanted[name])
    planned = [plan_block(found, parts, precision) for found in _eligible(model)]
    _check_meta(model, planned)
    planned = _trusted(model, planned, trust)
    layers = [plan_layer_or_leave(layer, precision, wanted=wanted[layer.part]) for layer in find_layers(model)]
    fed = fed_with_gradient(model)
    described = [describe_plan(plan, parts, fed=id(plan.found.module) in fed) for plan in planned]
    planned = [plan for plan, _ in described]
    rows = tuple(row for _, of_plan in described for row in of_plan)
    rows += tuple(_displaced_rows(model, parts))
    rows += tuple(layer.row for layer in layers)
    result = Report(type(model).__name__, rows, _notes(rows))
    left = [row for row in rows if row.level == "upstream" and not row.expected]
    if strict and (left or all(row.level == "upstream" for row in rows)):
        raise NotPatchedError(
            f"strict=True: these blocks would stay at upstream level, so nothing was changed.\n{result}"
        )
    targets = [(plan.found.module, plan.target) for plan in planned]
    targets += [(layer.module, layer.target) for layer in layers]
    swap([(module, target) for module, target in targets if type(module) is not target])
    logger.info("patchkit %s: %s", __version__, result.summary)
    if len(rows) == len(layers):
        warnings.warn(_unsupported(model, rows), PatchkitWarning, stacklevel=2)
    elif left:
        reasons = sorted({f"{row.module_class} {row.part}: {row.reason}" for row in left})
        warnings.warn(
            f"{len(left)} of {len(rows)} blocks run at upstream level (equal, but no faster): {'; '.join(reasons)}. "
            "patchkit.report(model) has the details.",
            PatchkitWarning,
            stacklevel=2,
        )
    return result


def revert(model: nn.Module) -> int:
    """Give every patched module of a model exactly the class it had before ``apply``.

    Returns:
        How many modules were given their class back. If none was patched, nothing happens but a warning.

    Raises:
        NotAModelError: ``model`` is not a ``torch.nn.Module``.
        RevertError: something else changed the class of a patched module since; nothing is changed then.
    """
    _check_model(model)
    patched_modules = [(name, module) for name, module in named_modules(model) if patch_of(module) is not None]
    swap([(module, original_class(module, name)) for name, module in patched_modules])
    if not patched_modules:
        warnings.warn(
            f"{type(model).__name__} is not patched: there is nothing to revert", PatchkitWarning, stacklevel=2
        )
    return len(patched_modules)


@contextmanager
def patched(
    model: nn.Module,
    *,
    qkv: bool = True,
    o: bool = True,
    mlp: bool = True,
    embedding: bool = True,
    head: bool = True,
    strict: bool = False,
    precision: AdapterPrecision = "peft",
    trust: Trust = "verify",
    **unknown: object,
) -> Iterator[Report]:
    """``apply`` for the time of a ``with`` block; afterwards every module has the class it had before it.

    In between the model may be patched otherwise, reverted, copied or rebuilt: what is as before already is left alone,
    and a patched module that came into the model is reverted.

    Takes the options of :func:`apply`, raises what it raises (and on leaving, what :func:`revert` raises; a warning
    instead where the block is left with another exception), and yields its report.
    """
    _check_model(model)
    before = Classes(model)
    result = apply(
        model,
        qkv=qkv,
        o=o,
        mlp=mlp,
        embedding=embedding,
        head=head,
        strict=strict,
        precision=precision,
        trust=trust,
        **unknown,
    )
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
    """The level at which every recognised block of a model would train now, and why.

    Raises:
        NotAModelError: ``model`` is not a ``torch.nn.Module``.
    """
    _check_model(model)
    fed = fed_with_gradient(model)
    rows = tuple(
        row
        for found in _eligible(model)
        for row in describe_block(
            found, patch_of(found.module) or _refused(found), frozenset(_BLOCKS), fed=id(found.module) in fed
        )
    )
    rows += tuple(_displaced_rows(model, frozenset(_BLOCKS)))
    rows += tuple(describe_layer_now(layer) for layer in find_layers(model))
    return Report(type(model).__name__, rows, _notes(rows))


def _check_model(model: object) -> None:
    if isinstance(model, nn.Module):
        return
    hint = "a class; pass an instance of it" if isinstance(model, type) else f"a {type(model).__qualname__}"
    if isinstance(model, str):
        hint = f"the name {model!r}; load it first, for instance with AutoModelForCausalLM.from_pretrained"
    raise NotAModelError(f"expected a torch.nn.Module (a PeftModel or a transformers model), found {hint}")


def check_options(options: Mapping[str, object]) -> None:
    """Make sure that these are options of :func:`apply`.

    Raises:
        UnknownOptionError: one is not, or its value has the wrong type.
    """
    for name, value in options.items():
        if name not in _OPTIONS:
            near = difflib.get_close_matches(name, _OPTIONS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise UnknownOptionError(f"unknown option {name!r}{hint} The options are {', '.join(_OPTIONS)}.")
        if name in _CHOICES:
            if value not in _CHOICES[name]:
                choices = " or ".join(map(repr, _CHOICES[name]))
                raise UnknownOptionError(f"option {name!r} takes {choices}, found {value!r}")
        elif not isinstance(value, bool):
            raise UnknownOptionError(f"option {name!r} takes True or False, found {value!r}")


def _eligible(model: nn.Module) -> Iterator[Found]:
    """The blocks to patch: those of the text model, and of a vision tower where it carries adapters."""
    for found in find_blocks(model):
        if _is_wanted(found) or patch_of(found.module) is not None:
            yield found


def _is_wanted(found: Found) -> bool:
    return found.block.tower == "text" or carries_adapter(found.module)


def _displaced_rows(model: nn.Module, parts: frozenset[Part]) -> Iterator[Row]:
    """Blocks that the user may expect here, but whose class another library replaced."""
    for found, reason in find_displaced(model):
        if _is_wanted(found):
            skips = tuple(Skip(part, reason) for part in found.block.parts if part in parts)
            yield from describe_block(found, skips, parts)


def _trusted(model: nn.Module, planned: list[Planned], trust: Trust) -> list[Planned]:
    """The plans, without those for classes whose source is neither proven nor equal when verified here."""
    blocks = [(plan.found, plan.original) for plan in planned if isinstance(plan.patch, Patch)]
    refused = refusals(model, blocks, trust)
    return [refuse(plan, refused[plan.original]) if plan.original in refused else plan for plan in planned]


def _refused(found: Found) -> tuple[Skip, ...] | None:
    """For an unpatched block: what ``apply`` refused it for, if it did."""
    reason = refusal_of(found.module)
    return skips_of(found.block.parts, reason) if reason else None


def _check_meta(model: nn.Module, planned: list[Planned]) -> None:
    """A model on meta, all of it. What an offloading library keeps there it brings back at each call: that runs."""
    parts = [part for plan in planned for _, part in named_modules(plan.found.module)]
    weights = [
        weight for part in parts for weight in state_of(part).get("_parameters", {}).values() if weight is not None
    ]
    offloaded = any("_hf_hook" in state_of(module) for _, module in named_modules(model))  # accelerate's name
    if weights and all(weight.is_meta for weight in weights) and not offloaded:
        raise MetaModelError(
            f"the weights of all {len(planned)} blocks are on the meta device. Load or initialise them first "
            "(from_pretrained, or to_empty and load_state_dict), then call patchkit.apply; nothing was changed."
        )


def _notes(rows: tuple[Row, ...]) -> tuple[str, ...]:
    return () if rows else (f"supported: {', '.join(architectures())}",)


def _unsupported(model: nn.Module, rows: tuple[Row, ...]) -> str:
    done = "only its adapted embedding and head are" if rows else "nothing was"
    return (
        f"{type(model).__module__}.{type(model).__qualname__} has no block that patchkit knows; {done} changed "
        f"and the model runs as before. Supported architectures: {', '.join(architectures())}. "
        "CONTRIBUTING.md says how to add one."
    )
