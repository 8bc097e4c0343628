"""``python -m tools.gpu``: the sections in order, each within its time, and what they found as JSON and as a table."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.gpu.cells import FAILED, NOT_RUN, PASSED, Setting
from tools.gpu.places import ROOT, surroundings, why_no_device
from tools.gpu.running import RUNNERS
from tools.gpu.table_of_sections import SECTIONS, Section

MEASURED, REHEARSED = Path("benchmarks/results/gpu.json"), Path("demo-output/gpu.json")
"""Where results go: what a device measured is kept, a rehearsal is no result."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 if nothing failed, 1 if a cell did."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, help=f"JSON file (default: {MEASURED}; of a rehearsal {REHEARSED})")
    parser.add_argument("--budget", type=float, default=570.0, help="seconds for all of it (default: 570)")
    parser.add_argument("--device", default="cuda", help="as torch names it (default: cuda)")
    parser.add_argument("--tiny", action="store_true", help="small shapes and few cases: a rehearsal on a CPU")
    parser.add_argument(
        "--only", action="append", choices=[one.name for one in SECTIONS], help="this section; repeatable"
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="with --only: the other sections of the file stay, as an earlier run found them",
    )
    parser.add_argument("--inline", action="store_true", help="in this process: an exception is still one cell's")
    options = parser.parse_args(arguments)
    cpu = options.device.partition(":")[0] == "cpu"
    if cpu and not options.tiny:
        parser.error("--device cpu wants --tiny: it is a rehearsal, and measures nothing")
    why = None if cpu else why_no_device(options.device)
    if why is not None:  # nothing could be measured, and what another machine measured would be written over
        parser.error(f"there is no device {options.device!r} here: {why}. --device cpu --tiny rehearses on a CPU")
    os.environ.update(surroundings())
    sys.path[:0] = [path for path in (str(ROOT), str(ROOT / "kernels")) if path not in sys.path]
    setting = Setting(options.device, options.tiny)
    chosen = [one for one in SECTIONS if not options.only or one.name in options.only]
    out = options.out or (REHEARSED if setting.rehearsal else MEASURED)
    kept = json.loads(out.read_text("utf-8"))["sections"] if options.keep and out.is_file() else []
    result = run(chosen, setting, options.budget, out, inline=options.inline, kept=kept)
    sys.stdout.write(f"\n{table(result)}\n{out}\n")
    return int(any(one["status"] == FAILED for part in result["sections"] for one in part["outcomes"]))


def run(
    chosen: Sequence[Section],
    setting: Setting,
    budget: float,
    out: Path,
    *,
    inline: bool = False,
    kept: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Run sections and write the file after each, so that a run that is stopped keeps what it had.

    Args:
        chosen: in order.
        setting: what is asked for.
        budget: seconds; a section gets its share of what those before it left.
        out: the JSON file.
        inline: in this process.
        kept: sections as an earlier run found them, which stay where they are not run again.
    """
    end = time.monotonic() + budget
    result: dict[str, Any] = {
        "made_by": "python -m tools.gpu",
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "device": setting.device,
        "rehearsal": setting.rehearsal,
        "sections": list(kept),
    }
    order = [one.name for one in SECTIONS]
    for index, section in enumerate(chosen):
        left = end - time.monotonic()
        seconds = left * section.share / sum(one.share for one in chosen[index:])
        start = time.monotonic()
        outcomes = RUNNERS[inline](section, setting, max(seconds, 0.0))
        took = round(time.monotonic() - start, 1)
        found = {"section": section.name, "title": section.title, "seconds": took, "outcomes": outcomes}
        others = [one for one in result["sections"] if one["section"] != section.name]
        result["sections"] = sorted([*others, found], key=lambda one: order.index(one["section"]))
        _write(out, result)
        sys.stdout.write(_row(found) + "\n")
        sys.stdout.flush()
    return result


def _write(out: Path, result: dict[str, Any]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    new = out.with_name(f"{out.name}.new")
    new.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    new.replace(out)


def table(result: dict[str, Any]) -> str:
    """For each section how many cells passed, failed and were not run, and seconds; then what went wrong, by reason."""
    lines = [f"{'section':<12} {'passed':>6} {'failed':>6} {'not run':>7} {'seconds':>8}"]
    wrong = []
    for part in result["sections"]:
        lines.append(_row(part))
        reasons: dict[str, list[str]] = {}
        for one in part["outcomes"]:
            if one["status"] != PASSED:
                reasons.setdefault(f"{one['status']}: {one['reason']}", []).append(one["cell"])
        for said, names in reasons.items():
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            wrong.append(f"{part['section']}: {names[0]}{more}: {said}")
    return "\n".join([*lines, *(["", *wrong] if wrong else [])])


def _row(part: dict[str, Any]) -> str:
    counts = [sum(one["status"] == status for one in part["outcomes"]) for status in (PASSED, FAILED, NOT_RUN)]
    return f"{part['section']:<12} {counts[0]:>6} {counts[1]:>6} {counts[2]:>7} {part['seconds']:>8.1f}"


if __name__ == "__main__":
    sys.exit(main())
