"""Stands in for ``patchkit bench --contenders``: ends as its first argument says."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main() -> None:
    how, *given = sys.argv[1:]
    file = Path(given[given.index("--json") + 1])
    assert int(given[given.index("--budget") + 1]) > 0
    if how == "unknown":
        print("No such option: --contenders", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    if how == "fails":
        print("Traceback\nRuntimeError: out of luck", file=sys.stderr)  # noqa: T201
        sys.exit(1)
    ran = {"contender": "peft", "not_run": "", "step_ms": {"median": 2.5}, "measured_peak_bytes": 3 * 2**20}
    absent = {"contender": "liger", "not_run": "it is not installed", "step_ms": None}
    cells = [{"cell": {"tokens": tokens, "precision": "A"}, "contenders": [ran, absent]} for tokens in (512, 4096)]
    if how == "none ran":
        cells = [{"cell": {"tokens": 512, "precision": "A"}, "contenders": [absent]}]
    file.write_text(json.dumps({"cells": cells, "settings": {"device": given[given.index("--device") + 1]}}))
    if how == "hangs":
        time.sleep(60)
    if how == "fails late":
        sys.exit(1)


if __name__ == "__main__":
    main()
