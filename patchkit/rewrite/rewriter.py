"""Rewriting one method of one class: source text in, source text and a report out."""

from __future__ import annotations

from patchkit.arch.spec import Attention, GatedMLP, Part
from patchkit.rewrite.edits import Plan
from patchkit.rewrite.parsed_method import Method
from patchkit.rewrite.rules.gated_mlp import plan_mlp
from patchkit.rewrite.rules.projections import plan_output, plan_qkv
from patchkit.rewrite.sites import Rewritten, Skip
from patchkit.upstream.method_text import find_method
from patchkit.upstream.text import failures_of

ALL_PARTS: frozenset[Part] = frozenset({"qkv", "o", "mlp"})
"""Every part of a model that can be rewritten."""


def rewrite(
    source: str,
    block: Attention | GatedMLP,
    *,
    only: frozenset[Part] = ALL_PARTS,
    method: str = "forward",
    filename: str = "<source>",
) -> Rewritten:
    """Rewrite the projection calls of one attention or MLP class.

    The new text calls ``self.apply_qkv(x)``, ``self.apply_o(x)``, ``self.apply_mlp(x)`` and
    ``self.apply_linear(self.name, x)``, which the patched class has to provide. Nothing of upstream is imported or run.

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


def _rewritten(
    source: str, block: Attention | GatedMLP, only: frozenset[Part], method: str, filename: str
) -> Rewritten:
    text = find_method(source, block.class_name, method, filename)
    parsed = Method(text, filename)
    plan = Plan()
    names: tuple[Part, ...] = ("qkv", "o") if isinstance(block, Attention) else ("mlp",)
    wanted = [name for name in names if name in only]
    if why := _why_untouchable(parsed):
        plan.skips.extend(Skip(name, why, text.line) for name in wanted)
    else:
        _plan(parsed, block, wanted, plan)
    new = parsed.text_of(plan.applied_to(parsed.module)) if plan.sites else text.text
    return Rewritten(
        class_name=block.class_name,
        method=method,
        source=text.before + new + text.after,
        method_source=new,
        line=text.line,
        sites=tuple(sorted(plan.sites, key=lambda site: site.line)),
        skips=tuple(plan.skips),
    )


def _plan(method: Method, block: Attention | GatedMLP, wanted: list[Part], plan: Plan) -> None:
    if isinstance(block, GatedMLP):
        if "mlp" in wanted:
            plan_mlp(method, block, plan)
        return
    if "qkv" in wanted:
        plan_qkv(method, block, plan)
    if "o" in wanted:
        plan_output(method, block, plan)


def _why_untouchable(method: Method) -> str | None:
    if method.self_name is None:
        return "the method has no first parameter that stands for the object throughout"
    return "already rewritten" if method.is_rewritten else None
