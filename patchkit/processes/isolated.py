"""Runs first in every helper interpreter that :mod:`patchkit.processes.interpreters` starts. Standard library only.

The interpreter is isolated (``python -I``): neither the folder that the user stands in, nor ``PYTHONPATH``, nor any
other variable decides what it imports. ``-I`` does so on Python 3.10 too, and what :mod:`multiprocessing` spawns from
there inherits it. This file adds what the starting process says, and nothing else: folders of installed packages, and
where the packages named ``packages`` are, which are found there and nowhere else.

``isolated.py SETUP MODULE ...`` then runs a module as ``python -m`` does; ``isolated.py SETUP MODULE:FUNCTION`` calls a
function from bytes to bytes for every request, see :mod:`patchkit.processes.workers`. Requests and answers go through
what were standard input and output; those of the code that runs here are at its end, and standard error.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import json
import os
import queue
import runpy
import site
import struct
import sys
import threading
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import BinaryIO

HEADER = struct.Struct(">cIQ")
"""Before every request and answer: its kind, the number of the request, and how many bytes follow."""

REQUEST, ANSWER, ERROR = b"?", b"=", b"!"


class PlacedPackages:
    """A finder of some top-level packages, each in one folder."""

    def __init__(self, folders: dict[str, str]) -> None:
        self.folders = folders

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The specification of such a package; of anything else None, and others are asked."""
        folder = self.folders.get(name)
        return importlib.machinery.PathFinder.find_spec(name, [folder]) if folder else None


def main() -> None:
    """Set the interpreter up, then run what is asked for."""
    setup, target = json.loads(sys.argv[1]), sys.argv[2]
    del sys.argv[1:3]
    channel = _private_channel() if ":" in target else None  # before any other code can write to it
    sys.path[:0] = setup["first"]
    sys.meta_path.insert(0, PlacedPackages(setup["packages"]))
    for folder in setup["folders"]:
        if folder not in sys.path:
            site.addsitedir(folder)
    for name in setup["shown"]:
        if sys.modules.get(name, name) is None:  # hidden by the environment
            del sys.modules[name]
    if channel is None:
        runpy.run_module(target, run_name="__main__", alter_sys=True)
    else:
        _serve(target, *channel)


def _private_channel() -> tuple[BinaryIO, BinaryIO]:
    """What were standard input and output; standard input is then empty, and standard output goes to standard error."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")  # children do not inherit these
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    # Whatever was written before (by a .pth file) ends here: nobody but the starting process knows this line.
    answers.write(requests.readline())
    answers.flush()
    return requests, answers


def _serve(target: str, requests: BinaryIO, answers: BinaryIO) -> None:
    waiting: queue.SimpleQueue[tuple[int, bytes]] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(requests, waiting), daemon=True).start()
    function: Callable[[bytes], bytes] | None = None
    while True:
        number, request = waiting.get()
        kind = ANSWER
        try:
            if function is None:
                module, _, name = target.partition(":")
                function = getattr(importlib.import_module(module), name)
            said = function(request)
        except BaseException as error:  # SystemExit too: what it does is one answer, and no end
            text = str(error).strip()
            kind, said = ERROR, (f"{type(error).__name__}: {text}" if text else type(error).__name__).encode()
        answers.write(HEADER.pack(kind, number, len(said)) + said)
        answers.flush()


def _receive(requests: BinaryIO, waiting: queue.SimpleQueue[tuple[int, bytes]]) -> None:
    """Take requests; end the process when no more can come, because the starting process is done, or was killed."""
    while len(header := requests.read(HEADER.size)) == HEADER.size:
        _, number, size = HEADER.unpack(header)
        waiting.put((number, requests.read(size)))
    os._exit(0)


if __name__ == "__main__":
    main()
