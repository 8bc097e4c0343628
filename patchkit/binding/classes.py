"""Patched classes: subclasses of upstream's with the rewritten ``forward``, and how they are copied and pickled."""

from __future__ import annotations

import copy
import copyreg
import hashlib
import linecache
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

from torch import nn

from patchkit.adapters.registry import STANDS_FOR
from patchkit.arch.spec import Block, LanguageModel, Part
from patchkit.binding.patch import Patch, Refusal, type_of_patch
from patchkit.binding.wrappers import rewrapped
from patchkit.errors import RewriteError
from patchkit.module_tree import PATCH, forget_replaced
from patchkit.rewrite.rewriter import rewrite
from patchkit.rewrite.rules.registry import rule_named
from patchkit.rewrite.sites import Rewritten, Site
from patchkit.runtime.dispatch import PatchedForward
from patchkit.runtime.layers import layer_kind
from patchkit.runtime.loss import with_logits_if_asked
from patchkit.runtime.methods import METHODS
from patchkit.runtime.precision import AdapterPrecision
from patchkit.upstream.known_wrappers import is_checkpointing_wrapper, names_configuration, puts_checkpointing_around
from patchkit.upstream.live import LiveMethod, compiled, find_code, read_method, with_code
from patchkit.upstream.text import split_lines

Methods: TypeAlias = dict[str, Callable[..., Any]]

_cache: dict[tuple[object, ...], type[nn.Module] | Refusal] = {}


def patched_class(
    cls: type[nn.Module],
    block: Block,
    parts: frozenset[Part],
    precision: AdapterPrecision = "peft",
    memory: str | None = None,
) -> type[nn.Module] | Refusal:
    """The patched subclass of an upstream class, or why there is none, for each part.

    The same arguments give the same patched class, as long as the class's ``forward`` stays the same.

    Args:
        cls: the upstream class.
        block: how it is described.
        parts: which are to be patched.
        precision: in which its adapters are to compute.
        memory: how its MLP or loss is to save memory, see :mod:`patchkit.runtime.memory`; None where it has none.
    """
    wanted = parts & frozenset(block.parts)
    method = read_method(cls, "forward")
    if isinstance(method, str):
        return Refusal.of(wanted, method)
    key = (cls, method.attribute, block, wanted, precision, memory)
    if key not in _cache:
        forget_replaced(_cache, cls)
        _cache[key] = _build(cls, block, wanted, _How(precision, memory), method)
    return _cache[key]


class _How(NamedTuple):
    """How the methods of a patched class compute: the options of that name."""

    precision: AdapterPrecision
    memory: str | None


def _build(
    cls: type[nn.Module], block: Block, parts: frozenset[Part], how: _How, method: LiveMethod
) -> type[nn.Module] | Refusal:
    try:
        rewritten = rewrite(method.source, _named(block, method), only=parts, filename=method.filename)
    except RewriteError as error:
        return Refusal.of(parts, str(error))
    if not rewritten.sites:
        return Refusal(parts, rewritten.skips)
    methods = _methods(block, rewritten.sites, how)
    forward = _why_not_derivable(cls, methods, whole_model=isinstance(block, LanguageModel)) or _compile(
        rewritten, method
    )
    if isinstance(forward, str):
        return Refusal.of(parts, forward)
    if isinstance(block, LanguageModel):
        forward = with_logits_if_asked(forward, method.attribute)
    descriptor = PatchedForward(forward, cls, method.attribute, looked_up(block))
    namespace = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "forward": descriptor.as_function() if is_checkpointing_wrapper(method.attribute) else descriptor,
        **methods,
        **copying(cls),
        PATCH: Patch(cls, block, parts, *how, method.attribute, rewritten.sites, rewritten.skips),
    }
    if "__firstlineno__" in vars(cls):  # Python 3.13: where inspect finds the source of the class
        namespace["__firstlineno__"] = vars(cls)["__firstlineno__"]
    made = type(cls.__name__, (cls,), namespace)
    descriptor.__set_name__(made, "forward")
    return made


def layer_class(cls: type[nn.Module], part: Part, precision: AdapterPrecision = "peft") -> type[nn.Module] | Refusal:
    """The patched subclass of an adapter library's layer class, or why there is none. The same arguments give the same.

    Args:
        cls: the library's class.
        part: what the layer is in the model.
        precision: in which its adapters are to compute.
    """
    kind = layer_kind(cls, part)
    if cls not in kind.readers:
        return Refusal.of([part], f"it is a {cls.__module__}.{cls.__qualname__}")
    method = read_method(cls, "forward")
    if isinstance(method, str):
        return Refusal.of([part], method)
    key = (cls, method.attribute, part, precision)
    if key not in _cache:
        namespace = {
            "__module__": cls.__module__,
            "__qualname__": cls.__qualname__,
            "__doc__": cls.__doc__,
            "forward": kind.make_forward(cls, precision),
            **copying(cls),
            STANDS_FOR: cls,
            PATCH: Patch(cls, None, frozenset({part}), precision, None, method.attribute, (), ()),
        }
        _cache[key] = type(cls.__name__, (cls,), namespace)
    return _cache[key]


