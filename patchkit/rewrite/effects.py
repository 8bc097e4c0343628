"""What code may do to a tensor, or to the random number generator, judged by names alone.

Uses of a tensor, and calls of anything that belongs to the object, count as harmful unless they are known not to be;
functions of modules and methods of other objects count as harmless unless their names say otherwise.
"""

from __future__ import annotations

from collections.abc import Collection

import libcst as cst

from patchkit.rewrite.parsed_method import ParsedMethod

HARMLESS_ATTRIBUTES = frozenset(
    {"shape", "dtype", "device", "ndim", "layout", "is_cuda", "is_cpu", "is_nested", "requires_grad", "itemsize"}
)
"""Attributes of a tensor that say something about it and share no memory with it."""

HARMLESS_METHODS = frozenset(
    {
        "size", "dim", "numel", "nelement", "ndimension", "stride", "get_device", "element_size", "is_contiguous",
        "is_floating_point", "storage_offset",
    }
)  # fmt: skip
"""Methods of a tensor of which the same is true."""

HARMLESS_FUNCTIONS = frozenset({"len", "isinstance", "type", "hasattr", "id"})
"""Functions that only look at their argument."""

_DRAWING = (
    "drop", "rand", "bernoulli", "multinomial", "normal_", "log_normal", "uniform", "exponential_", "geometric_",
    "cauchy_", "poisson", "binomial", "rrelu", "gumbel", "sample", "noise", "jitter", "stochastic",
)  # fmt: skip
"""Parts of the names of functions that draw random numbers."""

_STATE = ("seed", "rng", "set_", "grad_enabled", "autocast_enabled", "train", "eval", "hook", "load_", "requires_grad_")
"""Parts of the names of functions that change how a later projection is computed."""

_RUNNING = ("proj", "forward", "lora", "__call__")
"""Parts of the names of calls that may run a projection, with dropout of its own."""

_QUIET_ON_SELF = ("norm", "shape", "heads", "rotary", "rope", "transpose", "view", "permute", "scale")
"""Parts of the names of modules and helpers of a block that no adapter with dropout is put on.

Any other module of the block may be a target of LoRA, and its dropout draws.
"""


def is_harmless_read(method: ParsedMethod, name: cst.Name) -> bool:
    """Whether this occurrence of a variable can neither change the tensor in it nor give it a second name."""
    parent = method.parent(name)
    if isinstance(parent, cst.Attribute):
        return parent.attr.value in HARMLESS_ATTRIBUTES | HARMLESS_METHODS
    if isinstance(parent, cst.Arg):
        outer = method.parent(parent)
        if not (isinstance(outer, cst.Call) and isinstance(outer.func, cst.Name)):
            return False
        return outer.func.value in HARMLESS_FUNCTIONS
    return isinstance(parent, (cst.BinaryOperation, cst.UnaryOperation, cst.Comparison, cst.ComparisonTarget))


def why_call_is_unsafe(method: ParsedMethod, call: cst.Call, own: Collection[str]) -> str | None:
    """Why a projection must not be moved past this call, or None if it may.

    Args:
        method: the method.
        call: the call.
        own: names of the object and of what belongs to it, such as ``layer`` after ``layer = self.layers[0]``.
    """
    if isinstance(call.func, cst.Name):
        name = call.func.value
        if name in method.local_names or name == "super":
            return "may run another module"
    elif isinstance(call.func, cst.Attribute):
        name = call.func.attr.value
    else:
        return "calls something computed"
    if name == "normal" or any(part in name.lower() for part in _DRAWING):
        return "may draw random numbers"
    if any(part in name.lower() for part in _STATE):
        return "may change how projections are computed"
    if any(part in name.lower() for part in _RUNNING):
        return "may run another projection, whose dropout draws random numbers"
    path = _path_from(own, call.func)
    if path and name not in HARMLESS_METHODS and not any(quiet in path.lower() for quiet in _QUIET_ON_SELF):
        return "may run another module, whose dropout draws random numbers"
    return None


