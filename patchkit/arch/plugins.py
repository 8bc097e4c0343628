"""Architectures of other packages, found through entry points.

A plugin is a package with an entry point in the group ``patchkit.architectures`` that loads an
:class:`~patchkit.arch.spec.Architecture` or a sequence of them. It is foreign code that runs while it is imported. One
that fails, ends the program, prints, returns something else or does not come to an end is named, and breaks neither the
others nor the output of a command. Only an end by ``os._exit``, which nothing in a process can hold back, is left.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import re
import signal
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import fields
from importlib.metadata import EntryPoint, entry_points
from typing import get_args

from patchkit.arch.spec import BLOCKS, Architecture, Tower
from patchkit.errors import PatchkitWarning

ENTRY_POINT_GROUP = "patchkit.architectures"

SLOW_SECONDS = 10.0
"""After which a plugin that still loads is named in the log."""

LIMIT_SECONDS = 120.0
"""After which it is left out, where the system can interrupt it: not on Windows, nor outside of the main thread."""

_MOST = 1000  # architectures of one plugin: an endless sequence is none

_EXPECTED = "expected of it: a patchkit.arch.spec.Architecture, or a sequence of them, as in CONTRIBUTING.md"

_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_NAME = re.compile(r"[\w.-]+")
_MODEL = re.compile(rf"({_MODULE.pattern}:)?[^\W\d]\w*")

logger = logging.getLogger("patchkit")


class _TookTooLong(BaseException):  # no Exception: those a plugin may catch
    """A plugin did not come to an end."""


def plugin_architectures() -> Iterator[tuple[str, Architecture]]:
    """The architectures of every plugin that works, each with what to call its plugin.

    A :class:`PatchkitWarning` names each plugin that does not work.
    """
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        plugin = f"plugin {entry_point.name!r} ({entry_point.value!r})"
        name = f"architecture {plugin}"
        try:
            with _watched(name), contextlib.redirect_stdout(sys.stderr):
                loaded = _load(entry_point)
        except KeyboardInterrupt:
            logger.warning("interrupted while %s was loading", name)
            raise
        except BaseException as error:  # SystemExit too: a plugin does not end the program
            message = f"{name} is broken and was left out: {_said(error)}; {_EXPECTED}"
            warnings.warn(message, PatchkitWarning, stacklevel=3)
        else:
            yield from ((plugin, architecture) for architecture in loaded)


def _load(entry_point: EntryPoint) -> tuple[Architecture, ...]:
    loaded = entry_point.load()
    found = tuple(itertools.islice(loaded, _MOST + 1)) if isinstance(loaded, Iterable) else (loaded,)
    if len(found) > _MOST:
        raise ValueError(f"it has more than {_MOST} architectures")
    for architecture in found:
        examine(architecture)
    return found


def examine(architecture: object) -> None:
    """That something is an architecture, and every word in it is one: names go into source text and onto terminals.

    Raises:
        TypeError: it is of another type.
        ValueError: a word is none.
    """
    if type(architecture) is not Architecture:
        raise TypeError(f"expected patchkit.arch.spec.Architecture, found {type(architecture).__name__}")
    lists = {one: _tuple(getattr(architecture, one), one) for one in ("model_types", "text_models", "blocks")}
    for word in (architecture.name, *lists["model_types"], *lists["text_models"]):
        if not isinstance(word, str) or not _NAME.fullmatch(word):
            raise ValueError(f"{word!r} is no name of an architecture or model type")
    if not isinstance(architecture.module, str) or not _MODULE.fullmatch(architecture.module):
        raise ValueError(f"{architecture.module!r} is no module; expected package.module")
    model = architecture.model
    if model is not None and not (isinstance(model, str) and _MODEL.fullmatch(model)):
        raise ValueError(f"{model!r} is no model; expected the name of a class, or package.module:Class")
    for block in lists["blocks"]:
        _examine_block(block)
    names = [block.class_name for block in architecture.blocks]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"more than one block describes class {twice[0]}")


def _examine_block(block: object) -> None:
    if not isinstance(block, BLOCKS) or type(block) not in BLOCKS:
        raise TypeError(f"expected {' or '.join(kind.__name__ for kind in BLOCKS)}, found {type(block).__name__}")
    for one in fields(block):
        value = getattr(block, one.name)
        if one.name == "tower":
            right = value in get_args(Tower)
        elif value is None:
            right = "None" in str(one.type)
        elif one.name == "groups":
            right = _are_groups(value)
        else:
            dotted = one.name == "class_name" or one.name.endswith("_function")
            right = isinstance(value, str) and bool(_MODULE.fullmatch(value) if dotted else value.isidentifier())
        if not right:
            raise ValueError(f"{value!r} is no {one.name} of {type(block).__name__}")


def _are_groups(value: object) -> bool:
    """Whether a word is tuples of two or more names each, every name once."""
    groups = value if isinstance(value, tuple) else ()
    if not groups or not all(isinstance(group, tuple) and len(group) > 1 for group in groups):
        return False
    names = [name for group in groups for name in group]
    return all(isinstance(name, str) and name.isidentifier() for name in names) and len(set(names)) == len(names)


def _tuple(value: object, name: str) -> tuple[object, ...]:
    if not isinstance(value, tuple):
        raise TypeError(
            f"expected a tuple of {name}, found {type(value).__name__}: one alone is written ({name[:-1]},)"
        )
    return value


@contextlib.contextmanager
def _watched(name: str) -> Iterator[None]:
    """Name what is slow while it loads, and interrupt what does not come to an end."""
    late = threading.Timer(SLOW_SECONDS, logger.warning, ("%s is still loading after %g s", name, SLOW_SECONDS))
    late.daemon = True
    late.start()
    try:
        with _interrupted() if _can_interrupt() else contextlib.nullcontext():
            yield
    finally:
        late.cancel()


def _can_interrupt() -> bool:
    """Whether there is a timer, this thread would get its signal, and nobody else uses it."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        return False
    return signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0) and signal.getsignal(signal.SIGALRM) is not None


@contextlib.contextmanager
def _interrupted() -> Iterator[None]:
    def interrupt(*_: object) -> None:
        raise _TookTooLong(f"it did not load within {LIMIT_SECONDS:g} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_SECONDS, 1.0)  # and once more each second, should it be caught
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def _said(error: BaseException) -> str:
    """An error as text. Its own ``repr`` is a plugin's code too."""
    try:
        text = str(error) if isinstance(error, _TookTooLong) else repr(error)
    except BaseException:
        text = type(error).__name__
    return text if len(text) <= 400 else f"{text[:397]}..."
