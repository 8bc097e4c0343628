"""The operators: each makes one kind of silent fault, and none that the first call would show."""

from __future__ import annotations

from tools.mutants.operators import calls, choices, collections, conditions, names, numbers, statements
from tools.mutants.operators.operator import Operator

OPERATORS: tuple[Operator, ...] = (
    *conditions.OPERATORS,
    *choices.OPERATORS,
    *numbers.OPERATORS,
    *names.OPERATORS,
    *collections.OPERATORS,
    *calls.OPERATORS,
    *statements.OPERATORS,
)
