"""The numeric stage of ``patchkit check``: the parity contract of an architecture on the transformers that is imported.

``python -m patchkit.check.numeric --arch gemma3 --json`` runs it for the installed release, and writes one JSON object
a line, one for each architecture, as soon as it is done. Exit code 0: everything passed; 1: something failed, or was
not shown; 2: wrong usage or environment.

Nothing here imports torch before there is work to do, so that usage errors are quick.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from patchkit.arch.registry import select
from patchkit.check.numeric.environments import running_environment
from patchkit.check.numeric.outcomes import ArchitectureOutcome
from patchkit.errors import PatchkitError
from patchkit.trust.ledger import SHIPPED_LEDGER, add_proofs


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m patchkit.check.numeric", description=__doc__.partition("\n")[0])
    parser.add_argument("--arch", action="append", help="architecture or glob; repeatable; default: all")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of text")
    parser.add_argument(
        "--ledger",
        nargs="?",
        type=Path,
        const=SHIPPED_LEDGER,
        help="enter proofs into a ledger (default: the shipped one)",
    )
    options = parser.parse_args(arguments)
    failed = False
    try:
        names = [one.name for one in select(options.arch or ("*",))]
        for outcome in running_environment().check(names, jobs=options.jobs):
            failed |= outcome.status != "passed"
            sys.stdout.write((outcome.to_json() if options.json else _text(outcome)) + "\n")
            sys.stdout.flush()
            if options.ledger and outcome.proofs:
                add_proofs(options.ledger, outcome.proofs)
    except PatchkitError as error:
        sys.stderr.write(f"patchkit: error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("patchkit: interrupted\n")
        return 2
    return int(failed)


def _text(outcome: ArchitectureOutcome) -> str:
    lines = [f"{outcome.architecture}: {outcome.status} in {outcome.seconds:.1f} s"]
    for block in outcome.blocks:
        levels = ", ".join(f"{part} {level}" for part, level in block.levels.items())
        lines.append(
            f"  {block.class_name.rpartition('.')[2]} in {block.model}: {block.status} ({levels}) {block.reason}"
        )
    lines += [f"  {name}: not patched: {reason}" for name, reason in (outcome.unpatched or {}).items()]
    lines += [f"  {name}: {reason}" for name, reason in (outcome.problems or {}).items()]
    return "\n".join(line.rstrip() for line in lines)


if __name__ == "__main__":
    sys.exit(main())
