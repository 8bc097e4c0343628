"""A cast that T5 and its like make before the last projection of an MLP, where its weights were kept in another dtype.

::

    if (
        isinstance(self.wo.weight, torch.Tensor)
        and h.dtype != self.wo.weight.dtype
        and self.wo.weight.dtype != torch.int8
    ):
        h = h.to(self.wo.weight.dtype)
"""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from patchkit.rewrite.global_calls import dotted
from patchkit.rewrite.parsed_method import ParsedMethod
from patchkit.rewrite.straight_line import Statement, statements


def exceptions_of_cast(
    method: ParsedMethod, statement: Statement, variable: str, projection: str
) -> tuple[str, ...] | None:
    """The dtypes of weights for which no cast is made, if a statement is this cast; else None.

    Args:
        method: the method.
        statement: the statement.
        variable: the local variable that is cast.
        projection: attribute name of the projection whose weight says the dtype.
    """
    if not isinstance(statement, cst.If) or statement.orelse is not None or "torch" in method.local_names:
        return None
    weight = f"{method.self_name}.{projection}.weight"
    body = statements(statement.body)
    if len(body) != 1 or not _is_cast(body[0], variable, f"{weight}.dtype"):
        return None
    exceptions: list[str] = []
    found = set[str]()
    for condition in _conjuncts(statement.test):
        pair = _unequal(condition)
        if _is_tensor(condition, weight):
            found.add("tensor")
        elif pair == (f"{variable}.dtype", f"{weight}.dtype"):
            found.add("differs")
        elif pair is not None and pair[0] == f"{weight}.dtype" and pair[1].startswith("torch."):
            exceptions.append(pair[1])
        else:
            return None
    return tuple(exceptions) if found == {"tensor", "differs"} else None


def _is_cast(statement: Statement, variable: str, dtype: str) -> bool:
    """``h = h.to(self.wo.weight.dtype)``."""
    if not isinstance(statement, cst.Assign) or len(statement.targets) != 1:
        return False
    call = statement.value
    return (
        dotted(statement.targets[0].target) == variable
        and isinstance(call, cst.Call)
        and dotted(call.func) == f"{variable}.to"
        and len(call.args) == 1
        and not call.args[0].star
        and call.args[0].keyword is None
        and dotted(call.args[0].value) == dtype
    )


def _conjuncts(expression: cst.BaseExpression) -> Iterator[cst.BaseExpression]:
    if isinstance(expression, cst.BooleanOperation) and isinstance(expression.operator, cst.And):
        yield from _conjuncts(expression.left)
        yield from _conjuncts(expression.right)
    else:
        yield expression


def _unequal(expression: cst.BaseExpression) -> tuple[str, str] | None:
    """Both sides of ``a != b``, where these are names with dots."""
    if not isinstance(expression, cst.Comparison) or len(expression.comparisons) != 1:
        return None
    (target,) = expression.comparisons
    sides = dotted(expression.left), dotted(target.comparator)
    return sides if isinstance(target.operator, cst.NotEqual) and all(sides) else None


def _is_tensor(expression: cst.BaseExpression, name: str) -> bool:
    """``isinstance(self.wo.weight, torch.Tensor)``."""
    if not isinstance(expression, cst.Call) or dotted(expression.func) != "isinstance":
        return False
    plain = all(not one.star and one.keyword is None for one in expression.args)
    return plain and [dotted(one.value) for one in expression.args] == [name, "torch.Tensor"]
