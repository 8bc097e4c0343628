"""The functions that a formula stands for, and whether they are still the ones of their library.

A reader's formula is what certain functions of a library compute: ``torch.nn.Linear.forward``, ``F.linear``, PEFT's
``Linear.forward`` and what that calls. Anybody may put another function in such a place, for all modules of the process
and at any time. The formula is no longer what upstream runs then, and the modules must be called.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn

Namespace: TypeAlias = "type | ModuleType"

_ABSENT = object()
# Through these ``module(x)`` reaches ``forward``, and a module its parts. What stands in nn.Module under another name:
_OF_MODULES = ("__call__", "_call_impl", "_compiled_call_impl", "__getattr__", "__getattribute__")
_ALIASES = {"__call__": "_wrapped_call_impl"}


class _Place(NamedTuple):
    """Where something is looked up, and what stands there now.

    Attributes:
        owner: a class or a module.
        name: the attribute.
        home: the class in the owner's MRO that defines it, or the module; the owner if nothing does.
        value: what stands there, not bound to anything; a mark if nothing does.
        wanted: whether something has to stand there, or nothing may.
    """

    owner: Namespace
    name: str
    home: Namespace
    value: object
    wanted: bool

    def still_holds(self) -> bool:
        """Whether the same is found as when this was looked up."""
        return _find(self.owner, self.name, wanted=self.wanted).value is self.value


class Formula:
    """The functions of one or more libraries that a formula stands for.

    What stands in a place when it is first looked at need not be the library's own: that is decided by the file which
    its code is from. From then on identities are compared, in the namespaces that define the functions. That no class
    in between was given one of its own is seen from the number of attributes of each class: if one changes, everything
    is looked up again.

    Args:
        functions: classes and modules, and the names of their functions, separated by spaces. What the calls and the
            attributes of a ``torch.nn.Module`` go through is included. A name that the installed release lacks takes no
            part.
        absent: classes, and names that neither they nor their bases may define, because their instances do.
        after: another formula that is always asked about first. Once this one is in use, the other compares its
            functions too, so that they cost nothing more where many layers have the same formula.

    Attributes:
        intact: whether all functions are known to be the library's own. False may also say that it is not known yet,
            and :meth:`replaced` decides.
        held: whether ``after`` has compared the functions of this one when it was last found intact.
    """

    __slots__ = ("_absent", "_after", "_culprit", "_functions", "_guests", "_met", "_unknown", "held", "intact")

    def __init__(
        self,
        functions: Mapping[Any, str],
        absent: Mapping[type, str] | None = None,
        *,
        after: Formula | None = None,
        unknown: Callable[[], str | None] | None = None,
    ) -> None:
        self._unknown: tuple[Callable[[], str | None], ...] = () if unknown is None else (unknown,)
        self._after = after
        self._guests: list[Formula] = []
        self.held = False
        self._functions = {owner: tuple(names.split()) for owner, names in functions.items()}
        self._absent = {owner: tuple(names.split()) for owner, names in (absent or {}).items()}
        self.intact: Callable[[], bool] = _unknown
        self._culprit: _Place | None = None
        self._met: set[tuple[Namespace, str]] = set()  # what is gone later was deleted

    def __or__(self, other: Formula) -> Formula:
        """All functions of both, to be checked in one go."""
        both = Formula({})
        both._functions = {**self._functions, **other._functions}
        both._absent = {**self._absent, **other._absent}
        both._unknown = self._unknown + other._unknown
        return both

    def replaced(self) -> str | None:
        """What was replaced and by whom, in words for the report; None if every function is the library's own.

        In a graph that ``torch.compile`` makes, the answer is that of the time of tracing.
        """
        if torch.compiler.is_compiling():
            found: str | None = self._while_tracing()
            return found
        return self.look_up()

    def look_up(self) -> str | None:
        """The same, where nothing is traced."""
        if not self.intact():
            for guest in self._guests:
                guest.held = False
            self._guests.clear()
            for unknown in self._unknown:
                if (reason := unknown()) is not None:
                    return reason
            if self._culprit is None or not self._culprit.still_holds():
                places = list(self._places())
                self._met.update((place.owner, place.name) for place in places)
                self._culprit = next((place for place in places if not _is_own(place)), None)
                if self._culprit is None:
                    self.intact = _comparison(places, self._classes())
            if self._culprit is not None:
                return _described(self._culprit)
        if self._after is not None and not self.held and self._after.intact():
            self._after._take_in(self)
        return None

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def _while_tracing(self) -> str | None:
        """A method, because before torch 2.9 an argument would have to be a constant."""
        return self.look_up()

    def _take_in(self, guest: Formula) -> None:
        formulas = (self, *self._guests, guest)
        places = [place for formula in formulas for place in formula._places()]
        classes = dict.fromkeys(cls for formula in formulas for cls in formula._classes())
        self.intact = _comparison(places, list(classes))
        self._guests.append(guest)
        guest.held = True

    def _places(self) -> Iterator[_Place]:
        for owner, names in self._functions.items():
            of_modules = _OF_MODULES if isinstance(owner, type) and issubclass(owner, nn.Module) else ()
            for name in (*names, *of_modules):
                place = _find(owner, name, wanted=True)
                if place.value is not _ABSENT or (owner, name) in self._met:
                    yield place
        for owner, names in self._absent.items():
            for name in names:
                yield _find(owner, name, wanted=False)

    def _classes(self) -> list[type]:
        """Every class in which a name could turn up; what is defined in C cannot be given one."""
        owners = [owner for owner in (*self._functions, *self._absent) if isinstance(owner, type)]
        return list(dict.fromkeys(base for owner in owners for base in owner.__mro__ if base is not object))


def _unknown() -> bool:
    return False


def _find(owner: Namespace, name: str, *, wanted: bool) -> _Place:
    homes: tuple[Namespace, ...] = owner.__mro__ if isinstance(owner, type) else (owner,)
    home = next((home for home in homes if name in vars(home)), owner)
    return _Place(owner, name, home, vars(home).get(name, _ABSENT), wanted)


def _is_own(place: _Place) -> bool:
    """Whether what stands there is what the library's source puts there."""
    _, name, home, value, wanted = place
    if value is _ABSENT or not wanted:
        return value is _ABSENT and not wanted
    if home is object or (home is nn.Module and name == "_compiled_call_impl"):
        return value is None or home is object
    function: Any = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
    if isinstance(function, BuiltinFunctionType):
        return isinstance(home, ModuleType) and function.__name__ == name
    if not isinstance(function, FunctionType):
        return False
    prefix, defined_in = "", function.__module__
    if isinstance(home, type):
        prefix = f"{home.__qualname__}."
        if defined_in != home.__module__:
            return False
    elif defined_in.partition(".")[0] != home.__name__.partition(".")[0]:
        return False
    names = {f"{prefix}{name}", f"{prefix}{_ALIASES.get(name, name)}"}
    return function.__qualname__ in names and _stands_in(function, getattr(sys.modules[defined_in], "__file__", None))


