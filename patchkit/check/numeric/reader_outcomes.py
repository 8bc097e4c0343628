"""What the numeric stage showed of one reader of PEFT's layers, as plain data that is read from a worker process.

Nothing of it is taken on trust: a status follows from the cases, and the source that was proven has to be the one that
was read (:mod:`patchkit.check.peft_readers` asks).
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, get_args

from patchkit.adapters.peft_known import ReaderProof
from patchkit.check.numeric.outcomes import VERSIONED, Status


@dataclass(frozen=True)
class CaseOutcome:
    """One kind of adapter.

    Attributes:
        name: of the case.
        status: ``inapplicable`` where PEFT itself cannot do it, or it runs at upstream level.
        errors: the largest relative error of each check that passed.
        reason: what failed, or why it is inapplicable, in one line.
    """

    name: str
    status: Status
    errors: Mapping[str, float]
    reason: str = ""


@dataclass(frozen=True)
class ReaderOutcome:
    """The numeric result of one reader.

    Attributes:
        reader: its name.
        source: hash of what it relies on, in the PEFT that ran.
        versions: of transformers, torch, peft and Python.
        cases: each kind of adapter.
        problem: why nothing could be run; empty if it was.
    """

    reader: str
    source: str
    versions: Mapping[str, str]
    cases: tuple[CaseOutcome, ...] = ()
    problem: str = ""

    @property
    def status(self) -> Status:
        """``failed`` if any case failed, ``passed`` if all passed and there is one, else ``inapplicable``."""
        found = {case.status for case in self.cases}
        if "failed" in found:
            return "failed"
        return "passed" if found == {"passed"} and not self.problem else "inapplicable"

    @property
    def reason(self) -> str:
        """In one line, why it did not pass; empty if it did."""
        wrong = sorted((case for case in self.cases if case.status != "passed"), key=lambda one: one.status != "failed")
        return self.problem or "; ".join(f"{case.name}: {case.reason}" for case in wrong)

    @property
    def proof(self) -> ReaderProof | None:
        """What is remembered, if it passed."""
        if self.status != "passed":
            return None
        errors = {f"{case.name}: {check}": error for case in self.cases for check, error in case.errors.items()}
        today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
        return ReaderProof(self.reader, self.source, errors, dict(self.versions), today)

    def to_json(self) -> str:
        """The outcome as one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: bytes) -> ReaderOutcome:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: it is not that.
        """
        try:
            data = json.loads(line)
            cases = tuple(_case(one) for one in data["cases"])
            versions = {str(name): str(version) for name, version in data["versions"].items()}
            found = cls(str(data["reader"]), str(data["source"]), versions, cases, str(data["problem"]))
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        if set(versions) != set(VERSIONED):
            raise ValueError(f"its versions are of {', '.join(versions) or 'nothing'}")
        return found


def _case(data: Mapping[str, Any]) -> CaseOutcome:
    status: Status = data["status"]
    errors = data["errors"]
    if status not in get_args(Status) or not isinstance(errors, dict):
        raise ValueError(f"{status!r} is no status, or its errors are none")
    errors = {str(name): float(error) for name, error in errors.items()}
    if any(not math.isfinite(error) or error < 0 for error in errors.values()):
        raise ValueError("an error is no finite number")
    if status == "passed" and not errors:
        raise ValueError("it is called passed, but no check is")
    return CaseOutcome(str(data["name"]), status, errors, str(data["reason"]))
