"""Rewriting one method of one class: source text in, source text and a report out."""

from __future__ import annotations

from patchkit.arch.spec import PARTS, Block, Part
from patchkit.rewrite.edits import Edits
from patchkit.rewrite.parsed_method import ParsedMethod
from patchkit.rewrite.rules.registry import rules, rules_of
from patchkit.rewrite.sites import Rewritten
from patchkit.upstream.method_text import find_method
from patchkit.upstream.text import failures_of


def rewrite(
    source: str,
    block: Block,
    *,
    only: frozenset[Part] = frozenset(PARTS),
    method: str = "forward",
    filename: str = "<source>",
) -> Rewritten:
    """Rewrite the projection calls of one class, or the loss of a language model.

    The new text calls ``self.apply_qkv(x)``, ``self.apply_o(x)``, ``self.apply_mlp(x)``, ``self.apply_loss(x)``,
    ``self.apply_linear(self.name, x)`` and ``self.apply_shared(x, self.one, self.other)``, which the patched class has
    to provide. Nothing of upstream is imported or run.

    Args:
        source: text of the upstream module.
        block: the class, and the names of its projections. ``Outer.Inner`` as its name finds a nested class.
        only: parts to rewrite; others are neither touched nor reported.
        method: the method to rewrite.
        filename: what to call the module in error messages.

    Returns:
        The new text, what was rewritten in it, and what was not and why. Code that is not recognised is never an error,
        and is left as it is.

    Raises:
        RewriteError: the text does not parse, is nested too deeply, or has no such class or method.
    """
    with failures_of(filename, f"{block.class_name}.{method} cannot be rewritten"):
        return _rewritten(source, block, only, method, filename)


def _rewritten(source: str, block: Block, only: frozenset[Part], method: str, filename: str) -> Rewritten:
    text = find_method(source, block.class_name, method, filename)
    parsed = ParsedMethod(text, filename)
    edits = Edits()
    why = _why_untouchable(parsed)
    for part in block.parts:
        if part in only and why:
            edits.leave((), part, why, text.line)
        elif part in only:
            _plan(parsed, block, part, edits)
    new = parsed.text_of(edits.applied_to(parsed.module)) if edits.sites else text.text
    return Rewritten(
        class_name=block.class_name,
        method=method,
        source=text.before + new + text.after,
        method_source=new,
        line=text.line,
        sites=tuple(sorted(edits.sites, key=lambda site: site.line)),
        skips=edits.skips,
    )


def _plan(method: ParsedMethod, block: Block, part: Part, edits: Edits) -> None:
    """Ask the rules for a part about its calls, as long as any is left."""
    names = block.projections(part)
    calls = method.calls_of(*names)
    if not calls:
        edits.leave((), part, f"absent: {method.quote_of_self(*names)} is never called")
        return
    for rule in rules_of(part, block):
        if edits.untaken(calls):
            rule.plan(method, block, part, edits)
        if rule.whole:
            # What is rewritten by a rule that is not whole keeps the reason why it is no more than that.
            edits.forget_reasons_of_taken(part)


def _why_untouchable(method: ParsedMethod) -> str | None:
    if method.self_name is None:
        return "the method has no first parameter that stands for the object throughout"
    return "already rewritten" if method.calls_of(*(rule.method for rule in rules())) else None
