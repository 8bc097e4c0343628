"""What a rule is: everything that is to be known of it, in one record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from patchkit.arch.spec import BLOCKS, Block, Part
from patchkit.rewrite.edits import Edits
from patchkit.rewrite.parsed_method import ParsedMethod
from patchkit.rewrite.sites import RuleName, Site


@dataclass(frozen=True)
class Rule:
    """A form of code that is recognised, and what it is rewritten to.

    The examples are bodies of ``forward(self, x, y)`` in a block with the usual names. They are documentation, and the
    tests run them.

    Attributes:
        name: what it is called in sites, reports and records.
        parts: the parts of a block that it is for.
        whole: whether it puts all of a part, or of one occurrence of it, into one call. A rule that is not whole gets
            what whole ones have left.
        valid: bodies before and after.
        invalid: bodies that it leaves, and part of the reason that is then given.
        plan: notes in the edits which calls of the part it takes, what is to stand in their place, and why it leaves
            others. It looks at those calls only that no rule before it has taken.
        method: name of the method that the rewritten code calls, of those in :mod:`patchkit.runtime`.
        arguments: what the maker of that method has to know of the block and of a site, as keyword arguments. A class
            has one method of a name, so they must be the same for every site of a method.
        blocks: the kinds of blocks that it is for, where that is not all that hold the part.
        maker: what makes the method, of those in :data:`patchkit.runtime.methods.METHODS`; empty if that is listed
            under the method's own name. Two kinds of blocks may have one method that is made in two ways.
    """

    name: RuleName
    parts: tuple[Part, ...]
    whole: bool
    valid: tuple[tuple[str, str], ...]
    invalid: tuple[tuple[str, str], ...]
    plan: Callable[[ParsedMethod, Block, Part, Edits], None]
    method: str
    arguments: Callable[[Block, Site], dict[str, Any]]
    blocks: tuple[type[Block], ...] = BLOCKS
    maker: str = ""
