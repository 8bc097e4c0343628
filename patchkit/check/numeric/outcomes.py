"""The outcome of the numeric stage as plain data, and reading it from a process that ran a release's code.

Nothing of what such a process says is taken on trust: every field has its type, a status follows from the checks, and a
proof says what its block says. That the block is one of the release's own is asked in
:mod:`patchkit.check.results.evidence`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from patchkit.trust.ledger import Proof

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
"""What is run, of ``patchkit.testing.CHECKS``: what a class can break. The first must pass."""

VERSIONED = ("transformers", "torch", "peft", "python")
"""What a proof says the versions of."""


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
        problems: why a tiny model could not be checked, or something else was not shown, by its name.
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
    def from_json(cls, line: str | bytes) -> ArchitectureOutcome:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: it is not that, or it contradicts itself.
        """
        try:
            data = json.loads(line)
            found = cls(
                _text(data["architecture"]),
                _texts(data["versions"]),
                tuple(_block(block) for block in _list(data["blocks"])),
                None if data["unpatched"] is None else _texts(data["unpatched"]),
                None if data["problems"] is None else _texts(data["problems"]),
                _number(data["seconds"]),
            )
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        if set(found.versions) != set(VERSIONED):
            raise ValueError(f"its versions are of {', '.join(found.versions) or 'nothing'}")
        for proof in found.proofs:
            if proof.versions != found.versions:
                raise ValueError(f"a proof of {proof.key.class_name} was made with other versions")
        return found


def joined(of_models: Sequence[ArchitectureOutcome]) -> ArchitectureOutcome:
    """The outcome of an architecture, from those of its tiny models."""
    unpatched = {name: reason for one in of_models for name, reason in (one.unpatched or {}).items()}
    problems = {name: reason for one in of_models for name, reason in (one.problems or {}).items()}
    return ArchitectureOutcome(
        of_models[0].architecture,
        of_models[0].versions,
        tuple(sorted((block for one in of_models for block in one.blocks), key=lambda b: (b.class_name, b.model))),
        unpatched,
        problems,
        round(sum(one.seconds for one in of_models), 2),
    )


def _block(data: Any) -> BlockOutcome:
    checks = {name: _check(one) for name, one in _object(data["checks"]).items()}
    block = BlockOutcome(
        _text(data["class_name"]),
        _text(data["source"]),
        _text(data["model"]),
        _status(data["status"]),
        _texts(data["levels"]),
        checks,
        _text(data["reason"]),
        None if data["proof"] is None else _text(data["proof"]),
    )
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", block.class_name) or not set(checks) <= set(NUMERIC_CHECKS):
        raise ValueError(f"{block.class_name!r} is no class, or its checks are none")
    if (block.status == "passed") != (block.proof is not None):
        raise ValueError(f"{block.class_name} is {block.status}, {'with' if block.proof else 'without'} a proof")
    if block.proof is not None:
        _confirm(block, Proof.from_line(block.proof))
    return block


def _confirm(block: BlockOutcome, proof: Proof) -> None:
    """That a block may be called passed, and that its proof is one of it."""
    passed = {name for name, check in block.checks.items() if check.status == "passed"}
    if any(check.status == "failed" for check in block.checks.values()) or NUMERIC_CHECKS[0] not in passed:
        raise ValueError(f"{block.class_name} is called passed, but its checks are not")
    if set(block.checks) != set(NUMERIC_CHECKS):
        raise ValueError(f"{block.class_name} is called passed, but lacks checks")
    if not set(block.levels.values()) - {"upstream"}:
        raise ValueError(f"{block.class_name} is called passed, but runs at upstream level")
    said = (proof.key.class_name, proof.key.source, proof.stage, proof.levels, set(proof.checks))
    if said != (block.class_name, block.source, "numeric", block.levels, passed):
        raise ValueError(f"the proof of {block.class_name} is of something else")
    if any(error < 0 for error in proof.checks.values()):
        raise ValueError(f"the proof of {block.class_name} has an error below zero")


def _check(data: Any) -> CheckOutcome:
    error = data["error"]
    return CheckOutcome(_status(data["status"]), None if error is None else _number(error), _text(data["reason"]))


def _status(value: Any) -> Status:
    if value not in get_args(Status):
        raise ValueError(f"{value!r} is no status")
    status: Status = value
    return status


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no text")
    return value


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{value!r} is no object")
    return value


def _texts(value: Any) -> dict[str, str]:
    return {name: _text(text) for name, text in _object(value).items()}


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{value!r} is no list")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float):  # that of a failed check may be no finite one
        raise ValueError(f"{value!r} is no number")
    return float(value)
