"""A clean room: what is verified there neither sees what the user has switched on, nor is seen by it.

``apply`` verifies unknown source while the user's program is in the middle of something. Two kinds of state are around:

* of the thread: saved-tensor hooks, function and dispatch modes, grad and inference mode, autocast, the default device,
  transforms of ``torch.func``, profilers, tracing. torch has no interface to set all of them aside, but a new thread
  has none of them. So the work is done in one;
* of the process: hooks on every module, the default dtype, anomaly mode, deterministic algorithms, the precision of
  float32 products, generators, warning filters, what is logged once. They are set aside and put back.
"""

from __future__ import annotations

import ctypes
import logging
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import TypeVar

import torch
from torch.autograd import forward_ad
from torch.nn.modules import module as module_hooks

from patchkit.testing.random_state import preserved_random_state

Shown = TypeVar("Shown")

# What transformers and PEFT would tell the user of a model that is not the user's.
_LOGGERS = ("transformers", "transformers_modules", "peft", "accelerate")
_ONCE = ("warning_once", "info_once")  # transformers gives every logger these, and remembers what was said

_PATIENCE = 1.0
"""Seconds until the thread is told again: code may have caught what it was told."""


class _Abandoned(BaseException):
    """Raised in the clean room's thread when the user interrupts; no ``except Exception`` stops it."""


def in_clean_room(work: Callable[[], Shown]) -> Shown:
    """Call ``work`` in a clean room, on the CPU.

    Whatever it raises is raised here. An exception that comes up here while it works (Ctrl-C, a time limit) ends it
    first: when this function is left, nothing of it runs any more and all state is as it was.
    """
    results: list[Shown] = []
    errors: list[BaseException] = []
    ended = threading.Event()  # Thread.join, interrupted once, takes the thread for dead in some releases of Python

    def run() -> None:
        try:
            device = torch.get_default_device()  # of this thread: it is that of torch.set_default_tensor_type
            with torch.device("cpu") if device.type != "cpu" else nullcontext():
                results.append(work())
        except BaseException as error:
            errors.append(error)
        finally:
            ended.set()

    thread = threading.Thread(target=run, name="patchkit verifies", daemon=True)
    with _process_state_set_aside():
        try:
            thread.start()
            ended.wait()
        except BaseException:
            _end(thread, ended)
            raise
    if errors:
        raise errors[0]
    return results[0]


def _end(thread: threading.Thread, ended: threading.Event) -> None:
    """Make a thread raise, and wait for that, however impatient the user is."""
    told = 1
    while told and not ended.is_set():
        with suppress(BaseException):  # the first one is on its way already
            identity, reason = ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_Abandoned)
            told = ctypes.pythonapi.PyThreadState_SetAsyncExc(identity, reason)
            ended.wait(_PATIENCE)


@contextmanager
def _process_state_set_aside() -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(preserved_random_state())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for context in (_without_global_hooks, _quiet, _usual_numbers):
            stack.enter_context(context())
        yield


@contextmanager
def _without_global_hooks() -> Iterator[None]:
    """torch looks these up in its module at every call. The user's handles keep the dictionaries that are set aside."""
    state = vars(module_hooks)
    aside = {name: value for name, value in state.items() if name.startswith("_global_")}
    state.update({name: OrderedDict() if isinstance(value, dict) else None for name, value in aside.items()})
    try:
        yield
    finally:
        state.update(aside)


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing is logged, and no message that is given once counts as given."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    once = {name: vars(logging.Logger)[name] for name in _ONCE if name in vars(logging.Logger)}
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        for name in once:
            setattr(logging.Logger, name, _say_nothing)
        yield
    finally:
        for name, function in once.items():
            setattr(logging.Logger, name, function)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _say_nothing(self: logging.Logger, *args: object, **kwargs: object) -> None:
    pass


@contextmanager
def _usual_numbers() -> Iterator[None]:
    """float32 in full precision, and no mode of the process that changes what an operation does."""
    dtype = torch.get_default_dtype()
    anomaly = torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    level = forward_ad._current_level
    with _full_precision():
        try:
            torch.set_default_dtype(torch.float32)
            torch.set_anomaly_enabled(False)
            torch.use_deterministic_algorithms(False)
            forward_ad._current_level = -1
            yield
        finally:
            forward_ad._current_level = level
            torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
            torch.set_anomaly_enabled(*anomaly)
            torch.set_default_dtype(dtype)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Products of float32 without TF32 or bfloat16 inside, which oneDNN takes on processors that have it."""
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:  # set through both of torch's interfaces, and it does not say what counts
        precision = "highest"
    own = getattr(torch.backends.mkldnn, "matmul", None)  # torch 2.9: one for each backend and operation
    of_mkldnn = getattr(own, "fp32_precision", "none")
    try:
        if precision != "highest":
            torch.set_float32_matmul_precision("highest")
        elif own is not None and of_mkldnn not in ("none", "ieee"):
            own.fp32_precision = "ieee"
        yield
    finally:
        if precision != "highest":
            torch.set_float32_matmul_precision(precision)
        elif own is not None and of_mkldnn not in ("none", "ieee"):
            own.fp32_precision = of_mkldnn
