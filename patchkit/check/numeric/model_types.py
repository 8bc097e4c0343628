"""What becomes of one model type: a tiny model of it, adapters on every linear layer, patched and compared.

This runs in worker processes, as :mod:`patchkit.check.numeric.worker` does: the release's code is imported there only.
The rewritten classes are bound unproven, because the comparison is of the whole model: whatever a rule, a derived
description or a layer did to it shows in the outputs or in a gradient.
"""

from __future__ import annotations

import copy
import json
import time
import warnings
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from patchkit.reporting import Report
    from patchkit.testing import Inputs
    from patchkit.testing.parity import Run

State = Literal["verified", "different", "upstream", "nothing to patch", "no model", "not run", "not built"]
"""``upstream``: equal, and no layer runs fused. ``no model``: no class takes its configuration alone. ``not run``:
plain PEFT fails on it, or nothing can be compared. ``not built``: there is no tiny model."""

STATES: tuple[State, ...] = get_args(State)

LOST = "its process "
"""How the reason begins for an outcome that says nothing of the type."""

_TOO_LARGE = " is not tiny"

_NO_LINEAR = "it has no linear layer that PEFT adapts"


@dataclass(frozen=True)
class TypeOutcome:
    """What was found of a model type.

    Attributes:
        model_type: of transformers.
        head: a key of :data:`patchkit.testing.tiny.heads.HEADS`.
        state: see :data:`State`.
        reason: why it is not verified, or why some of its layers run upstream; empty if all run fused.
        model_class: that was built; empty if none was.
        whole: adapted layers that run fused in a block.
        alone: adapted layers that run fused by themselves.
        left: adapted layers that run upstream.
        blocks: the classes that were rewritten, each with its parts.
        judged_in: ``float32``, or ``float64`` where rounding alone exceeds the tolerance of float32.
        error: the largest relative difference in that precision.
        seconds: that it took.
        classes: those of ``blocks`` with their modules and descriptions, as :func:`described_classes` says it.
        seen_in: the release of transformers that it was found with, where that is another than the one of the scan.
    """

    model_type: str
    head: str
    state: State
    reason: str = ""
    model_class: str = ""
    whole: int = 0
    alone: int = 0
    left: int = 0
    blocks: tuple[str, ...] = ()
    judged_in: str = ""
    error: float = 0.0
    seconds: float = 0.0
    classes: tuple[str, ...] = ()
    seen_in: str = ""

    @property
    def layers(self) -> int:
        """Adapted layers."""
        return self.whole + self.alone + self.left

    def to_json(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> TypeOutcome:
        """What a process said.

        Raises:
            ValueError: it is none.
        """
        kinds: dict[str, Any] = {one.name: type(one.default) for one in fields(cls) if one.name not in _WORDS}
        if not isinstance(data, dict) or data.keys() != {one.name for one in fields(cls)}:
            raise ValueError("it has other fields")
        if data["state"] not in STATES or not all(isinstance(data[name], str) for name in _WORDS):
            raise ValueError("a state or a name is none")
        lists = {name: data[name] for name, kind in kinds.items() if kind is tuple}
        for name, listed in lists.items():
            if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
                raise ValueError(f"its {name} are no list of names")
        for name, kind in kinds.items():
            if name not in lists and type(data[name]) not in ({int, float} if kind is float else {kind}):
                raise ValueError(f"its {name} is no {kind.__name__}")
        return cls(**data | {name: tuple(listed) for name, listed in lists.items()})


_WORDS = ("model_type", "head", "state")


def answer(request: bytes) -> bytes:
    """What a worker is asked, as JSON, and its answer.

    ``{"heads": [...]}`` is answered by the model types of each, ``{"model_type": ..., "head": ...}`` by an outcome;
    options of ``patchkit.apply`` may be among it.
    """
    asked = json.loads(request)
    if "heads" in asked:
        from patchkit.testing.tiny.heads import types_with

        return json.dumps({head: types_with(head) for head in asked["heads"]}).encode()
    found = examine(asked["model_type"], asked["head"], asked.get("options", {}))
    return json.dumps(found.to_json()).encode()


def examine(model_type: str, head: str, options: Mapping[str, Any] = MappingProxyType({})) -> TypeOutcome:
    """Build, adapt, patch and compare a tiny model of one type.

    Args:
        model_type: of the transformers that is imported.
        head: a key of :data:`patchkit.testing.tiny.heads.HEADS`.
        options: of ``patchkit.apply``.
    """
    from patchkit.check.numeric.adapting import adapted, has_linear_layers, linear_layers
    from patchkit.errors import NoModelError, TinyModelError
    from patchkit.testing import tiny_inputs_for, tiny_model_from
    from patchkit.testing.tiny.hints import HINTS

    start = time.perf_counter()

    def outcome(state: State, reason: str = "", **found: Any) -> TypeOutcome:
        return TypeOutcome(model_type, head, state, reason, seconds=round(time.perf_counter() - start, 2), **found)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = tiny_model_from(model_type, head=head)
            inputs: Inputs = tiny_inputs_for(model)
        except NoModelError as error:
            return outcome("no model", _in_one_line(str(error)))
        except TinyModelError as error:
            if not has_linear_layers(model_type, head):
                return outcome("nothing to patch", _NO_LINEAR)
            return outcome("not built", _in_one_line(_first_reason(str(error))))
        named: dict[str, Any] = {"model_class": type(model).__name__}
        if not linear_layers(model):
            return outcome("nothing to patch", _NO_LINEAR, **named)
        try:
            reference = adapted(model, inputs)
        except Exception as error:  # PEFT and upstream may raise anything
            return outcome("not run", f"plain PEFT fails: {type(error).__name__}: {_in_one_line(str(error))}", **named)
        found = _compared(reference.model, inputs, reference.outcome, options)
        hint = HINTS.get(model_type)
        stood_in = hint.instead if hint is not None else ""
        reasons = [stood_in, _in_one_line(reference.without), _unreached(reference.outcome), found.get("reason", "")]
        return outcome(**found | named | {"reason": "; ".join(filter(None, reasons))})


def _run(model: nn.Module, inputs: Inputs) -> Run:
    from patchkit.testing import run

    # Of a copy: some keep what a forward has computed, and cannot be copied any more then.
    return run(copy.deepcopy(model), inputs, input_gradients=False)


def _compared(reference: nn.Module, inputs: Inputs, expected: Run, options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an outcome that a comparison gives."""
    import patchkit
    from patchkit.check.numeric.arbiter import arbitrate, like_found
    from patchkit.testing import compare_runs

    model = copy.deepcopy(reference)
    report = patchkit.apply(model, trust="always", **options)
    counts = counted_layers(model, report)
    if not counts["whole"] + counts["alone"] + counts["left"]:
        return {"state": "nothing to patch", "reason": _NO_LINEAR}
    rewritten = [row for row in report.rows if row.part not in ("linear", "experts") or row.layers]
    # Of layers that run together, the row names them after the class.
    blocks = sorted({f"{row.module_class.partition('.')[0]} {row.part}" for row in rewritten})
    classes = described_classes(model, report)
    told: dict[str, Any] = {**counts, "blocks": tuple(blocks), "classes": classes, "judged_in": "float32"}
    reasons = dict.fromkeys(f"{row.module_class}: {row.reason}" for row in report.at("upstream") if not row.expected)
    state = "verified" if counts["whole"] + counts["alone"] else "upstream"
    found = _run(model, inputs)
    expected = like_found(expected, found)
    findings = compare_runs(expected, found)
    worst = findings.worst
    told |= {"state": state, "reason": "; ".join(reasons), "error": float(f"{worst.error:.2g}") if worst else 0.0}
    if findings.passed:
        return told
    if findings.problems:
        return told | {"state": "different", "reason": findings.problems[0]}
    verdict = arbitrate(reference, inputs, expected, found, options)
    told |= {"judged_in": "float64", "error": verdict.error}
    if verdict.outcome == "equal":
        return told
    return told | {"state": "different" if verdict.outcome == "different" else "not run", "reason": verdict.why}


def _first_reason(said: str) -> str:
    """What the first attempt at a tiny model met, but for one that was only too large, if another met more.

    Args:
        said: by the error: one line of what was asked for, and then one for each attempt.
    """
    attempts = said.splitlines()[1:] or [said]
    return next((line for line in attempts if not line.endswith(_TOO_LARGE)), attempts[0])


def _unreached(outcome: Run) -> str:
    """How many layers get no gradient, so that nothing is shown of them; empty if all do."""
    layers = {name.partition(".lora_")[0] for name in outcome.without_gradient if ".lora_" in name}
    return f"its inputs do not reach {len(layers)} of its adapted layers" if layers else ""


def described_classes(model: nn.Module, report: Report) -> tuple[str, ...]:
    """``module.Class: description: parts that run fused`` of each patched block, sorted, each class once."""
    from patchkit.arch.spec import description
    from patchkit.binding.patch import patch_of
    from patchkit.module_tree import named_modules

    fused: dict[str, list[str]] = {}
    for row in report.at("fused"):
        fused.setdefault(row.name, []).append(row.part)
    found = set()
    for name, module in named_modules(model):
        patch = patch_of(module) if name in fused else None
        if patch is not None and patch.block is not None:
            cls = patch.original
            parts = " ".join(dict.fromkeys(fused[name]))
            found.add(f"{cls.__module__}.{cls.__qualname__}: {description(patch.block)}: {parts}")
    return tuple(sorted(found))


def counted_layers(model: nn.Module, report: Report) -> dict[str, int]:
    """How many adapted linear layers run in a block, by themselves, and upstream."""
    from patchkit.planning.survey import survey

    seen = survey(model)
    levels = {(row.name, row.part, layer): row.level for row in report.rows for layer in row.layers or ("",)}
    counts = {"whole": 0, "alone": 0, "left": 0}
    for layer in seen.layers:
        if layer.parts == ("embedding",):
            continue
        place = seen.places.get(layer.name)
        in_block = None
        if place is not None:
            of_all = levels.get((place.block, place.part, ""))
            in_block = levels.get((place.block, place.part, place.attribute), of_all)
        own = levels.get((layer.name, layer.parts[0], ""), "upstream")
        if in_block == "fused":
            counts["whole"] += 1
        elif in_block == "alone" or own == "fused":
            counts["alone"] += 1
        else:
            counts["left"] += 1
    return counts


def _in_one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 200 else f"{line[:197]}..."
