"""Outcomes of model types that are on record, in ``coverage.jsonl`` of a checkout: a scan of what is known is instant.

A line is an outcome without what differs between machines (an error, a time). The first line says what all of them were
found with: hashes of the sources of patchkit, PEFT and transformers. They are believed where the code of patchkit and
PEFT is the same, whatever the Python, as proofs in the ledger are; comments and rooms that no outcome comes from do not
count. Of another release of transformers a type is as it was where its own sources are
(:mod:`patchkit.check.static.type_sources`), and the outcome says with which release it was found.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import patchkit
import patchkit_kernels
from patchkit.cache.digests import digest, sources_digest
from patchkit.check.numeric.environments import Environment
from patchkit.check.numeric.model_types import LOST, TypeOutcome
from patchkit.check.static.type_sources import type_sources
from patchkit.errors import CacheError
from patchkit.upstream.identity import source_hash

_NOT_DECIDING = (
    *("cli", "scaffolding", "cache", "processes", "trust", "tuning", "testing/contenders"),
    *("check/results", "check/static", "check/architecture", "check/run.py"),
    *(f"check/numeric/{name}.py" for name in ("recorded", "remembered", "scanning", "environments", "installing")),
    *("trainer_callback.py", "pytest_plugin.py", "report_html.py", "version.py"),
)
"""Rooms and files of patchkit that no outcome comes from: they show, keep or start, decide what is proven, or are for
devices, where no outcome was found."""

_LOST_THEN = f"{LOST}was lost when the record was made, by time or memory; `patchkit scan --anew` tries again"

_MACHINES = ("error", "seconds", "judged_in", "seen_in")


@dataclass(frozen=True)
class MadeWith:
    """What outcomes were found with.

    Attributes:
        patchkit: hash of the code that decides.
        peft: hash of its sources.
        transformers: hash of its sources.
        versions: for people, and the release.
    """

    patchkit: str
    peft: str
    transformers: str
    versions: Mapping[str, str]

    @classmethod
    def of(cls, environment: Environment) -> MadeWith:
        """What outcomes are found with in an environment.

        Raises:
            OSError: a source cannot be read.
        """
        peft = environment.place.parent / "peft"
        versions = {name: version for name, version in sorted(environment.versions.items()) if name != "python"}
        return cls(
            _deciding([Path(str(package.__file__)).parent for package in (patchkit, patchkit_kernels)]),
            sources_digest(peft if peft.is_dir() else _folder("peft")),
            sources_digest(environment.place),
            versions,
        )


@dataclass(frozen=True)
class Recorded:
    """What is on record of the model types of an environment.

    Attributes:
        environment: whose types these are.
        made_with: what the outcomes were found with.
        now: what outcomes are found with in the environment.
        lines: outcomes and the hash of their type's sources, by type and head.
    """

    environment: Environment
    made_with: MadeWith
    now: MadeWith
    lines: Mapping[tuple[str, str], tuple[TypeOutcome, str]] = field(repr=False)

    @classmethod
    def load(cls, path: Path, environment: Environment) -> Recorded | None:
        """What a file says of an environment; None if there is none, or it was made with other code.

        Raises:
            CacheError: the file is damaged; the message names the line.
            OSError: a source cannot be read.
        """
        try:
            text = path.read_text("utf-8").splitlines()
        except FileNotFoundError:
            return None
        lines: dict[tuple[str, str], tuple[TypeOutcome, str]] = {}
        made_with = None
        for number, line in enumerate(text, start=1):
            try:
                data = json.loads(line)
                if made_with is None:
                    made_with = MadeWith(**data)
                else:
                    outcome, sources = _read(data)
                    lines[outcome.model_type, outcome.head] = outcome, sources
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise CacheError(f"{path}:{number} is damaged: {error}; restore the file, or make it anew") from error
        now = MadeWith.of(environment)
        if made_with is None or (made_with.patchkit, made_with.peft) != (now.patchkit, now.peft):
            return None
        return cls(environment, made_with, now, lines)

    @property
    def same_release(self) -> bool:
        """Whether the outcomes are of this very transformers."""
        return self.made_with.transformers == self.now.transformers

    def types(self, heads: Sequence[str]) -> dict[str, list[str]] | None:
        """Which model types have which of these heads; None if that is not on record: of another release it is not."""
        if not self.same_release or not set(heads) <= {head for _, head in self.lines}:
            return None
        return {head: sorted(name for name, own in self.lines if own == head) for head in heads}

    def outcome(self, model_type: str, head: str) -> TypeOutcome | None:
        """The outcome of a model type; None if it is not on record, or the release has other sources of it."""
        found, sources = self.lines.get((model_type, head), (None, ""))
        if found is None or self.same_release:
            return found
        if self._sources.get(model_type) != sources:
            return None
        return replace(found, seen_in=self.made_with.versions.get("transformers", "?"))

    def is_new(self, model_type: str) -> bool:
        """Whether nothing is on record of a model type, under any head."""
        return all(name != model_type for name, _ in self.lines)

    @cached_property
    def _sources(self) -> Mapping[str, str]:
        return type_sources(self.environment.place)


def record_of_checkout() -> Path | None:
    """The record of this checkout of patchkit, which need not exist; None where patchkit is no checkout."""
    root = Path(str(patchkit.__file__)).parents[1]
    return root / "coverage.jsonl" if (root / "pyproject.toml").is_file() else None


def to_text(outcomes: Iterable[TypeOutcome], environment: Environment) -> str:
    """The text of the file: sorted, one line an outcome. What differs is to be looked at, and is no record.

    A process that was lost is one: else its type would be missing from a scan that starts from the record, or cost each
    of them minutes.

    Args:
        outcomes: found in this environment.
        environment: with the release.

    Raises:
        OSError: a source cannot be read.
    """
    made_with, sources = MadeWith.of(environment), type_sources(environment.place)
    lasting = (one for one in outcomes if one.state != "different")
    found = sorted(map(_as_recorded, lasting), key=lambda one: (one.head, one.model_type))
    lines: list[dict[str, Any]] = [vars(made_with)]
    for one in found:
        data = {name: value for name, value in one.to_json().items() if value and name not in _MACHINES}
        lines.append({**data, "sources": sources.get(one.model_type, "")})
    return "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)


def _as_recorded(outcome: TypeOutcome) -> TypeOutcome:
    """An outcome without what a process said when it was lost, which differs from run to run."""
    if not outcome.reason.startswith(LOST):
        return outcome
    return TypeOutcome(outcome.model_type, outcome.head, "not run", _LOST_THEN)


def _read(data: Any) -> tuple[TypeOutcome, str]:
    """An outcome and its sources.

    Raises:
        ValueError: it is none.
    """
    sources = data.pop("sources")
    if not isinstance(sources, str):
        raise ValueError("its sources are no hash")
    empty = json.loads(json.dumps(TypeOutcome("", "", "verified").to_json()))
    return TypeOutcome.from_json({**empty, **data}), sources


def _deciding(packages: Iterable[Path]) -> str:
    """A hash of the code of patchkit that outcomes come from: comments and docstrings do not count."""
    found = []
    for root in packages:
        for path in root.rglob("*.py"):
            name = path.relative_to(root).as_posix()
            if not any(name == one or name.startswith(f"{one}/") for one in _NOT_DECIDING):
                found.append([root.name, name, source_hash(path.read_text("utf-8"))])
    return digest(sorted(found))


def _folder(package: str) -> Path:
    spec = find_spec(package)
    return Path(spec.origin).parent if spec is not None and spec.origin else Path(package)
