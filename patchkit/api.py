"""``apply``, ``revert``, ``patched`` and ``report``: the one place where the whole flow is put together."""

from __future__ import annotations

import difflib
import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from torch import nn

from patchkit.adapters.peft import carries_adapter
from patchkit.adapters.protocol import interference
from patchkit.arch.discovery import Found, find_blocks
from patchkit.arch.registry import architectures
from patchkit.binding import (
    PATCH,
    Patch,
    check_unchanged,
    forward_replaced,
    original_class,
    parts_of,
    patch_of,
    patched_class,
    swap,
)
from patchkit.check.trust import TRUSTS, Trust, refusal_of, refusals
from patchkit.describe import describe
from patchkit.errors import MetaModelError, NotAModelError, NotPatchedError, PatchkitWarning, UnknownOptionError
from patchkit.reporting import Report, Row
from patchkit.rewrite.sites import BlockName, Skip
from patchkit.version import __version__

logger = logging.getLogger("patchkit")

_OPTIONS = ("qkv", "o", "mlp", "strict", "trust")


class _Planned(NamedTuple):
    """What is to become of one recognised module."""

    found: Found
    original: type[nn.Module]
    target: type[nn.Module]
    patch: Patch | tuple[Skip, ...]


def apply(
    model: nn.Module,
    *,
    qkv: bool = True,
    o: bool = True,
    mlp: bool = True,
    strict: bool = False,
    trust: Trust = "verify",
    **unknown: object,
) -> Report:
    """Patch the attention projections and gated MLPs of a model, in place.

    Outputs, losses and gradients stay those of the unpatched model up to rounding. What cannot be proven equal keeps
    running upstream's code, and the report says why. Levels are chosen at every call, so adapters may be added,
    switched, merged or deleted afterwards. Applying again changes nothing, or changes to the options given.

    Args:
        model: a ``peft.PeftModel``, a transformers model with adapters injected, or a plain transformers model.
        qkv: patch the query, key and value projections.
        o: patch the attention output projection.
        mlp: patch the gated MLP.
        strict: raise, before anything is changed, if a block would stay at upstream level although it has an adapter,
            or if no block at all would be patched. A projection without an adapter has nothing to fuse: no error.
        trust: which source of upstream may be patched. ``"ledger"``: only classes whose source is proven, in the ledger
            that ships with patchkit or in the user's. ``"verify"``: an unknown one (a new release, remote code, a
            locally edited file) is verified on a tiny instance first, which takes about a second once and is then
            remembered. ``"always"``: every one.
        **unknown: no other option exists; one that is passed is an error with a hint.

    Returns:
        The level of every block, and the reason where it is not fused.

    Raises:
        NotAModelError: ``model`` is not a ``torch.nn.Module``.
        UnknownOptionError: an option is unknown or has no value that it takes.
        MetaModelError: all weights are still on the ``meta`` device.
        NotPatchedError: ``strict`` is set and a block would stay at upstream level.
        RevertError: a patched module's class was changed by something else since, and other options are asked for.
    """
    _check_model(model)
    parts = _check_options({"qkv": qkv, "o": o, "mlp": mlp, "strict": strict}, unknown)
    _check_trust(trust)
    planned = [_plan(found, parts) for found in _eligible(model)]
    _check_meta(planned)
    planned = _trusted(model, planned, trust)
    rows = tuple(
        row for plan in planned for row in describe(plan.found.name, plan.found.module, plan.found.block, plan.patch)
    )
    result = Report(type(model).__name__, rows, _notes(rows))
    left = [row for row in rows if row.level == "upstream" and not row.expected]
    if strict and (left or all(row.level == "upstream" for row in rows)):
        raise NotPatchedError(
            f"strict=True: these blocks would stay at upstream level, so nothing was changed.\n{result}"
        )
    swap([(plan.found.module, plan.target) for plan in planned if type(plan.found.module) is not plan.target])
    logger.info("patchkit %s: %s", __version__, result.summary)
    if not rows:
        warnings.warn(_unsupported(model), PatchkitWarning, stacklevel=2)
    elif left:
        reasons = sorted({f"{row.module_class} {row.block}: {row.reason}" for row in left})
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
    patched_modules = [(name, module) for name, module in model.named_modules() if patch_of(module) is not None]
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
    strict: bool = False,
    trust: Trust = "verify",
    **unknown: object,
) -> Iterator[Report]:
    """``apply`` for the time of a ``with`` block; afterwards every module has the class it had before it.

    Takes the options of :func:`apply`, raises what it raises (and on leaving, what :func:`revert` raises), and yields
    its report.
    """
    _check_model(model)
    before = [(name, module, type(module)) for name, module in model.named_modules()]
    result = apply(model, qkv=qkv, o=o, mlp=mlp, strict=strict, trust=trust, **unknown)
    changed = [(name, module, cls, type(module)) for name, module, cls in before if type(module) is not cls]
    try:
        yield result
    finally:
        for name, module, _, given in changed:
            check_unchanged(module, name, given)
        swap([(module, cls) for _, module, cls, _ in changed])