_QUIET = frozenset({"builtins", "abc", "typing", "typing_extensions", "torch"})
"""Packages whose classes may watch subclasses being made: nothing that a user could see follows from one more."""


def _why_not_derivable(cls: type[nn.Module], methods: Iterable[str], *, whole_model: bool) -> str | None:
    """Why a subclass with these methods cannot be made without running a user's code, or None if it can."""
    hooks = {base: vars(base)["__init_subclass__"] for base in cls.__mro__ if "__init_subclass__" in vars(base)}
    watchers = [
        base
        for base, hook in hooks.items()
        if not puts_checkpointing_around(hook) and not (whole_model and names_configuration(hook))
    ]
    for watcher, what in ((type(cls), "metaclass"), *[(base, "__init_subclass__") for base in watchers]):
        if watcher.__module__.partition(".")[0] not in _QUIET:
            name = f"{watcher.__module__}.{watcher.__qualname__}"
            return f"a subclass of it cannot be made unseen: the {what} of {name} would run"
    taken = sorted(name for name in methods if any(name in vars(base) for base in cls.__mro__))
    return f"it already has an attribute {taken[0]}" if taken else None


def _named(block: Block, method: LiveMethod) -> Block:
    """The block under the name of the class that defines forward, which may be a subclass of the registered one."""
    return replace(block, class_name=method.owner.__qualname__)


def _compile(rewritten: Rewritten, method: LiveMethod) -> Callable[..., Any] | str:
    """The rewritten method as a function that runs in upstream's globals, visible to tracebacks and ``inspect``."""
    digest = hashlib.sha256(rewritten.source.encode()).hexdigest()[:12]
    filename = f"<patchkit {method.owner.__module__}.{method.owner.__qualname__} {digest}>"
    code = find_code(compiled(rewritten.source, filename), method.function.__qualname__)
    if code is None:
        return "the rewritten source does not compile"
    # No modification time: such an entry is never checked against the disk.
    linecache.cache[filename] = (len(rewritten.source), None, split_lines(rewritten.source), filename)
    try:
        function = with_code(method.function, code)
    except ValueError as error:
        return str(error)
    return rewrapped(function, method)


def _methods(block: Block, sites: tuple[Site, ...], how: _How) -> Methods:
    """The methods that the rewritten source calls. Those of a whole MLP and of a loss are told how to save memory."""
    methods: Methods = {}
    for site in sites:
        rule = rule_named(site.rule)
        maker = METHODS[rule.maker or rule.method]
        options = how._asdict() if rule.method in ("apply_mlp", "apply_loss") else {"precision": how.precision}
        methods[rule.method] = maker(**rule.arguments(block, site), **options)
    return methods


def looked_up(block: Block) -> tuple[str, ...]:
    """The attributes that the methods take from a block."""
    return block.modules


def copying(cls: type[nn.Module]) -> Methods:
    """deepcopy keeps the patch; a pickle names the upstream class, so it loads where patchkit is not installed."""

    def __reduce_ex__(self: nn.Module, protocol: Any) -> Any:  # noqa: N807
        reduced = super(type_of_patch(self), self).__reduce_ex__(protocol)
        if not isinstance(reduced, tuple) or type(self) not in reduced[1]:
            return reduced
        # copyreg's own constructor: pickle insists that __newobj__ names the object's class.
        return (copyreg._reconstructor, (cls, object, None), *reduced[2:])  # type: ignore[attr-defined]

    def __deepcopy__(self: nn.Module, memo: dict[int, Any]) -> nn.Module:  # noqa: N807
        reduced = super(type_of_patch(self), self).__reduce_ex__(4)
        if not isinstance(reduced, tuple):
            return self
        make, args, state = (*reduced, None)[:3]
        new: nn.Module = make(*copy.deepcopy(args, memo))
        memo[id(self)] = new
        if state is not None:
            new.__setstate__(copy.deepcopy(state, memo))  # type: ignore[no-untyped-call]
        return new

    own: dict[str, Any] = {"__reduce_ex__": __reduce_ex__}
    if not hasattr(cls, "__deepcopy__"):
        own["__deepcopy__"] = _Own(__deepcopy__)
    return own


class _Own:
    """A method that is the object's own: one that holds the object and hands on its attributes does not have it.

    PEFT's models look up in the model within them whatever they lack. ``copy.deepcopy`` asks an object for
    ``__deepcopy__``, and would get the copy of a patched model in the place of PEFT's model around it.
    """

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method: Any = method

    def __get__(self, instance: object, owner: type) -> Any:
        if instance is not None and sys._getframe(1).f_code.co_name == "__getattr__":
            raise AttributeError("__deepcopy__")
        return self._method.__get__(instance, owner)
