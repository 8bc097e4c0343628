"""Every model type of a release through :mod:`patchkit.check.numeric.model_types`, in processes of their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from patchkit.check.numeric.environments import Environment
from patchkit.check.numeric.model_types import LOST, TypeOutcome
from patchkit.check.numeric.recorded import Recorded
from patchkit.check.numeric.remembered import Remembered
from patchkit.errors import ReleaseEnvironmentError, UnknownModelTypeError, WorkerLostError
from patchkit.processes.interpreters import empty_folder
from patchkit.processes.workers import Worker, WorkerKind, ask_all, sharing_cores

EACH = ("causal", "image-text", "seq2seq", "encoder")
"""Heads of language models. A type that has several of them is examined under each of them."""

DEFAULT_HEADS = (*EACH, "speech-seq2seq", "ctc", "vision", "multimodal", "base", "task", "part")
"""What a scan is of. Other than under :data:`EACH`, a type is examined under the first of these that it has."""

_ANSWER = "patchkit.check.numeric.model_types:answer"
_MOST_TYPES = 5000
_MEMORY = 3 * 2**30
"""After which a process that has run models is replaced: what the system's allocator keeps only grows."""


def scan_types(
    environment: Environment,
    heads: Sequence[str],
    patterns: Sequence[str] = (),
    *,
    jobs: int = 1,
    seconds: float,
    remembered: Remembered | None = None,
    recorded: Recorded | None = None,
    options: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Iterator[TypeOutcome]:
    """The outcome of each model type, as soon as it is there; those that are remembered or on record first.

    Args:
        environment: with the release.
        heads: keys of :data:`patchkit.testing.tiny.heads.HEADS`.
        patterns: names of model types, or globs; all if there are none.
        jobs: processes.
        seconds: for one type.
        remembered: outcomes of earlier scans; those of this one are added. None remembers nothing.
        recorded: outcomes that are on record. None runs every type that is not remembered.
        options: of ``patchkit.apply``; outcomes with such are neither remembered nor on record.
        progress: is told how many of how many types are done.

    Raises:
        UnknownModelTypeError: the release has no type that a pattern names.
        ReleaseEnvironmentError: no process can say which types the release has.
    """
    types = remembered.types(heads) if remembered is not None else None
    if types is None and recorded is not None:
        types = recorded.types(heads)
    with empty_folder() as folder:
        kind = sharing_cores(environment.kind(folder, _ANSWER, seconds), jobs)
        worker = None
        if types is None:
            worker, types = _types(kind, heads)
        try:
            wanted = _chosen(types, patterns)
        except UnknownModelTypeError:
            if worker is not None:
                worker.stop()
            raise
        if remembered is not None:
            remembered.keep_types(types)
        known = [one for pair in wanted if (one := _known(*pair, remembered, recorded)) is not None]
        progress(0, len(wanted))
        for done, outcome in enumerate(known, start=1):
            yield outcome
            progress(done, len(wanted))
        done_before = {(one.model_type, one.head) for one in known}
        unknown = [pair for pair in wanted if pair not in done_before]
        asked = {"options": dict(options)} if options else {}
        requests = [json.dumps({"model_type": name, "head": head, **asked}).encode() for name, head in unknown]
        for done, (index, said) in enumerate(
            ask_all(kind, requests, jobs, worker, memory=_MEMORY), start=len(known) + 1
        ):
            outcome, lasting = _outcome(*unknown[index], said)
            if remembered is not None and lasting:
                remembered.keep(outcome)
            yield outcome
            progress(done, len(wanted))
    if remembered is not None:
        remembered.close()


def _known(name: str, head: str, remembered: Remembered | None, recorded: Recorded | None) -> TypeOutcome | None:
    """What was found here counts before what is on record."""
    found = remembered.outcome(name, head) if remembered is not None else None
    return recorded.outcome(name, head) if found is None and recorded is not None else found


def _types(kind: WorkerKind, heads: Sequence[str]) -> tuple[Worker, dict[str, list[str]]]:
    worker = Worker(kind)
    try:
        said = json.loads(worker.ask(json.dumps({"heads": list(heads)}).encode()))
        if not isinstance(said, dict) or list(said) != list(dict.fromkeys(heads)):
            raise ValueError("it does not say which model types there are")
        found = {str(head): [str(name) for name in names][:_MOST_TYPES] for head, names in said.items()}
    except (WorkerLostError, ValueError, TypeError) as error:
        worker.stop()
        raise ReleaseEnvironmentError(f"no process says which model types the release has: {error}") from error
    except BaseException:
        worker.stop()
        raise
    return worker, found


def _chosen(found: dict[str, list[str]], patterns: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of type and head. A type that is asked for by name is examined under its first head only."""
    pairs: list[tuple[str, str]] = []
    seen: set[str] = set()
    for head, names in found.items():
        pairs += [(name, head) for name in names if head in EACH or name not in seen]
        seen.update(names)
    if not patterns:
        return pairs
    chosen: dict[str, str] = {}
    for pattern in patterns:
        matches = [pair for pair in pairs if fnmatchcase(pair[0], pattern)]
        if not matches:
            raise UnknownModelTypeError(f"no model type matches {pattern!r} under {', '.join(found)}")
        for name, head in matches:
            chosen.setdefault(name, head)
    return sorted(chosen.items())


def _outcome(name: str, head: str, said: bytes | WorkerLostError) -> tuple[TypeOutcome, bool]:
    """What was said of a type, and whether it would be said again."""
    if isinstance(said, WorkerLostError):
        return TypeOutcome(name, head, "not run", f"{LOST}was lost: {said}"), False
    try:
        outcome = TypeOutcome.from_json(json.loads(said))
        if (outcome.model_type, outcome.head) != (name, head):
            raise ValueError(f"it is of {outcome.model_type}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return TypeOutcome(name, head, "not run", f"{LOST}sent what is no outcome: {error}"), False
    return outcome, True