def report(model: nn.Module) -> Report:
    """The level at which every recognised block of a model would train now, and why.

    Raises:
        NotAModelError: ``model`` is not a ``torch.nn.Module``.
    """
    _check_model(model)
    rows = tuple(
        row
        for found in _eligible(model)
        for row in describe(found.name, found.module, found.block, patch_of(found.module) or _refused(found))
    )
    return Report(type(model).__name__, rows, _notes(rows))


def _check_model(model: object) -> None:
    if isinstance(model, nn.Module):
        return
    hint = "a class; pass an instance of it" if isinstance(model, type) else f"a {type(model).__qualname__}"
    if isinstance(model, str):
        hint = f"the name {model!r}; load it first, for instance with AutoModelForCausalLM.from_pretrained"
    raise NotAModelError(f"expected a torch.nn.Module (a PeftModel or a transformers model), found {hint}")


def _check_options(options: dict[str, bool], unknown: dict[str, object]) -> frozenset[BlockName]:
    for name in unknown:
        near = difflib.get_close_matches(name, _OPTIONS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise UnknownOptionError(f"unknown option {name!r}{hint} The options are {', '.join(_OPTIONS)}.")
    for name, value in options.items():
        if not isinstance(value, bool):
            raise UnknownOptionError(f"option {name!r} takes True or False, found {value!r}")
    names: tuple[BlockName, ...] = ("qkv", "o", "mlp")
    return frozenset(name for name in names if options[name])


def _check_trust(trust: object) -> None:
    if trust not in TRUSTS:
        raise UnknownOptionError(f"option 'trust' takes one of {', '.join(map(repr, TRUSTS))}, found {trust!r}")


def _eligible(model: nn.Module) -> Iterator[Found]:
    """The blocks to patch: those of the text model, and of a vision tower where it carries adapters."""
    for found in find_blocks(model):
        if found.block.tower == "text" or patch_of(found.module) is not None or carries_adapter(found.module):
            yield found


def _plan(found: Found, parts: frozenset[BlockName]) -> _Planned:
    cls = type(found.module)
    patch = patch_of(found.module)
    if patch is not None and patch.parts == parts & frozenset(parts_of(found.block)):
        return _Planned(found, patch.original, cls, patch)
    original = original_class(found.module, found.name) if patch is not None else cls
    if forward_replaced(found.module):
        # Whoever replaced it keeps the block; swapping the class underneath would do nothing, or worse.
        reason = f"its {interference(found.module)}"
        return _Planned(found, original, original, _skips(parts, reason))
    target = patched_class(original, found.block, parts)
    if isinstance(target, tuple):
        return _Planned(found, original, original, target)
    return _Planned(found, original, target, vars(target)[PATCH])


def _trusted(model: nn.Module, planned: list[_Planned], trust: Trust) -> list[_Planned]:
    """The plans, without those for classes whose source is neither proven nor equal when verified here."""
    blocks = [(plan.found, plan.original) for plan in planned if isinstance(plan.patch, Patch)]
    refused = refusals(model, blocks, trust)
    return [
        plan
        if plan.original not in refused or not isinstance(plan.patch, Patch)
        else plan._replace(target=plan.original, patch=_skips(plan.patch.parts, refused[plan.original]))
        for plan in planned
    ]


def _refused(found: Found) -> tuple[Skip, ...] | None:
    """For an unpatched block: what ``apply`` refused it for, if it did."""
    reason = refusal_of(type(found.module))
    return _skips(parts_of(found.block), reason) if reason else None


def _skips(parts: Iterable[BlockName], reason: str) -> tuple[Skip, ...]:
    return tuple(Skip(part, reason) for part in sorted(parts))


def _check_meta(planned: list[_Planned]) -> None:
    """A model on meta, all of it. Single modules there belong to an offloading library and run upstream."""
    weights = [parameter for plan in planned for parameter in plan.found.module.parameters()]
    if weights and all(weight.is_meta for weight in weights):
        raise MetaModelError(
            f"the weights of all {len(planned)} blocks are on the meta device. Load or initialise them first "
            "(from_pretrained, or to_empty and load_state_dict), then call patchkit.apply; nothing was changed."
        )


def _notes(rows: tuple[Row, ...]) -> tuple[str, ...]:
    return () if rows else (f"supported: {', '.join(architectures())}",)


def _unsupported(model: nn.Module) -> str:
    return (
        f"{type(model).__module__}.{type(model).__qualname__} has no block that patchkit knows; nothing was changed "
        f"and the model runs as before. Supported architectures: {', '.join(architectures())}. "
        "CONTRIBUTING.md says how to add one."
    )
