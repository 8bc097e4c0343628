"""``patchkit bench --contenders`` as one cell: its command line, and figures out of what it writes."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tools.gpu.cells import OUT_OF_TIME, NotRun, Setting, Wrong
from tools.gpu.places import ROOT, surroundings

COMMAND: tuple[str, ...] = (sys.executable, "-m", "patchkit.cli.main", "bench", "--contenders")
_WRONG_USAGE = 2
_LAST_WORDS = 15.0
"""Seconds between the budget that the command is given and the end of its cell."""


def bench(setting: Setting, arguments: Sequence[str], seconds: float, command: Sequence[str] = ()) -> dict[str, Any]:
    """Run the command and give the median of every contender.

    Args:
        setting: the device, and when the section's time is used up.
        arguments: after ``--contenders``, without device, budget and file.
        seconds: what the whole cell may take, if there is so much left.
        command: what is run; by default this interpreter with patchkit.

    Returns:
        For each contender that ran ``<tokens> <precision>: <name> ms``, and ``... MiB`` where the device told its peak;
        for each other the same without a unit, with the reason.

    Raises:
        NotRun: no contender ran, or there is no time left.
        Wrong: the command is not there, or failed before it wrote anything.
    """
    seconds = min(seconds, setting.ends - time.monotonic() - 5.0)
    if seconds < 2 * _LAST_WORDS:
        raise NotRun(OUT_OF_TIME)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bench.json"
        budget = ["--device", setting.device, "--budget", str(max(1, int(seconds - _LAST_WORDS))), "--json", str(file)]
        process = [*(command or COMMAND), *arguments, *budget]
        stopped = ""
        try:
            done = subprocess.run(
                process, cwd=ROOT, env=surroundings(), capture_output=True, text=True, timeout=seconds
            )
            code, said = done.returncode, (done.stderr.strip() or done.stdout.strip())
        except subprocess.TimeoutExpired as error:
            output = error.stderr or b""
            code, stopped = -1, f"stopped after {seconds:.0f} s"
            said = output.decode("utf-8", "replace") if isinstance(output, bytes) else output
        record = json.loads(file.read_text("utf-8")) if file.is_file() else None
    if record is None:
        if code == _WRONG_USAGE and "No such option" in said:
            raise Wrong("command not known: this patchkit has no `bench --contenders`", {"output": said[-3000:]})
        last = said.strip().splitlines()[-1:] or [""]
        raise Wrong(stopped or f"exit code {code}: {last[0][:200]}", {"output": said[-3000:]})
    figures = medians(record)
    if stopped or code:
        figures["ended"] = stopped or f"exit code {code}"
    if not any(name.endswith(" ms") for name in figures):
        raise NotRun("; ".join(f"{name}: {why}" for name, why in figures.items())[:300] or "it has no contender")
    return figures


def medians(record: Mapping[str, Any]) -> dict[str, Any]:
    """Of the command's JSON: milliseconds of a step and MiB at its peak, and why a contender was not run."""
    figures: dict[str, Any] = {}
    for found in record["cells"]:
        cell = found["cell"]
        for one in found["contenders"]:
            name = f"{cell['tokens']} {cell['precision']}: {one['contender']}"
            if one.get("step_ms") is None:
                figures[name] = one.get("not_run") or "no time"
                continue
            figures[f"{name} ms"] = one["step_ms"]["median"]
            if one.get("measured_peak_bytes"):
                figures[f"{name} MiB"] = round(one["measured_peak_bytes"] / 2**20, 1)
    return figures
