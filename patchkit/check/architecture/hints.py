"""What a hand-written description says otherwise than the source does, in words for who wrote it."""

from __future__ import annotations

from dataclasses import dataclass, fields

from patchkit.arch.registry import architectures, is_built_in
from patchkit.arch.spec import Attention, Block, GatedMLP, SharedInput, description
from patchkit.check.static.findings import Finding, Owner, block_named, owner_of_forward
from patchkit.derivation.attention import ONE_FOR_ALL, roles_said
from patchkit.derivation.derive import derive_from_text
from patchkit.errors import RewriteError
from patchkit.upstream.release import Release, module_path

_STANDS = "its layers are patched one by one"


@dataclass(frozen=True)
class Reading:
    """What the source of a class is read as, beside its description.

    Attributes:
        derived: the description that its structure gives; None if it gives none.
        said: where the two differ and what the source says, a line each.
        swapped: whether two projections stand in each other's place.
    """

    derived: Block | None
    said: tuple[str, ...] = ()
    swapped: bool = False


def read_beside(block: Block, source: str, class_name: str, path: str) -> Reading:
    """Read a class, and compare with its description.

    Args:
        block: the description.
        source: text of the module that defines the ``forward``.
        class_name: the class in it.
        path: what to call that module.
    """
    try:
        derived = derive_from_text(source, class_name, path, shared_input=isinstance(block, SharedInput))
    except RewriteError as error:
        return Reading(None, (str(error),))
    if isinstance(derived, str):
        return Reading(None, (_without(block, derived),))
    if type(derived) is not type(block):
        kind = type(block).__name__
        return Reading(derived, (f"it is described as {kind}, and its source reads as {description(derived)}",))
    if swapped := _swapped(block, derived):
        return Reading(derived, (swapped,), swapped=True)
    return Reading(derived, tuple(_different_words(block, derived)))


def differences(release: Release, finding: Finding) -> tuple[str, ...]:
    """Where a plugin's description of a class differs from its source; for patchkit's own there are records instead.

    Args:
        release: in which the class was found.
        finding: of one of its blocks.

    Raises:
        ReleaseError: a file of the release cannot be read.
    """
    architecture = architectures().get(finding.architecture)
    if architecture is None or is_built_in(architecture.name) or not finding.line:
        return ()
    owner = owner_of_forward(release, architecture.module, finding.class_name)
    if not isinstance(owner, Owner):
        return ()
    block = block_named(architecture, finding.block)
    return read_beside(block, owner.text, owner.entry.name, module_path(owner.module)).said


def _without(block: Block, reason: str) -> str:
    if isinstance(block, Attention):
        why = reason.removeprefix("no attention: ").partition("; no MLP: ")[0]
        if ONE_FOR_ALL in why:
            return f"{why}; leave {block.class_name} out of the architecture: {_STANDS}"
    return f"its source says no {type(block).__name__}: {reason}"


def _swapped(block: Block, derived: Block) -> str:
    """Which two words of a description stand in each other's place; empty if none do."""
    if isinstance(block, GatedMLP) and isinstance(derived, GatedMLP):
        if block.inputs != derived.inputs and block.inputs == derived.inputs[::-1]:
            act = derived.activation_function or f"self.{derived.activation}"
            return f"gate and up look swapped: the source gives `{derived.gate}` to {act}, and not `{block.gate}`"
    elif isinstance(block, Attention) and isinstance(derived, Attention):
        said = {"q": block.q, "k": block.k, "v": block.v}
        if sorted(said.values()) != sorted((derived.q, derived.k, derived.v)):
            return ""
        wrong = [role for role, name in said.items() if roles_said(name) and role not in roles_said(name)]
        if wrong:
            names = ", ".join(f"{role} is said to be `{said[role]}`" for role in wrong)
            return f"{' and '.join(wrong)} look swapped: {names}"
    return ""


def _different_words(block: Block, derived: Block) -> list[str]:
    said = []
    for one in fields(block):
        mine, found = getattr(block, one.name), getattr(derived, one.name)
        if one.name in {"class_name", "tower"} or mine == found or (one.name == "activation" and not _used(derived)):
            continue
        written = f"the source says {found!r}" if found is not None else "the source has none"
        said.append(f"{one.name}: {'nothing' if mine is None else repr(mine)} is described, {written}")
    return said


def _used(block: Block) -> bool:
    """Whether the activation of an MLP is a module."""
    return getattr(block, "activation_function", None) is None
