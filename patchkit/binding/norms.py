"""Patched classes of norms: subclasses whose ``forward`` keeps its input and nothing else."""

from __future__ import annotations

from torch import nn

from patchkit.binding.classes import copying
from patchkit.binding.patch import Patch, Refusal
from patchkit.module_tree import PATCH, forget_replaced
from patchkit.runtime.norm import make_norm_forward
from patchkit.runtime.precision import AdapterPrecision
from patchkit.upstream.norms import Norm, norm_of

_known: dict[tuple[object, ...], Norm | str] = {}
_cache: dict[tuple[object, ...], type[nn.Module]] = {}


def described_norm(cls: type[nn.Module]) -> Norm | str:
    """:func:`~patchkit.upstream.norms.norm_of` a class, read once as long as its ``forward`` stays the same."""
    key = (cls, cls.forward)
    if key not in _known:
        forget_replaced(_known, cls)
        _known[key] = norm_of(cls)
    return _known[key]


def norm_class(
    cls: type[nn.Module], precision: AdapterPrecision = "peft", memory: str | None = "recompute"
) -> type[nn.Module] | Refusal:
    """The patched subclass of a norm's class, or why there is none. The same arguments give the same.

    Args:
        cls: upstream's class.
        precision: what was asked for of adapters, which a norm has none of.
        memory: what was asked for; a norm does the same for each value.
    """
    norm = described_norm(cls)
    if isinstance(norm, str):
        return Refusal.of(["norm"], norm)
    key = (cls, cls.forward, precision, memory)
    if key not in _cache:
        forget_replaced(_cache, cls)
        namespace = {
            "__module__": cls.__module__,
            "__qualname__": cls.__qualname__,
            "__doc__": cls.__doc__,
            "forward": make_norm_forward(cls, norm),
            **copying(cls),
            PATCH: Patch(cls, None, frozenset({"norm"}), precision, memory, vars(norm_owner(cls))["forward"], (), ()),
        }
        _cache[key] = type(cls.__name__, (cls,), namespace)
    return _cache[key]


def norm_owner(cls: type) -> type:
    """The class that defines the ``forward`` of a norm, itself or one that it inherits from."""
    return next(base for base in cls.__mro__ if "forward" in vars(base))
