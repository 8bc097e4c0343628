"""The new lines of a language model's ``forward``: a call of the fused loss, and upstream's lines where it is None."""

from __future__ import annotations

from collections.abc import Sequence

import libcst as cst

from patchkit.rewrite.edits import Edits
from patchkit.rewrite.loss_match import METHOD, LossMatch
from patchkit.rewrite.parsed_method import ParsedMethod

_NAMES = ("states", "head_states", "states_of_head")


def rebuild(method: ParsedMethod, match: LossMatch, edits: Edits) -> None:
    """Note in the edits what becomes of the lines that were found."""
    argument = match.call.argument
    assert argument is not None
    states, above = argument, []
    if not isinstance(argument, cst.Name):
        # Evaluated once, where upstream evaluates it.
        states = cst.Name(_free_name(method))
        above.append(f"{states.value} = {method.module.code_for_node(argument)}")
        edits.replace[match.call.node] = lambda node: node.with_changes(args=[cst.Arg(states)])
    new = [*above, *_new_lines(method, match, states)]

    def lines(old: Sequence[cst.BaseStatement]) -> list[cst.BaseStatement]:
        first, last = match.first, match.last
        hoisted = [old[index] for index in range(first, last + 1) if index in match.hoisted]
        kept = [old[index] for index in range(first, last + 1) if index not in match.hoisted]
        kept[0], comments = kept[0].with_changes(leading_lines=()), kept[0].leading_lines  # type: ignore[attr-defined]
        inserted = [cst.parse_statement(text) for text in new]
        condition = cst.If(cst.parse_expression(f"{match.loss} is None"), cst.IndentedBlock(kept))
        added = [*hoisted, *inserted, condition]
        added[0] = added[0].with_changes(leading_lines=comments)
        return [*old[:first], *added, *old[last + 1 :]]

    edits.rebuild[method.function.body] = lines


def _new_lines(method: ParsedMethod, match: LossMatch, states: cst.BaseExpression) -> list[str]:
    code = method.module.code_for_node
    scaled = [f"{name}={value}" for name, value in match.steps.arguments().items()]
    given = [f"{one.star}{one.keyword.value + '=' if one.keyword else ''}{code(one.value)}" for one in match.given]
    call = f"{method.self_name}.{METHOD}({', '.join([code(states), *scaled])})({', '.join(given)})"
    unless = f" and {match.unless_not}" if match.unless_not else ""
    return [
        f"{match.logits} = {match.loss} = None",
        f"if {match.labels} is not None{unless}:\n    {match.loss} = {call}\n",
    ]


def _free_name(method: ParsedMethod) -> str:
    taken = {node.value for node in method.names}
    return next(name for name in (*_NAMES, *(f"states_{i}" for i in range(len(taken) + 1))) if name not in taken)
