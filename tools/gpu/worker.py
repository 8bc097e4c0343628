"""The process that asks the cells of one section. Started by :mod:`tools.gpu.running`; one JSON object a line."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any

from tools.gpu.cells import FAILED, Outcome, Setting, first_line, outcome_of
from tools.gpu.table_of_sections import SECTIONS

DEVICE_LOST = 3
"""Exit code where the device answers no more, as after an illegal access: what is left needs another process."""

MAKING = "(making the cells)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask the cells of a section that are this process's and not done yet."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--section", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--descriptor", type=int, required=True, help="where lines are written")
    parser.add_argument("--seconds", type=float, required=True, help="that are left to the section")
    parser.add_argument("--shard", default="0/1", help="index/count")
    options = parser.parse_args(arguments)
    done = set(json.load(sys.stdin))
    setting = Setting(options.device, options.tiny, time.monotonic() + options.seconds)
    (section,) = (one for one in SECTIONS if one.name == options.section)
    index, count = map(int, options.shard.split("/"))
    with os.fdopen(options.descriptor, "w", encoding="utf-8") as lines:

        def say(**said: Any) -> None:
            lines.write(json.dumps(said, default=str) + "\n")
            lines.flush()

        try:
            cells = list(section.cells(setting))[index::count]
        except Exception as error:
            say(outcome=not_made(error))
            return 0
        say(cells=[cell.name for cell in cells])
        for cell in cells:
            if cell.name in done:
                continue
            say(begin=cell.name, seconds=cell.seconds)
            found = outcome_of(cell)
            say(outcome=found)
            if found["status"] == FAILED and not setting.on_cpu and not device_answers():
                return DEVICE_LOST
    return 0


def not_made(error: Exception) -> Outcome:
    """The outcome of a section whose cells cannot be made: something cannot be imported, as a rule."""
    return {
        "cell": MAKING,
        "status": FAILED,
        "reason": first_line(error),
        "traceback": traceback.format_exc()[-6000:],
        "seconds": 0.0,
    }


def device_answers() -> bool:
    """Whether the device still computes after a failure; where torch was never imported there is nothing to lose."""
    torch = sys.modules.get("torch")
    if torch is None:
        return True
    try:
        torch.accelerator.synchronize()
    except Exception:  # whatever a lost device says
        return False
    return True


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # a lost device may hang what an interpreter does at its end