def _stands_in(function: Any, file: str | None) -> bool:
    """Whether a function and all that it was wrapped around are from one file."""
    while isinstance(function, FunctionType):
        if function.__code__.co_filename != file:
            return False
        function = function.__dict__.get("__wrapped__")
    return function is None


def _described(place: _Place) -> str:
    owner = place.home
    path = owner.__name__ if isinstance(owner, ModuleType) else f"{owner.__module__}.{owner.__qualname__}"
    if place.value is _ABSENT:
        return f"{path}.{place.name} was deleted"
    value: Any = place.value.fget if isinstance(place.value, property) else place.value
    by = f"replaced by {name_of(value)}" if callable(value) else f"set to a {type(value).__qualname__}"
    return f"{path}.{place.name} was {by}"


def defines_any(cls: type, names: Iterable[str], *, below: type) -> bool:
    """Whether a class, or one between it and a base of it, has something of its own under one of these names."""
    between = cls.__mro__[: cls.__mro__.index(below)]
    return any(name in vars(base) for base in between for name in names)


def nothing_changed(*owners: type) -> Callable[[], bool]:
    """A function that says, of classes, whether none of them and of their bases has more or fewer attributes than now.

    And whether ``forward`` is the same.
    """
    classes = dict.fromkeys(base for owner in owners for base in owner.__mro__ if base is not object)
    places = [_find(owner, "forward", wanted=True) for owner in owners]
    return _comparison(places, list(classes))


def _comparison(places: list[_Place], classes: list[type]) -> Callable[[], bool]:
    """A function that says whether all is as it is now.

    It runs at every call of a block, so it is one chain of comparisons, made from text: a loop takes three times as
    long.
    """
    values: dict[str, object] = {f"class_{index}": vars(cls) for index, cls in enumerate(classes)}
    homes: dict[int, tuple[Namespace, dict[str, object]]] = {}
    for place in places:
        if place.wanted and place.home is not object:
            homes.setdefault(id(place.home), (place.home, {}))[1][place.name] = place.value
    terms = [f"len(class_{index}) == {len(vars(cls))}" for index, cls in enumerate(classes)]
    for index, (home, wanted) in enumerate(homes.values()):
        values[f"home_{index}"] = vars(home)
        for name, value in wanted.items():
            values[f"{name}_{index}"] = value
            terms.append(f"home_{index}[{name!r}] is {name}_{index}")
    # A KeyError: something was deleted.
    text = (
        f"def make({', '.join(values)}):\n def intact():\n  try:\n   return {' and '.join(terms) or 'True'}\n"
        "  except KeyError:\n   return False\n return intact"
    )
    namespace: dict[str, Any] = {}
    exec(text, namespace)
    made: Callable[[], bool] = namespace["make"](**values)
    return made


def name_of(function: Callable[..., Any]) -> str:
    """Dotted name of a function, a bound method or a partial."""
    while isinstance(function, functools.partial):
        function = function.func
    function = getattr(function, "__func__", function)
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', None) or type(function).__module__}.{name}"
