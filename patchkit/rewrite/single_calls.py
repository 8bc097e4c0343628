"""Calls of projections that are rewritten one by one, each where it stands."""

from __future__ import annotations

from collections.abc import Iterator

from patchkit.arch.spec import Block, Part
from patchkit.rewrite.edits import Edits
from patchkit.rewrite.parsed_method import ParsedMethod, ProjectionCall


def single_calls(method: ParsedMethod, block: Block, part: Part, edits: Edits) -> Iterator[ProjectionCall]:
    """The calls of a part that no rule has taken and that can be rewritten where they stand; the others are left."""
    for call in edits.untaken(method.calls_of(*block.projections(part))):
        if why := method.why_not_rewritable(call):
            edits.leave([call], part, why, method.line(call.node))
        else:
            yield call