def _path_from(names_of_start: Collection[str], expression: cst.BaseExpression) -> str | None:
    """``a.b.c`` for ``start.a.b[0].c``; None if it starts from anything else, the result of a call too."""
    names = []
    while isinstance(expression, (cst.Attribute, cst.Subscript)):
        if isinstance(expression, cst.Attribute):
            names.append(expression.attr.value)
        expression = expression.value
    if isinstance(expression, cst.Name) and expression.value in names_of_start:
        return ".".join(reversed(names))
    return None


def changes_in_place(method: ParsedMethod, node: cst.CSTNode) -> bool:
    """Whether this node changes a tensor, container or object in place, as far as its syntax says."""
    if isinstance(node, (cst.Attribute, cst.Subscript)):
        return method.is_stored(node)
    if isinstance(node, cst.Call) and isinstance(node.func, cst.Attribute):
        name = node.func.attr.value
        return (name.endswith("_") and not name.endswith("__")) or name == "__setitem__"
    if isinstance(node, cst.Arg):
        return node.keyword is not None and node.keyword.value in ("out", "inplace")
    return isinstance(node, cst.AugAssign)


def aliases(method: ParsedMethod, name: str) -> frozenset[str]:
    """Local names that may share memory with a variable: by plain assignment, choice, views and methods of it.

    A function that is passed a tensor and returns it unseen is not followed.
    """
    groups: list[frozenset[str]] = []
    for node in method.walk(method.function.body):
        if isinstance(node, cst.Assign):
            targets = frozenset().union(*(_targets(target.target) for target in node.targets))
            value: cst.BaseExpression | None = node.value
        elif isinstance(node, (cst.AnnAssign, cst.NamedExpr)):
            targets, value = _targets(node.target), node.value
        elif isinstance(node, cst.For):
            targets, value = _targets(node.target), node.iter
        else:
            continue
        if value is not None:
            groups.append((targets | _sources(method, value)) & method.local_names)
    found, before = frozenset({name}), frozenset[str]()
    while found != before:
        before = found
        found = found.union(*(group for group in groups if len(group) > 1 and group & found))
    return found


def _targets(target: cst.BaseExpression) -> frozenset[str]:
    if isinstance(target, cst.Name):
        return frozenset({target.value})
    if isinstance(target, (cst.Tuple, cst.List)):
        return frozenset().union(*(_targets(element.value) for element in target.elements))
    if isinstance(target, (cst.Attribute, cst.Subscript)):  # container[0] = tensor
        return _targets(target.value)
    return frozenset()


def _sources(method: ParsedMethod, value: cst.BaseExpression) -> frozenset[str]:
    """Variables whose memory the value of an expression may be, or be part of."""
    parts: list[cst.BaseExpression] = []
    if isinstance(value, cst.Name):
        return frozenset({value.value})
    if isinstance(value, cst.Attribute):
        parts = [] if value.attr.value in HARMLESS_ATTRIBUTES else [value.value]
    elif isinstance(value, cst.Call) and isinstance(value.func, cst.Attribute):
        # A method of a tensor may return a view; what a module of the object returns is taken for new.
        new = value.func.attr.value in HARMLESS_METHODS or _path_from({method.self_name or ""}, value.func)
        parts = [] if new else [value.func.value]
    elif isinstance(value, cst.Subscript):
        parts = [value.value]
    elif isinstance(value, cst.IfExp):
        parts = [value.body, value.orelse]
    elif isinstance(value, cst.BooleanOperation):
        parts = [value.left, value.right]
    elif isinstance(value, cst.NamedExpr):
        parts = [value.target, value.value]
    elif isinstance(value, (cst.Tuple, cst.List)):
        parts = [element.value for element in value.elements]
    return frozenset().union(*(_sources(method, part) for part in parts))
