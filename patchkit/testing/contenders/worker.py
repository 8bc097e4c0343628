"""What runs in a contender's process: answers to requests in JSON.

``{"do": "prepare", "contender": NAME, "cell": {...}, ...}`` builds it and says what was counted; ``sample`` gives
milliseconds of forward and backward and, if it was asked for, the host's microseconds; ``drop`` lets the model go.
"""

from __future__ import annotations

import gc
import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from patchkit.testing.contenders.cell import Cell
from patchkit.testing.contenders.counting import count
from patchkit.testing.contenders.kinds import CONTENDERS, Contender
from patchkit.testing.contenders.measuring import Clock
from patchkit.testing.contenders.not_run import NotRunError
from patchkit.testing.contenders.roofline import Rates, modelled_seconds

_SECONDS_OF_SAMPLE = {"cpu": 0.05}
_OTHERWISE = 0.1
_THREADS = torch.get_num_threads()

_prepared: list[Clock] = []
"""That of the cell which is being measured, and that of the host's time; or nothing."""


def answer(request: bytes) -> bytes:
    """The answer to one request.

    Returns:
        JSON: what was asked for, or ``{"not_run": REASON}`` where the contender cannot.
    """
    asked: dict[str, Any] = json.loads(request)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = _DO[asked["do"]](asked)
    except NotRunError as error:
        _drop(asked)
        found = {"not_run": str(error)}
    except Exception as error:  # of memory, of a compiler, of a kernel: one figure less, and the reason
        _drop(asked)
        lines = [line for line in str(error).splitlines() if line.strip()] or [""]
        found = {"not_run": f"{type(error).__name__}: {lines[0].strip()}"}
    return json.dumps(found).encode()


def _prepare(asked: Mapping[str, Any]) -> dict[str, Any]:
    _drop(asked)
    contender, cell = CONTENDERS[asked["contender"]], Cell(**asked["cell"])
    found = counted(contender, cell, None if asked["rates"] is None else Rates(**asked["rates"]))
    if asked["measure"]:
        torch.set_num_threads(1 if cell.one_thread else _THREADS)
        run, found["levels"] = contender.build(cell)
        kind = cell.device.partition(":")[0]
        clock = Clock(run, cell.device, _SECONDS_OF_SAMPLE.get(kind, _OTHERWISE))
        for _ in range(2):  # what is compiled or chosen at the first steps is not measured
            clock.step()
        _prepared.append(clock)
        found["measured_peak_bytes"], found["launches"] = clock.measured_peak(), clock.launches()
        if asked["host"]:
            small = replace(cell, shape="host", tokens=4, rank=8, layers=0)
            _prepared.append(Clock(contender.build(small)[0], cell.device, 0.0))
            _prepared[1].host_microseconds()
        _hand_back_memory()
    return found


def counted(contender: Contender, cell: Cell, rates: Rates | None) -> dict[str, Any]:
    """What is counted of a contender, and modelled of that, as in :class:`~.results.Result`."""
    try:
        counts = count(contender, cell)
    except Exception as error:  # what cannot be counted may well run
        return {"not_counted": str(error) or type(error).__name__}
    found: dict[str, Any] = {"counts": counts.as_dict()}
    if rates is not None:
        found["modelled_ms"] = modelled_seconds(counts.work, rates) * 1e3
    return found


def _sample(asked: Mapping[str, Any]) -> dict[str, Any]:
    clock, *host = _prepared
    return {"sample": list(clock.sample()), "host_us": [one.host_microseconds() for one in host]}


def _drop(asked: Mapping[str, Any]) -> dict[str, Any]:
    _prepared.clear()
    torch.compiler.reset()  # a compiler keeps the graphs of models that are gone, and makes only so many
    _hand_back_memory()
    return {}


def _hand_back_memory() -> None:
    """The processes of the other contenders are on the same device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


_DO = {"prepare": _prepare, "sample": _sample, "drop": _drop}
