"""What a new architecture says of its module: the classes that rules rewrite, and why the others are left out."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from patchkit.arch.registry import blocks_by_class
from patchkit.arch.spec import BLOCKS, Block
from patchkit.check.architecture.surroundings import may_be_block, what_becomes_of
from patchkit.check.static.scan import Scanned, scan_text
from patchkit.errors import NewArchitectureError
from patchkit.scaffolding.source import Source

_VISION = re.compile(r"vision|visual|image", re.IGNORECASE)


@dataclass(frozen=True)
class Described:
    """What is said of a module.

    Attributes:
        blocks: what its classes are, in the order of their names.
        rules: by class, what becomes of its parts, in one line.
        left_out: why other classes are no blocks, a line each.
    """

    blocks: tuple[Block, ...]
    rules: dict[str, str]
    left_out: tuple[str, ...]

    @property
    def kinds(self) -> list[str]:
        """The words of ``patchkit.arch.spec`` that it takes."""
        return [kind.__name__ for kind in BLOCKS if any(isinstance(block, kind) for block in self.blocks)]


def describe(source: Source) -> Described:
    """Describe the classes of a module by their structure.

    Raises:
        NewArchitectureError: there is nothing that a rule rewrites, or another architecture describes all of it.
    """
    blocks: list[Block] = []
    rules: dict[str, str] = {}
    left_out: list[str] = []
    owners = set()
    for one in scan_text(source.text, source.module.replace(".", "/") + ".py"):
        owner, _ = blocks_by_class().get((source.module, one.class_name), (None, None))
        if owner is not None:
            owners.add(owner.name)
            left_out.append(f"{one.class_name} is described by architecture {owner.name!r} already")
        elif one.block is not None and source.shown_classes is not None and one.class_name not in source.shown_classes:
            types = " or ".join(source.model_types)
            left_out.append(f"{one.class_name} is not described: no tiny model of {types} has one, to prove it on")
        elif one.block is not None and any(part.rules for part in one.parts.values()):
            tower = {"tower": "vision"} if _VISION.search(one.class_name) else {}
            blocks.append(replace(one.block, **tower))  # type: ignore[arg-type]
            rules[one.class_name] = _becomes(one)
        elif one.block is not None:
            reasons = dict.fromkeys(reason for part in one.parts.values() for reason in part.reasons)
            left_out.append(f"{one.class_name} is not described: {'; '.join(reasons)}")
        elif may_be_block(one.class_name):
            left_out.append(what_becomes_of(one))
    if not blocks:
        why = "; ".join(left_out) or "no class of it is an attention or an MLP"
        hint = f"architecture {' and '.join(sorted(owners))} is there already" if owners else _NO_FILE_NEEDED
        raise NewArchitectureError(f"{source.module} has nothing to describe ({why}): {hint}")
    return Described(tuple(blocks), rules, tuple(left_out))


_NO_FILE_NEEDED = "its adapted layers are patched one by one, and no architecture file changes that"


def _becomes(one: Scanned) -> str:
    said = []
    for part, outcome in one.parts.items():
        rules = " + ".join(dict.fromkeys(outcome.rules)) or "no rule"
        said.append(f"{part} by {rules}" + (f" ({'; '.join(outcome.reasons)})" if outcome.reasons else ""))
    return "; ".join(said)
