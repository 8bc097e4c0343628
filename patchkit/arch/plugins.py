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
from collections.abc import Iterable, Iterator
from dataclasses import fields
from importlib.metadata import EntryPoint, entry_points
from typing import get_args

from patchkit.arch.spec import Architecture, Attention, GatedMLP, Tower
from patchkit.errors import PatchkitWarning

ENTRY_POINT_GROUP = "patchkit.architectures"

SLOW_SECONDS = 10.0
"""After which a plugin that still loads is named in the log."""

LIMIT_SECONDS = 120.0
"""After which it is left out, where the system can interrupt it: not on Windows, nor outside of the main thread."""

_MOST = 1000  # architectures of one plugin: an endless sequence is none

_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_NAME = re.compile(r"[\w.-]+")

logger = logging.getLogger("patchkit")


class _TookTooLong(BaseException):  # no Exception: those a plugin may catch
    """A plugin did not come to an end."""


def plugin_architectures() -> Iterator[Architecture]:
    """The architectures of every plugin that works; a :class:`PatchkitWarning` names each that does not."""
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        name = f"architecture plugin {entry_point.name!r} ({entry_point.value!r})"
        try:
            with _watched(name), contextlib.redirect_stdout(sys.stderr):
                loaded = _load(entry_point)
        except KeyboardInterrupt:
            logger.warning("interrupted while %s was loading", name)
            raise
        except BaseException as error:  # SystemExit too: a plugin does not end the program
            warnings.warn(f"{name} is broken and was left out: {_said(error)}", PatchkitWarning, stacklevel=3)
        else:
            yield from loaded


def _load(entry_point: EntryPoint) -> tuple[Architecture, ...]:
    loaded = entry_point.load()
    found = tuple(itertools.islice(loaded, _MOST + 1)) if isinstance(loaded, Iterable) else (loaded,)
    if len(found) > _MOST:
        raise ValueError(f"it has more than {_MOST} architectures")
    for architecture in found:
        _examine(architecture)
    return found


def _examine(architecture: object) -> None:
    """That something is an architecture, and every word in it is one: names go into source text and onto terminals.

    Raises:
        TypeError: it is of another type.
        ValueError: a word is none.
    """
    if type(architecture) is not Architecture:
        raise TypeError(f"expected patchkit.arch.spec.Architecture, found {type(architecture).__name__}")
    words = (architecture.name, *_tuple(architecture.model_types), *_tuple(architecture.text_models))
    for word in words:
        if not isinstance(word, str) or not _NAME.fullmatch(word):
            raise ValueError(f"{word!r} is no name of an architecture or model type")
    if not isinstance(architecture.module, str) or not _MODULE.fullmatch(architecture.module):
        raise ValueError(f"{architecture.module!r} is no module")
    for block in _tuple(architecture.blocks):
        if not isinstance(block, (Attention, GatedMLP)) or type(block) not in (Attention, GatedMLP):
            raise TypeError(f"expected Attention or GatedMLP, found {type(block).__name__}")
        for one in fields(block):
            value = getattr(block, one.name)
            if one.name == "tower":
                right = value in get_args(Tower)
            elif one.name == "class_name":
                right = isinstance(value, str) and _MODULE.fullmatch(value) is not None
            else:
                right = value == one.default or (isinstance(value, str) and value.isidentifier())
            if not right:
                raise ValueError(f"{value!r} is no {one.name} of {type(block).__name__}")


def _tuple(value: object) -> tuple[object, ...]:
    if not isinstance(value, tuple):
        raise TypeError(f"expected a tuple, found {type(value).__name__}")
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
