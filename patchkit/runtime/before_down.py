"""What may stand between the activation of an MLP and its down projection: dropout, and the cast of T5 and its like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchkit.adapters.formula import Formula
from patchkit.adapters.peft import FORMULA
from patchkit.adapters.protocol import Reason, drop_probability, interference

_DROPOUT = Formula({nn.Dropout: "forward", nn.Identity: "forward", F: "dropout"}, after=FORMULA)


class Between(NamedTuple):
    """All of that, called as upstream calls it.

    Attributes:
        down: the down projection.
        dropout: a module or a function; None for none.
        how: what a function is given by name.
        cast_unless: dtypes of ``down``'s weight for which there is no cast to its dtype; None if there never is one.
    """

    down: nn.Module
    dropout: Any
    how: Mapping[str, Any]
    cast_unless: Sequence[torch.dtype] | None

    def __call__(self, hidden: Tensor) -> Tensor:
        """What ``down`` is given, of what the activation yields."""
        if self.dropout is not None:
            hidden = self.dropout(hidden, **self.how)
        weight: Any = None if self.cast_unless is None else self.down.weight
        if self.cast_unless is None or not isinstance(weight, Tensor):
            return hidden
        return hidden if weight.dtype in (hidden.dtype, *self.cast_unless) else hidden.to(weight.dtype)


def read_dropout(dropout: Any, how: Mapping[str, Any]) -> float | Reason:
    """The probability with which an element is zeroed in this call, or why the dropout must be called.

    Args:
        dropout: a module, or a function; None for none.
        how: what a function is given by name: ``p`` and ``training``.
    """
    if dropout is None:
        return 0.0
    if dropout is F.dropout:
        found = _of_function(**how)
    elif isinstance(dropout, nn.Module) and not how:
        found = interference(dropout) or drop_probability(dropout)
    else:
        found = f"it is a {type(dropout).__qualname__}"
    return found if isinstance(found, str) else _DROPOUT.replaced() or found


def _of_function(p: object = 0.5, training: object = True) -> float | Reason:
    if type(training) is not bool:
        return f"its training is a {type(training).__name__}"
    if type(p) is not float and type(p) is not int:
        return f"its p is a {type(p).__name__}"
    if not 0 <= p <= 1:
        return f"its p is {p}"
    return p if training else 0.0
