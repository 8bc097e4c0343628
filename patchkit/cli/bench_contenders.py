"""``patchkit bench --contenders``: ways to train with LoRA side by side."""

from __future__ import annotations

import difflib
import json
import os
import platform
import shlex
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from patchkit.cli.check import progress_of
from patchkit.cli.console import error_console, output_console

if TYPE_CHECKING:
    from patchkit.testing.contenders.cell import Cell
    from patchkit.testing.contenders.results import CellResult
    from patchkit.testing.contenders.roofline import Rates

_PACKAGES = ("torch", "transformers", "peft", "triton", "liger-kernel", "bitsandbytes")


@dataclass
class Wanted:
    """What was asked for on the command line; empty lists are what is usual on the device."""

    shapes: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    ranks: list[int] = field(default_factory=list)
    precisions: list[str] = field(default_factory=list)
    only: list[str] = field(default_factory=list)
    device: str = "cpu"
    rounds: int = 5
    dropout: float = 0.0
    dora: bool = False
    nf4: bool = False
    checkpointing: bool = False
    layers: int = 0
    host: bool = False
    rates: str = ""
    budget: float | None = None
    json_file: Path | None = None
    plot: Path | None = None

    def cells(self) -> list[Cell]:
        """Every combination, in the order of the options.

        Raises:
            EstimateError: there is no such shape.
        """
        from patchkit.testing.contenders.cell import cells

        small = self.device.partition(":")[0] == "cpu"
        return cells(
            self.shapes or ["tiny" if small else "llama-8b"],
            self.tokens or ([128] if small else [512, 4096]),
            self.ranks or [16],
            self.precisions or (["float32"] if small else ["A"]),
            dropout=self.dropout,
            dora=self.dora,
            nf4=self.nf4,
            checkpointing=self.checkpointing,
            layers=self.layers,
            device=self.device,
        )


def bench_contenders(wanted: Wanted) -> None:
    """Run the contenders, print the tables, and write what was asked for.

    Raises:
        Exit: something is asked for that there is not.
    """
    from patchkit.cli.contender_table import print_cells
    from patchkit.testing.contenders.kinds import CONTENDERS
    from patchkit.testing.contenders.roofline import rates_of
    from patchkit.testing.contenders.running import Budget, Rounds

    _require(wanted.precisions, _precisions(), "precision")
    _require(wanted.only, list(CONTENDERS), "contender")
    cells = wanted.cells()
    names = [name for name in CONTENDERS if not wanted.only or name in wanted.only]
    settings = _settings(wanted)
    rates = rates_of(settings["device"], wanted.rates)
    found: list[CellResult] = []
    with progress_of("preparing") as advance:

        def note(text: str) -> None:
            advance(len(found), len(cells), text)

        rounds = Rounds(
            names,
            rounds=wanted.rounds,
            budget=Budget(wanted.budget),
            rates=rates,
            host=wanted.host,
            left_out=_left_out(wanted),
            jobs=min(len(names), os.cpu_count() or 1),
            note=note,
        )
        for one in rounds.run(cells):
            found.append(one)
            if wanted.json_file:  # after each cell: a run that is stopped leaves what it had
                _write(wanted.json_file, found, settings, rates)
    told = ", ".join(f"{name} {settings[name]}" for name in ("patchkit", *_PACKAGES[:3]))
    output_console().print(f"{settings['device']}: {told}")
    output_console().print("")
    print_cells(found, host=wanted.host, modelled=rates is not None)
    if wanted.plot:
        _draw(found, wanted.plot)


def _left_out(wanted: Wanted) -> dict[str, str]:
    """What is not run unless it is named: on a CPU a compiler takes longer than everything else."""
    from patchkit.testing.contenders.kinds import CONTENDERS

    if wanted.only or wanted.device.partition(":")[0] != "cpu":
        return {}
    why = "compiling for a CPU takes minutes; --only NAME runs it"
    return {name: why for name, one in CONTENDERS.items() if one.compiled}


def _precisions() -> list[str]:
    from patchkit.testing.contenders.cell import PRECISIONS

    return list(PRECISIONS)


def _require(given: list[str], known: list[str], what: str) -> None:
    for one in given:
        if one not in known:
            near = difflib.get_close_matches(one, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            _refuse(f"there is no {what} {one!r}; there are {', '.join(known)}{hint}")


def _refuse(why: str) -> None:
    error_console().print(f"patchkit: error: {why}")
    raise typer.Exit(2)


def _draw(found: list[CellResult], path: Path) -> None:
    from patchkit.cli.contender_plot import draw_cells

    try:
        draw_cells(found, path)
    except ImportError:
        _refuse("--plot needs matplotlib: pip install matplotlib")
    except ValueError as error:
        _refuse(f"--plot {path}: {error}")


def _write(path: Path, found: list[CellResult], settings: dict[str, Any], rates: Rates | None) -> None:
    modelled = None if rates is None else {"rates": asdict(rates), "note": "a roofline over traced operations"}
    record = {"settings": settings, "modelled": modelled, "cells": [one.as_dict() for one in found]}
    path.write_text(json.dumps(record, indent=1) + "\n")


def _settings(wanted: Wanted) -> dict[str, Any]:
    import torch

    from patchkit.testing.contenders.cell import ABOUT_PRECISIONS
    from patchkit.testing.contenders.kinds import CONTENDERS
    from patchkit.version import __version__

    on_gpu = wanted.device.partition(":")[0] == "cuda"
    return {
        "patchkit": __version__,
        **{name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(wanted.device) if on_gpu else wanted.device,
        "cuda": torch.version.cuda,
        "machine": _processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "rounds": wanted.rounds,
        "command": shlex.join(["patchkit", *sys.argv[1:]]),
        "precisions": dict(ABOUT_PRECISIONS),
        "contenders": {name: one.about for name, one in CONTENDERS.items()},
    }


def _processor() -> str:
    """The model of the CPU, where the system tells."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return None
