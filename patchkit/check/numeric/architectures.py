"""The numeric stage of ``patchkit check``: the parity contract of an architecture on the transformers that is imported.

Models run in worker processes, which :class:`patchkit.check.numeric.environments.Environment` starts and asks: the
release's code is imported there and nowhere else. ``python -m patchkit.check.numeric.architectures --arch gemma3
--json`` does so for the installed release, and writes one JSON object a line, one for each architecture, as soon as it
is done. Exit code 0:
everything passed; 1: something failed, or was not shown; 2: wrong usage or environment.

Nothing here imports torch before there is work to do, so that usage errors are quick.
"""

from __future__ import annotations

import argparse
import fnmatch
import functools
import json
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchkit.arch.registry import architectures, find
from patchkit.check.numeric.outcomes import NUMERIC_CHECKS, ArchitectureOutcome, BlockOutcome, CheckOutcome
from patchkit.check.numeric.probe import place_of
from patchkit.errors import PatchkitError
from patchkit.trust.ledger import SHIPPED, add_proofs

if TYPE_CHECKING:
    from patchkit.check.numeric.proving import Verdict


def answer(request: bytes) -> bytes:
    """What a worker is asked, as JSON, and its answer.

    ``{"models_of": [architecture, ...]}`` is answered by the names of their tiny models, ``{"architecture": ...,
    "model": ...}`` by the place of transformers and the outcome of :func:`check_model`.
    """
    place = _place()  # before anything of the release is imported
    asked = json.loads(request)
    if "models_of" in asked:
        from patchkit.testing import tiny_models_of

        return json.dumps({name: tiny_models_of(name) for name in asked["models_of"]}).encode()
    outcome = check_model(asked["architecture"], asked["model"])
    return json.dumps({"place": place, "outcome": outcome.to_json()}).encode()


@functools.lru_cache(maxsize=1)
def _place() -> str:
    return place_of("transformers")


def joined(parts: Sequence[ArchitectureOutcome]) -> ArchitectureOutcome:
    """The outcome of an architecture, from those of its tiny models."""
    unpatched = {name: reason for part in parts for name, reason in (part.unpatched or {}).items()}
    problems = {name: reason for part in parts for name, reason in (part.problems or {}).items()}
    return ArchitectureOutcome(
        parts[0].architecture,
        parts[0].versions,
        tuple(sorted((block for part in parts for block in part.blocks), key=lambda b: (b.class_name, b.model))),
        unpatched,
        problems,
        round(sum(part.seconds for part in parts), 2),
    )


def check_model(architecture: str, name: str) -> ArchitectureOutcome:
    """Run the contract on one tiny model.

    Args:
        architecture: whose outcome it is; the blocks of its towers count too.
        name: a tiny model, or nothing if there is no recipe for the architecture.
    """
    import patchkit
    from patchkit.check.numeric.proving import prove, subjects_of, versions
    from patchkit.testing import tiny_inputs

    start = time.perf_counter()
    if not name:
        problem = "there is no tiny model of it: patchkit.testing has no recipe"
        return ArchitectureOutcome(architecture, versions(), problems={architecture: problem})
    try:
        model = _adapted(name)
        inputs = tiny_inputs(name, model)
    except Exception as error:  # a release that lacks the model, or builds it in another way
        problem = f"its tiny model cannot be built: {type(error).__name__}: {error}"
        return ArchitectureOutcome(architecture, versions(), problems={name: problem})
    subjects, left = subjects_of(model)
    apply = functools.partial(patchkit.apply, trust="always")  # what is to be proven cannot be asked for its proof
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        verdicts = prove(model, inputs, subjects, NUMERIC_CHECKS, patch=apply, revert=patchkit.revert)
    return ArchitectureOutcome(
        architecture,
        versions(),
        tuple(_outcome(verdict, name) for verdict in verdicts),
        {cls.__qualname__: reason for cls, reason in left.items()},
        {},
        round(time.perf_counter() - start, 2),
    )


def _adapted(name: str) -> Any:
    """A tiny model with adapters on every projection of its registered blocks, those of a vision tower included."""
    from patchkit.arch.discovery import find_blocks
    from patchkit.testing import add_lora, tiny_model

    model = tiny_model(name)
    targets: list[str] = []
    for found in find_blocks(model):
        block = found.block
        parts = block.projections()
        targets += [f"{found.name}.{part}" for part in parts]
    # A scaling that is no power of two, so that leaving it out or applying it twice rounds differently.
    return add_lora(model, target_modules=targets, r=4, lora_alpha=11).train()


def _outcome(verdict: Verdict, model: str) -> BlockOutcome:
    checks = {
        result.check: CheckOutcome(
            result.status,
            float(f"{result.worst.error:.3g}") if result.worst is not None else None,
            verdict.fault(result),
        )
        for result in verdict.results
    }
    return BlockOutcome(
        verdict.subject.key.class_name,
        verdict.subject.key.source,
        model,
        verdict.status,
        dict(verdict.levels),
        checks,
        verdict.reason,
        verdict.proof("numeric").to_line() if verdict.status == "passed" else None,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m patchkit.check.numeric.architectures", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--arch", action="append", default=[], help="architecture or glob; repeatable; default: all")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of text")
    parser.add_argument(
        "--ledger", nargs="?", type=Path, const=SHIPPED, help="enter proofs into a ledger (default: the shipped one)"
    )
    options = parser.parse_args(arguments)
    failed = False
    try:
        names = list(_matching(options.arch))
        from patchkit.check.numeric.environments import running_environment

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


def _matching(patterns: Iterable[str]) -> Iterator[str]:
    known = architectures()
    for pattern in patterns or ("*",):
        names = fnmatch.filter(known, pattern)
        yield from names or [find(pattern).name]  # which names the near misses


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
