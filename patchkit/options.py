"""The options of ``patchkit.apply``: their names, defaults and values, said once."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypedDict, TypeVar, get_args

from patchkit.arch.spec import PARTS, Part
from patchkit.errors import UnknownOptionError
from patchkit.runtime.memory import memory_of
from patchkit.runtime.precision import AdapterPrecision

Trust = Literal["ledger", "verify", "always"]
"""``ledger``: bind what is proven. ``verify``: also what is verified on the spot. ``always``: bind without asking."""

_SAVING: frozenset[Part] = frozenset({"mlp", "norm", "loss"})
_CHOICES: dict[str, tuple[str, ...]] = {"precision": get_args(AdapterPrecision), "trust": get_args(Trust)}


@dataclass(frozen=True)
class Options:
    """The options of :func:`patchkit.apply`, which says what each means."""

    qkv: bool = True
    o: bool = True
    mlp: bool = True
    linear: bool = True
    experts: bool = True
    embedding: bool = True
    head: bool = True
    loss: bool = False
    norm: bool = True
    strict: bool = False
    precision: AdapterPrecision = "peft"
    memory: str | None = None
    trust: Trust = "verify"

    @property
    def parts(self) -> frozenset[Part]:
        """The parts that are asked for."""
        chosen = asdict(self)
        return frozenset(part for part in PARTS if chosen[part] and (part != "norm" or self.memory is not None))

    def memory_of(self, parts: Collection[Part]) -> str | None:
        """The option ``memory`` for a module with these parts: it is about MLPs, norms and the loss."""
        return None if _SAVING.isdisjoint(parts) else self.memory


class NamedOptions(TypedDict, total=False):
    """The same, for type checkers: what a function with these options takes by name."""

    qkv: bool
    o: bool
    mlp: bool
    linear: bool
    experts: bool
    embedding: bool
    head: bool
    loss: bool
    norm: bool
    strict: bool
    precision: AdapterPrecision
    memory: str | None
    trust: Trust


def checked(options: Mapping[str, Any]) -> Options:
    """The options that were given by name.

    Raises:
        UnknownOptionError: one does not exist, or its value has the wrong type.
    """
    names = [field.name for field in fields(Options)]
    for name, value in options.items():
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise UnknownOptionError(f"unknown option {name!r}{hint} The options are {', '.join(names)}.")
        if name in _CHOICES:
            if value not in _CHOICES[name]:
                choices = " or ".join(map(repr, _CHOICES[name]))
                raise UnknownOptionError(f"option {name!r} takes {choices}, found {value!r}")
        elif name == "memory":
            try:
                memory_of(value)
            except ValueError as error:
                raise UnknownOptionError(f"option 'memory' {error}") from None
        elif not isinstance(value, bool):
            raise UnknownOptionError(f"option {name!r} takes True or False, found {value!r}")
    return Options(**options)


_Function = TypeVar("_Function", bound=Callable[..., Any])


def takes_options(function: _Function) -> _Function:
    """Show every option and its default in the signature of a function that takes ``**options``."""
    signature = inspect.signature(function)
    own = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
    named = [
        inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=one.type)
        for one in fields(Options)
    ]
    function.__signature__ = signature.replace(parameters=[*own, *named])  # type: ignore[attr-defined]
    return function
