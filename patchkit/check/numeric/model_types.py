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
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from torch import nn

    from patchkit.reporting import Report
    from patchkit.testing import Inputs
    from patchkit.testing.parity import Run

State = Literal["verified", "different", "upstream", "nothing to patch", "not run", "not built"]
"""``upstream``: equal, and no layer runs fused. ``not run``: plain PEFT fails on it. ``not built``: no tiny model."""

STATES: tuple[State, ...] = get_args(State)

_NO_LINEAR = "it has no linear layer that PEFT adapts"

_EXACT = 1e-9
"""In float64, relative: far above its rounding, far below any other formula."""

_WORSE = 2.0
"""How much larger than upstream's own a float32 error may be where float64 had to decide: one draw is a noisy ratio."""


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
        blocks = data["blocks"]
        if not isinstance(blocks, list) or not all(isinstance(one, str) for one in blocks):
            raise ValueError("its blocks are no list of names")
        for name, kind in kinds.items():
            if name != "blocks" and type(data[name]) not in ({int, float} if kind is float else {kind}):
                raise ValueError(f"its {name} is no {kind.__name__}")
        return cls(**{**data, "blocks": tuple(blocks)})


_WORDS = ("model_type", "head", "state")


def answer(request: bytes) -> bytes:
    """What a worker is asked, as JSON, and its answer.

    ``{"heads": [...]}`` is answered by the model types of each, ``{"model_type": ..., "head": ...}`` by an outcome.
    """
    asked = json.loads(request)
    if "heads" in asked:
        from patchkit.testing.tiny.heads import types_with

        return json.dumps({head: types_with(head) for head in asked["heads"]}).encode()
    return json.dumps(examine(asked["model_type"], asked["head"]).to_json()).encode()


def examine(model_type: str, head: str) -> TypeOutcome:
    """Build, adapt, patch and compare a tiny model of one type.

    Args:
        model_type: of the transformers that is imported.
        head: a key of :data:`patchkit.testing.tiny.heads.HEADS`.
    """
    from patchkit.check.numeric.adapting import adapted, has_linear_layers, linear_layers
    from patchkit.errors import TinyModelError
    from patchkit.testing import tiny_inputs_for, tiny_model_from

    start = time.perf_counter()

    def outcome(state: State, reason: str = "", **found: Any) -> TypeOutcome:
        return TypeOutcome(model_type, head, state, reason, seconds=round(time.perf_counter() - start, 2), **found)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = tiny_model_from(model_type, head=head)
            inputs: Inputs = tiny_inputs_for(model)
        except TinyModelError as error:
            if not has_linear_layers(model_type, head):
                return outcome("nothing to patch", _NO_LINEAR)
            return outcome("not built", _in_one_line(str(error).splitlines()[-1]))
        named: dict[str, Any] = {"model_class": type(model).__name__}
        if not linear_layers(model):
            return outcome("nothing to patch", _NO_LINEAR, **named)
        try:
            reference = adapted(model, inputs)
        except Exception as error:  # PEFT and upstream may raise anything
            return outcome("not run", f"plain PEFT fails: {type(error).__name__}: {_in_one_line(str(error))}", **named)
        found = _compared(reference.model, inputs, reference.outcome)
        reasons = [_in_one_line(reference.without)] if reference.without else []
        return outcome(**found | named | {"reason": "; ".join([*reasons, *filter(None, [found.get("reason")])])})


def _run(model: nn.Module, inputs: Inputs) -> Run:
    from patchkit.testing import run

    # Of a copy: some keep what a forward has computed, and cannot be copied any more then.
    return run(copy.deepcopy(model), inputs, input_gradients=False)


def _compared(reference: nn.Module, inputs: Inputs, expected: Run) -> dict[str, Any]:
    """The fields of an outcome that a comparison gives."""
    import patchkit
    from patchkit.testing import compare_runs

    model = copy.deepcopy(reference)
    report = patchkit.apply(model, trust="always")
    counts = _counted(model, report)
    if not counts["whole"] + counts["alone"] + counts["left"]:
        return {"state": "nothing to patch", "reason": _NO_LINEAR}
    blocks = sorted({f"{row.module_class} {row.part}" for row in report.rows if row.part != "linear"})
    told: dict[str, Any] = {**counts, "blocks": tuple(blocks), "judged_in": "float32"}
    reasons = dict.fromkeys(f"{row.module_class}: {row.reason}" for row in report.at("upstream") if not row.expected)
    state = "verified" if counts["whole"] + counts["alone"] else "upstream"
    found = _run(model, inputs)
    findings = compare_runs(expected, found)
    worst = findings.worst
    told |= {"state": state, "reason": "; ".join(reasons), "error": float(f"{worst.error:.2g}") if worst else 0.0}
    if findings.passed:
        return told
    if findings.problems:
        return told | {"state": "different", "reason": findings.problems[0]}
    return told | _arbitrated(reference, inputs, expected, found)


def _arbitrated(reference: nn.Module, inputs: Inputs, expected: Run, found: Run) -> dict[str, Any]:
    """What float64 says where float32 misses its tolerance: conditioning, a kink, or another formula.

    Both must hold: the formulas agree in float64, and in float32 the error against that truth is not larger than
    upstream's own by more than noise.
    """
    import patchkit
    from patchkit.testing import compare_runs

    exact = copy.deepcopy(reference).double()
    _use_eager_experts(exact)
    inputs = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    truth = _run(exact, inputs)
    patched = copy.deepcopy(exact)
    patchkit.apply(patched, trust="always")
    findings = compare_runs(truth, _run(patched, inputs), _EXACT)
    worst = findings.worst
    told: dict[str, Any] = {"judged_in": "float64", "error": float(f"{worst.error:.2g}") if worst else 0.0}
    if not findings.passed:
        said = findings.problems[0] if findings.problems else str(worst)
        return told | {"state": "different", "reason": f"in float64: {said}"}
    ours, theirs = _largest_error(truth, found), _largest_error(truth, expected)
    if ours > _WORSE * theirs:
        why = f"in float32 its error is {ours:.2g}, upstream's {theirs:.2g}"
        return told | {"state": "different", "reason": why}
    return told


def _largest_error(truth: Run, found: Run) -> float:
    from patchkit.testing import compare_runs

    worst = compare_runs(truth, found, float("inf")).worst
    return worst.error if worst is not None else 0.0


def _use_eager_experts(model: nn.Module) -> None:
    """Grouped products of experts take no float64."""
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "_experts_implementation"):
            config._experts_implementation = "eager"


def _counted(model: nn.Module, report: Report) -> dict[str, int]:
    """How many adapted linear layers run in a block, by themselves, and upstream."""
    from patchkit.planning.survey import survey

    seen, levels = survey(model), {(row.name, row.part): row.level for row in report.rows}
    counts = {"whole": 0, "alone": 0, "left": 0}
    for layer in seen.layers:
        if layer.parts == ("embedding",):
            continue
        place = seen.places.get(layer.name)
        in_block = levels.get((place.block, place.part)) if place is not None else None
        own = levels.get((layer.name, layer.parts[0]), "upstream")
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
