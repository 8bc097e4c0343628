"""The numeric tests under each setting that changes which kernels a CPU runs, as a table: ``make test-cpu-settings``.

Each setting is a run of pytest in a process of its own, because torch reads the settings once. Exit status 1 where any
of them fails a test or runs none.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
NUMERIC = ("kernels", "parity", "runtime", "adapters", "failure_modes", "training")
QUICK = ("tests/kernels/lora/test_lora_functions.py", "tests/kernels/ops/test_activations.py")
AS_IS = "as-is"
VARIABLES = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "OMP_NUM_THREADS")
DEFAULTS = (f"{AS_IS},default,avx2", f"{AS_IS},AVX2", "1,2")


def arguments(given: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make test-cpu-settings", description=__doc__)
    for option, variable, default in zip(("aten", "onednn", "threads"), VARIABLES, DEFAULTS, strict=True):
        text = f"values of {variable}, with commas between; default {default}"
        parser.add_argument(f"--{option}", metavar="VALUES", default=default, help=text)
    parser.add_argument("--quick", action="store_true", help="two files of tests only, seconds for each setting")
    parser.add_argument("paths", nargs="*", metavar="TEST", help="files or folders of tests; default: all numeric ones")
    return parser.parse_args(given)


def run(paths: list[str], *values: str) -> dict[str, float]:
    """Run tests under one setting.

    Returns:
        How many tests passed, failed and were skipped, and the seconds.
    """
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    environment |= {name: value for name, value in zip(VARIABLES, values, strict=True) if value != AS_IS}
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "junit.xml")
        # torch.compile finds code of another setting in its cache, with vectors that this one does not declare.
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(Path(folder, "inductor"))
        command = [sys.executable, "-m", "pytest", "-q", "-rfE", f"--junit-xml={file}", *paths]
        status = subprocess.run(command, cwd=ROOT, env=environment).returncode
        suites = list(ElementTree.parse(file).iter("testsuite")) if file.exists() else []
    counts = {
        what: sum(int(suite.get(what, 0)) for suite in suites) for what in ("tests", "failures", "errors", "skipped")
    }
    failed = counts["failures"] + counts["errors"]
    passed = counts["tests"] - failed - counts["skipped"]
    # A run that ends before or after its tests has failed too, and so has one that proves nothing.
    failed = failed or int(status != 0 or not passed)
    return {"passed": passed, "failed": failed, "skipped": counts["skipped"], "seconds": time.monotonic() - start}


def main(given: list[str]) -> int:
    options = arguments(given)
    paths = options.paths or (list(QUICK) if options.quick else [f"tests/{name}" for name in NUMERIC])
    chosen = (getattr(options, name).split(",") for name in ("aten", "onednn", "threads"))
    rows = [(setting, run(paths, *setting)) for setting in itertools.product(*chosen)]
    line = "{:<12} {:<12} {:>8} {:>8} {:>8} {:>8} {:>8}"
    sys.stdout.write(line.format("aten", "onednn", "threads", "passed", "failed", "skipped", "seconds") + "\n")
    for setting, counts in rows:
        sys.stdout.write(line.format(*setting, *(f"{value:.0f}" for value in counts.values())) + "\n")
    return int(any(counts["failed"] for _, counts in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
