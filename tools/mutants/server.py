"""``python -m tools.mutants.server``: runs pytest in forks of one process that has imported what is slow to import.

Importing torch, transformers and PEFT takes longer than many test files. None of them depends on the mutant, so one
process imports them, and forks for each run; the code under test is imported in the fork, from the copy.

Orders are lines of JSON on standard input, answers lines of JSON on standard output: :class:`Order`, :class:`Answer`.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

_MEMORY = 16 * 2**30
"""Bytes that a run may take; a mutant that never stops asking for more must not take the machine."""


@dataclass(frozen=True)
class Order:
    """One run.

    Attributes:
        tree: the copy that it runs in.
        roots: folders from which code is imported: those of the working tree, and in their place those of the copy.
        scratch: a folder for temporary files and for what the user's home would be asked for.
        arguments: of pytest.
        seconds: after these it is killed.
        log: where its output goes.
    """

    tree: str
    roots: list[tuple[str, str]]
    scratch: str
    arguments: list[str]
    seconds: float
    log: str


@dataclass(frozen=True)
class Answer:
    """How a run ended.

    Attributes:
        code: pytest's exit status; minus the number of the signal that killed it; None if it took too long.
        seconds: how long it took.
    """

    code: int | None
    seconds: float


def serve(preload: list[str]) -> None:
    """Answer orders until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a preloaded module prints is no answer
    for name in preload:
        with suppress(ImportError):
            importlib.import_module(name)
    for line in sys.stdin:
        answers.write(json.dumps(asdict(_run(Order(**json.loads(line))))) + "\n")
        answers.flush()


def _run(order: Order) -> Answer:
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        _become(order)
    code: int | None = None
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            break
        if time.monotonic() - began > order.seconds:
            break
        time.sleep(0.02)
    with suppress(ProcessLookupError, PermissionError):  # processes that the tests left behind, too
        os.killpg(child, signal.SIGKILL)
    if not ended:
        os.waitpid(child, 0)
    return Answer(code, time.monotonic() - began)


def _become(order: Order) -> NoReturn:
    """The fork: a test process of the copy."""
    code = 3
    try:
        os.setsid()
        output = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        _limit_memory()
        _move(order)
        import pytest

        code = int(pytest.main(order.arguments))
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        with suppress(Exception):
            sys.stdout.flush()
        os._exit(code)


def _move(order: Order) -> None:
    os.chdir(order.tree)
    scratch = Path(order.scratch)
    for variable, name in {"HOME": "home", "TMPDIR": "tmp", "XDG_CACHE_HOME": "home/.cache"}.items():
        (scratch / name).mkdir(parents=True, exist_ok=True)
        os.environ[variable] = str(scratch / name)
    tempfile.tempdir = None
    own = [copied for _, copied in order.roots]
    os.environ["PYTHONPATH"] = os.pathsep.join(own)
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # two mutants of one size, made in one second, share a bytecode file
    sys.dont_write_bytecode = True
    replaced = {original for original, _ in order.roots} | {""}
    sys.path[:] = [*own, *(entry for entry in sys.path if entry not in replaced)]
    for name in [name for name in sys.modules if name.partition(".")[0] == "tools"]:
        del sys.modules[name]
    importlib.invalidate_caches()


def _limit_memory() -> None:
    import resource

    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))


if __name__ == "__main__":
    serve(sys.argv[1:])
