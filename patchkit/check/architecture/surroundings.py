"""The classes of an architecture's module that it does not describe: what becomes of each."""

from __future__ import annotations

import re
from collections.abc import Iterator

from patchkit.arch.spec import Architecture
from patchkit.check.static.drift import described
from patchkit.check.static.scan import Scanned, scan_text
from patchkit.errors import RewriteError
from patchkit.upstream.classes import class_table
from patchkit.upstream.release import Release, module_path

_MAY_BE_BLOCK = re.compile(r"attention|attn|mlp|feed_?forward|ffn|expert", re.IGNORECASE)
"""Names of classes that a reader will look for among the blocks."""


def undescribed(release: Release, architecture: Architecture) -> Iterator[str]:
    """A line for each class that is, or may look like, a block and is none of this architecture.

    Args:
        release: of the architecture's package.
        architecture: with blocks.

    Raises:
        ReleaseError: a file of the release cannot be read.
    """
    path = module_path(architecture.module)
    try:
        source = release.read(path)
        if source is None:
            return
        table = class_table(source, path)
    except RewriteError:  # which the findings say
        return
    named = {block.class_name for block in architecture.blocks}
    named |= {heir for name in named if name in table.classes for heir in table.heirs(name)}
    for one in scan_text(source, path):
        if one.class_name not in named and (one.block is not None or may_be_block(one.class_name)):
            yield what_becomes_of(one)


def may_be_block(class_name: str) -> bool:
    """Whether a class is called like an attention or an MLP."""
    return _MAY_BE_BLOCK.search(class_name) is not None


def what_becomes_of(one: Scanned) -> str:
    """What is done with a class that no architecture describes, and why, in one line."""
    if one.block is None:
        why = one.why.removeprefix("no attention: ").partition("; no MLP: ")
        reason = why[0] if "mlp" not in one.class_name.lower() else why[2] or why[0]
        return f"{one.class_name} is not described: {reason}; its layers are patched one by one"
    return f"{one.class_name} is not described; it is taken for {described(one.block)} by its source"
