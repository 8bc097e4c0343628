"""The decisions of the rules about one method, and how they are carried out on its tree."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import libcst as cst

from patchkit.arch.spec import Part
from patchkit.rewrite.parsed_method import ProjectionCall
from patchkit.rewrite.sites import Site, Skip

Replacement = Callable[[cst.Call], cst.BaseExpression]
"""Makes the new expression from the call, in which inner calls were replaced already."""

Rebuilding = Callable[[Sequence[cst.BaseStatement]], Sequence[cst.BaseStatement]]
"""Makes the new lines of a body from its lines."""

_Line = TypeVar("_Line", cst.SimpleStatementSuite, cst.SimpleStatementLine)


@dataclass
class Edits:
    """What the rules want done.

    Attributes:
        replace: calls, and what is to stand in their place.
        insert: statements, and a new one to be put right before each.
        drop: statements to be removed.
        rebuild: bodies of which lines are put together anew, and what makes the new lines of the old ones, in which
            calls were replaced already. Nothing else of them is inserted or dropped.
        sites: see :class:`patchkit.rewrite.sites.Rewritten`.
    """

    replace: dict[cst.Call, Replacement] = field(default_factory=dict)
    insert: dict[cst.CSTNode, cst.BaseSmallStatement] = field(default_factory=dict)
    drop: set[cst.CSTNode] = field(default_factory=set)
    rebuild: dict[cst.CSTNode, Rebuilding] = field(default_factory=dict)
    sites: list[Site] = field(default_factory=list)
    _taken: set[cst.Call] = field(default_factory=set)
    _left: list[tuple[Skip, frozenset[cst.Call]]] = field(default_factory=list)

    @property
    def skips(self) -> tuple[Skip, ...]:
        """See :class:`patchkit.rewrite.sites.Rewritten`."""
        return tuple(skip for skip, _ in self._left)

    def take(self, calls: Iterable[ProjectionCall], site: Site) -> None:
        """Note that a rule rewrites these calls."""
        self._taken.update(call.node for call in calls)
        self.sites.append(site)

    def leave(self, calls: Iterable[ProjectionCall], part: Part, reason: str, line: int | None = None) -> None:
        """Note that a rule leaves these calls, and why; none if there is nothing that it could take."""
        self._left.append((Skip(part, reason, line), frozenset(call.node for call in calls)))

    def untaken(self, calls: Iterable[ProjectionCall]) -> tuple[ProjectionCall, ...]:
        """Those of some calls that no rule has taken."""
        return tuple(call for call in calls if call.node not in self._taken)

    def forget_reasons_of_taken(self, part: Part) -> None:
        """Drop what rules for a part had against calls that another rule has taken."""
        self._left = [
            (skip, calls) for skip, calls in self._left if skip.part != part or not calls or calls - self._taken
        ]

    def applied_to(self, module: cst.Module) -> cst.Module:
        """An edited copy of the module that the nodes of these edits belong to."""
        edited = module.visit(_Editor(self))
        return cst.ensure_type(edited, cst.Module)


def in_parentheses_of(new: cst.BaseExpression, call: cst.Call) -> cst.BaseExpression:
    """The new expression, in the parentheses that stand around the call."""
    return new.with_changes(lpar=call.lpar, rpar=call.rpar)


class _Editor(cst.CSTTransformer):
    def __init__(self, edits: Edits) -> None:
        super().__init__()
        self.edits = edits

    def leave_Call(self, original_node: cst.Call, updated_node: cst.Call) -> cst.BaseExpression:  # noqa: N802
        replacement = self.edits.replace.get(original_node)
        return replacement(updated_node) if replacement else updated_node

    def leave_SimpleStatementLine(  # noqa: N802
        self, original_node: cst.SimpleStatementLine, updated_node: cst.SimpleStatementLine
    ) -> cst.SimpleStatementLine:
        # A line of one statement is dropped, or gets a line above it, when its block is left.
        return self._small_statements(original_node, updated_node) if len(original_node.body) > 1 else updated_node

    def leave_SimpleStatementSuite(  # noqa: N802
        self, original_node: cst.SimpleStatementSuite, updated_node: cst.SimpleStatementSuite
    ) -> cst.SimpleStatementSuite:
        return self._small_statements(original_node, updated_node)

    def _small_statements(self, original: _Line, updated: _Line) -> _Line:
        body: list[cst.BaseSmallStatement] = []
        for before, after in zip(original.body, updated.body, strict=True):
            if before in self.edits.insert:
                semicolon = cst.Semicolon(whitespace_after=cst.SimpleWhitespace(" "))
                body.append(self.edits.insert[before].with_changes(semicolon=semicolon))
            if before not in self.edits.drop:
                body.append(after)
        return updated.with_changes(body=body)

    def leave_IndentedBlock(  # noqa: N802
        self, original_node: cst.IndentedBlock, updated_node: cst.IndentedBlock
    ) -> cst.IndentedBlock:
        if original_node in self.edits.rebuild:
            return updated_node.with_changes(body=self.edits.rebuild[original_node](updated_node.body))
        body: list[cst.BaseStatement] = []
        comments: tuple[cst.EmptyLine, ...] = ()
        for before, after in zip(original_node.body, updated_node.body, strict=True):
            statement = _single_statement(before)
            above = (*comments, *getattr(after, "leading_lines", ()))
            if statement in self.edits.drop:
                # Comments above a dropped line stay, above the next one.
                comments = tuple(line for line in above if line.comment)
                continue
            if statement in self.edits.insert:
                body.append(cst.SimpleStatementLine([self.edits.insert[statement]], leading_lines=above))
                body.append(after.with_changes(leading_lines=()))
            else:
                body.append(after.with_changes(leading_lines=above) if comments else after)
            comments = ()
        return updated_node.with_changes(body=body)


def _single_statement(line: cst.BaseStatement) -> cst.CSTNode:
    """The statement of a line that has just one, else the line itself."""
    return line.body[0] if isinstance(line, cst.SimpleStatementLine) and len(line.body) == 1 else line
