"""The numeric stage of ``patchkit check``: the parity contract of an architecture on the transformers that is imported.

``python -m patchkit.check.numeric --arch gemma3 --json`` writes one JSON object a line, one for each architecture, as
soon as it is done. So it can run under another transformers release, in a process of its own (see
:mod:`patchkit.check.environments`). Exit code 0: everything passed; 1: something failed; 2: wrong usage.

Nothing here imports torch before there is work to do, so that usage errors are quick.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import multiprocessing
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from patchkit.arch.registry import architectures, find
from patchkit.check.ledger import SHIPPED, Proof, add_proofs
from patchkit.errors import PatchkitError

if TYPE_CHECKING:
    from patchkit.check.proving import Verdict

Status = Literal["passed", "failed", "inapplicable"]

NUMERIC_CHECKS = (
    "forward_backward",
    "eval",
    "no_grad",
    "repeated_backward",
    "ragged_padding",
    "dropout",
    "training_curve",
    "checkpointing_reentrant",
    "checkpointing_non_reentrant",
    "generate",
    "disable_adapter",
    "deepcopy",
    "state_dict",
    "revert",
    "bfloat16",
    "autocast_bfloat16_base",
)
"""What is run, of ``patchkit.testing.CHECKS``: what a class can break. The tests run the others."""


@dataclass(frozen=True)
class CheckOutcome:
    """One check of one class.

    Attributes:
        status: ``inapplicable`` where upstream itself cannot do it.
        error: the largest relative error, in low precision the ratio to upstream's own; None if nothing was measured.
        reason: what failed, or why the check is inapplicable, in one line.
    """

    status: Status
    error: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class BlockOutcome:
    """What one tiny model showed of one class.

    Attributes:
        class_name: qualified name of the class that defines ``forward``.
        source: hash of its source.
        model: name of the tiny model.
        status: of all checks together.
        levels: the level at which each part ran.
        checks: by name.
        reason: what failed, or why nothing was shown, in one line; empty if it passed.
        proof: its line in the ledger, if it passed.
    """

    class_name: str
    source: str
    model: str
    status: Status
    levels: Mapping[str, str]
    checks: Mapping[str, CheckOutcome]
    reason: str = ""
    proof: str | None = None


@dataclass(frozen=True)
class ArchitectureOutcome:
    """The numeric result of one architecture, as plain data.

    Attributes:
        architecture: its name.
        versions: of transformers, torch, peft and Python.
        blocks: one for each class and tiny model.
        unpatched: classes that are recognised and not patched at all, with the reason.
        problems: why a tiny model could not be checked, by its name.
        seconds: of work, summed over processes.
    """

    architecture: str
    versions: Mapping[str, str]
    blocks: tuple[BlockOutcome, ...] = ()
    unpatched: Mapping[str, str] | None = None
    problems: Mapping[str, str] | None = None
    seconds: float = 0.0

    @property
    def status(self) -> Status:
        """``failed`` if any class failed, ``passed`` if all passed and there is one, else ``inapplicable``."""
        found = {block.status for block in self.blocks}
        if "failed" in found:
            return "failed"
        return "passed" if found == {"passed"} and not self.problems else "inapplicable"

    @property
    def proofs(self) -> tuple[Proof, ...]:
        """What can be entered into the ledger."""
        return tuple(Proof.from_line(block.proof) for block in self.blocks if block.proof)

    def to_json(self) -> str:
        """The outcome as one line."""
        return json.dumps({"status": self.status, **asdict(self)})

    @classmethod
    def from_json(cls, line: str) -> ArchitectureOutcome:
        """Read what :meth:`to_json` wrote."""
        data = json.loads(line)
        del data["status"]
        blocks = [
            BlockOutcome(**{**block, "checks": {name: CheckOutcome(**one) for name, one in block["checks"].items()}})
            for block in data.pop("blocks")
        ]
        return cls(**data, blocks=tuple(blocks))


def check_architectures(names: Sequence[str], *, jobs: int = 1) -> Iterator[ArchitectureOutcome]:
    """Run the contract for architectures, and yield each as soon as its last model is done.

    Args:
        names: registered architectures.
        jobs: processes; 1 runs in this one.

    Raises:
        UnknownArchitectureError: a name is not registered; before anything runs.
    """
    tasks = {name: _models(name) for name in names}
    parts: dict[str, list[ArchitectureOutcome]] = {name: [] for name in names}
    for part in _run(tasks, jobs):
        done = parts[part.architecture]
        done.append(part)
        if len(done) == max(len(tasks[part.architecture]), 1):
            yield _joined(done)


def _models(architecture: str) -> tuple[str, ...]:
    find(architecture)
    from patchkit.testing import tiny_models_of

    return tiny_models_of(architecture)


def _run(tasks: Mapping[str, Sequence[str]], jobs: int) -> Iterator[ArchitectureOutcome]:
    pairs = [(architecture, model) for architecture, models in tasks.items() for model in models or ("",)]
    if jobs <= 1 or len(pairs) == 1:
        for architecture, model in pairs:
            yield check_model(architecture, model)
        return
    # Processes of their own, and not forks: torch has threads.
    with ProcessPoolExecutor(min(jobs, len(pairs)), mp_context=multiprocessing.get_context("spawn")) as pool:
        futures: list[Future[ArchitectureOutcome]] = [pool.submit(check_model, *pair) for pair in pairs]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _joined(parts: Sequence[ArchitectureOutcome]) -> ArchitectureOutcome:
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
    import functools

    import patchkit
    from patchkit.check.proving import prove, subjects_of, versions
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
    from patchkit.arch.spec import Attention
    from patchkit.testing import add_lora, tiny_model

    model = tiny_model(name)
    targets: list[str] = []
    for found in find_blocks(model):
        block = found.block
        parts = (block.q, block.k, block.v, block.o) if isinstance(block, Attention) else (*block.inputs, block.down)
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
    parser = argparse.ArgumentParser(prog="python -m patchkit.check.numeric", description=__doc__.partition("\n")[0])
    parser.add_argument("--arch", action="append", default=[], help="architecture or glob; repeatable; default: all")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of text")
    parser.add_argument(
        "--ledger", nargs="?", type=Path, const=SHIPPED, help="enter proofs into a ledger (default: the shipped one)"
    )
    options = parser.parse_args(arguments)
    failed = False
    try:
        for outcome in check_architectures(list(_matching(options.arch)), jobs=options.jobs):
            failed |= outcome.status == "failed"
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
    # Under its own name, not __main__: what other processes are sent has to be found there.
    from patchkit.check import numeric

    sys.exit(numeric.main())
