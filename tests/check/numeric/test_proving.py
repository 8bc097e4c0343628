"""What a trial says of a class: its status and reason, the errors in its proof, and at whose door a fault is laid."""

from __future__ import annotations

import datetime
import itertools
import platform
import re
from collections.abc import Callable, Sequence
from typing import get_args

import peft
import pytest
import torch
import transformers
from torch import nn
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP

from patchkit.binding.patch import PATCH
from patchkit.check.numeric import proving
from patchkit.check.numeric.outcomes import Status
from patchkit.check.numeric.proving import Subject, Trial, patcher, prove, subjects_of, unpatch, versions
from patchkit.testing import add_lora, tiny_inputs, tiny_model
from patchkit.testing.checks.base import CheckResult, CheckStatus
from patchkit.testing.checks.precision import TOTALS
from patchkit.testing.parity import Findings, Measurement
from patchkit.trust.ledger import Key, Stage

TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1, in f\nRuntimeError: {}'


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        ("another dtype", "another dtype"),
        (TRACEBACK.format("mat1 and mat2"), "RuntimeError: mat1 and mat2"),
        (TRACEBACK.format("mat1 and mat2\n"), "RuntimeError: mat1 and mat2"),
        (TRACEBACK.format("mat1 and mat2\n\n  \n"), "RuntimeError: mat1 and mat2"),
    ],
)
def test_of_a_traceback_the_last_line_that_says_something(problem: str, said: str) -> None:
    assert Trial.fault(CheckResult("forward", "failed", Findings(problems=(problem, "and more")))) == said


def test_other_outcomes() -> None:
    assert Trial.fault(CheckResult("forward", "passed")) == ""
    assert Trial.fault(CheckResult("forward", "inapplicable", reason="no vision tower")) == "no vision tower"
    measured = Findings((Measurement("x", 0.1, 1.0, True), Measurement("y", 0.5, 1e-5, False)))
    assert Trial.fault(CheckResult("forward", "failed", measured)) == str(measured.worst)


# ---- one class


def trial(statuses: Sequence[CheckStatus], *levels: str) -> Trial:
    subject = Subject(Key("m.LlamaMLP", "a" * 64, 1), LlamaMLP, LlamaMLP, None)  # type: ignore[arg-type]
    results = [
        CheckResult(
            f"check{number}",
            status,
            Findings(
                (Measurement("x", 0.25 / (number + 1), 1.0, True),), () if status == "passed" else (f"p{number}",)
            ),
            f"r{number}" if status == "inapplicable" else "",
        )
        for number, status in enumerate(statuses)
    ]
    return Trial(subject, {str(part): level for part, level in enumerate(levels)}, tuple(results))


LEVELS = {("fused",): True, ("linear", "upstream"): True, ("fused/upstream",): True, ("upstream",): False, (): False}
STATUSES = [statuses for count in range(4) for statuses in itertools.product(get_args(CheckStatus), repeat=count)]


@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_the_status_of_every_sequence(levels: tuple[str, ...]) -> None:
    """One failure is enough; to pass, the first check has to, and some part must not run at upstream level."""
    for statuses in STATUSES:
        found = trial(statuses, *levels)
        expected: Status = "inapplicable"
        if "failed" in statuses:
            expected = "failed"
        elif statuses[:1] == ("passed",) and LEVELS[levels]:
            expected = "passed"
        assert found.status == expected, statuses
        failed = [f"check{number}: p{number}" for number, status in enumerate(statuses) if status == "failed"]
        shown = [f"check{number}: r{number}" for number, status in enumerate(statuses) if status == "inapplicable"]
        reason = [*failed, *shown, "all of it runs at upstream level"][0]
        assert found.reason == ("" if expected == "passed" else reason), statuses


@pytest.mark.parametrize("stage", get_args(Stage))
def test_the_proof_of_what_passed(stage: Stage) -> None:
    found = trial(("passed", "inapplicable", "passed"), "fused", "linear").proof(stage)
    assert (found.key, found.stage) == (Key("m.LlamaMLP", "a" * 64, 1), stage)
    assert found.levels == {"0": "fused", "1": "linear"}
    assert found.checks == {"check0": 0.25, "check2": 0.25 / 3}
    assert found.versions == versions()
    today = datetime.datetime.now(datetime.timezone.utc).date()
    assert abs((datetime.date.fromisoformat(found.date) - today).days) <= 1


@pytest.mark.parametrize("statuses", [("failed",), ("inapplicable",), ("passed", "failed"), ()])
def test_nothing_else_has_a_proof(statuses: tuple[CheckStatus, ...]) -> None:
    with pytest.raises(ValueError, match=r"m\.LlamaMLP is not proven: "):
        trial(statuses, "fused").proof("numeric")


def test_the_versions_of_a_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.13.0+cpu")
    assert versions() == {
        "transformers": transformers.__version__,
        "torch": "2.13.0",
        "peft": peft.__version__,
        "python": platform.python_version(),
    }


REACHED = {
    # names with errors: what is told
    (("a", 0.1), ("b", 0.3), ("c", 0.2)): 0.3,
    ((TOTALS[0], 0.1), (TOTALS[1], 0.2), ("c", 0.9)): 0.2,
    ((TOTALS[0], 0.4), (TOTALS[1], 0.2)): 0.4,
    ((TOTALS[0], 0.1), ("c", 0.9)): 0.9,
    ((TOTALS[1], 0.9), ("c", 0.1)): 0.9,
}


@pytest.mark.parametrize("named", REACHED, ids=str)
def test_the_error_of_a_check(named: tuple[tuple[str, float], ...]) -> None:
    """Of totals, where there are both of them; else of all."""
    measured = tuple(Measurement(name, error, 1.0, True) for name, error in named)
    assert proving._reached(CheckResult("bfloat16", "passed", Findings(measured))) == REACHED[named]


# ---- the classes of a model


@pytest.fixture(scope="module")
def llama() -> nn.Module:
    return add_lora(tiny_model("llama"))


@pytest.fixture(scope="module")
def subjects(llama: nn.Module) -> list[Subject]:
    found, left = subjects_of(llama)
    assert left == {}
    return found


def test_the_classes_of_a_model(subjects: list[Subject]) -> None:
    """Each once, however many modules it has."""
    assert [one.original for one in subjects] == [LlamaAttention, LlamaMLP]
    for one in subjects:
        assert issubclass(one.patched, one.original)
        assert one.block.class_name == one.original.__name__
        assert one.key.class_name == f"{one.original.__module__}.{one.original.__qualname__}"


def test_classes_that_cannot_be_patched_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """One without a key, and one that the rewriter leaves."""

    class Quiet(LlamaMLP):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)

    class Keyless(LlamaAttention):
        pass

    model = tiny_model("llama")
    for module in model.modules():
        if type(module) in (LlamaMLP, LlamaAttention):
            module.__class__ = Quiet if type(module) is LlamaMLP else Keyless
    known = proving.key_of
    monkeypatch.setattr(
        proving, "key_of", lambda cls, module: "it has no key" if cls is Keyless else known(cls, module)
    )
    found, left = subjects_of(model)
    assert found == []
    assert left[Keyless] == "it has no key"
    assert left[Quiet]


@pytest.mark.parametrize("adapted", [True, False])
def test_vision_blocks_count_where_they_carry_adapters(adapted: bool) -> None:
    model = tiny_model("mistral3")
    targets = r".*(q_proj|up_proj)" if adapted else r".*language_model.*(q_proj|up_proj)"
    found, left = subjects_of(add_lora(model, target_modules=targets))
    names = {one.original.__name__ for one in found} | {cls.__name__ for cls in left}
    assert names == {"MistralAttention", "MistralMLP"} | ({"PixtralAttention", "PixtralMLP"} if adapted else set())


@pytest.mark.parametrize("chosen", [(), (0,), (1,), (0, 1)], ids=str)
def test_exactly_these_classes_are_patched(chosen: tuple[int, ...], llama: nn.Module, subjects: list[Subject]) -> None:
    before = [type(module) for module in llama.modules()]
    patch = patcher([subjects[number] for number in chosen])
    patch(llama)
    try:
        patched = {type(module).__mro__[1] for module in llama.modules() if PATCH in vars(type(module))}
        assert patched == {subjects[number].original for number in chosen}
    finally:
        unpatch(llama)
    assert [type(module) for module in llama.modules()] == before


@pytest.mark.parametrize(("dropped", "expected"), [
    (None, {"qkv": "fused", "o": "fused"}), ("o_proj", {"qkv": "fused", "o": "upstream"}),
])  # fmt: skip
def test_the_level_of_each_part(dropped: str | None, expected: dict[str, str], subjects: list[Subject]) -> None:
    """In training, whatever mode the model is in, which stays as it is."""
    targets = [name for name in ("q_proj", "k_proj", "v_proj", "o_proj") if name != dropped]
    model = add_lora(tiny_model("llama"), target_modules=targets).eval()
    assert proving.levels_of(model, subjects[0]) == expected
    assert not any(module.training for module in model.modules())
    assert not any(PATCH in vars(type(module)) for module in model.modules())


def test_levels_that_differ_from_layer_to_layer(subjects: list[Subject]) -> None:
    model = add_lora(tiny_model("llama"), target_modules=r".*layers\.0\..*o_proj|.*layers\.1\..*(q|k|v|o)_proj")
    assert proving.levels_of(model, subjects[0]) == {"qkv": "fused/upstream", "o": "fused"}


# ---- at whose door a fault is laid

Failing = Callable[[set[type]], set[str]]
"""From the classes that are patched to the checks that fail then."""

CHECKS = ("first", "second", "third")
FAULTS: dict[str, tuple[Failing, dict[str, set[str]]]] = {
    # which checks fail with which classes patched: those that count against each class
    "none": (lambda patched: set(), {"LlamaAttention": set(), "LlamaMLP": set()}),
    "of one class": (
        lambda patched: {"second"} if LlamaMLP in patched else set(),
        {"LlamaAttention": set(), "LlamaMLP": {"second"}},
    ),
    "of each another": (
        lambda patched: (
            ({"first"} if LlamaAttention in patched else set()) | ({"third"} if LlamaMLP in patched else set())
        ),
        {"LlamaAttention": {"first"}, "LlamaMLP": {"third"}},
    ),
    "of both together": (
        lambda patched: {"second"} if len(patched) > 1 else set(),
        {"LlamaAttention": {"second"}, "LlamaMLP": {"second"}},
    ),
    "of one, and of both together": (
        lambda patched: ({"second"} if len(patched) > 1 else set()) | ({"first"} if LlamaMLP in patched else set()),
        {"LlamaAttention": {"second"}, "LlamaMLP": {"first", "second"}},
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_each_fault_is_of_the_class_that_has_it(
    case: str, llama: nn.Module, subjects: list[Subject], monkeypatch: pytest.MonkeyPatch
) -> None:
    fails, expected = FAULTS[case]
    asked: list[tuple[str, ...]] = []

    def run_checks(
        model: nn.Module, inputs: object, patch: object, *, revert: object, names: Sequence[str]
    ) -> list[CheckResult]:
        asked.append(tuple(names))
        patch(model)  # type: ignore[operator]
        there = {type(module).__mro__[1] for module in model.modules() if PATCH in vars(type(module))}
        names_of = tuple(name for name, module in model.named_modules() if PATCH in vars(type(module)))
        revert(model)  # type: ignore[operator]
        bad = fails(there)
        return [
            CheckResult(name, "failed" if name in bad else "passed", Findings(), patched_modules=names_of)
            for name in names
        ]

    monkeypatch.setattr(proving, "run_checks", run_checks)
    found = {
        one.subject.original.__name__: {result.check for result in one.results if result.status == "failed"}
        for one in prove(llama, {}, subjects, CHECKS)
    }
    assert found == expected
    together = fails({LlamaAttention, LlamaMLP})
    assert asked == [CHECKS, *[tuple(name for name in CHECKS if name in together)] * (2 if together else 0)]
    asked.clear()
    (alone,) = prove(llama, {}, subjects[1:], CHECKS)
    assert {result.check for result in alone.results if result.status == "failed"} == fails({LlamaMLP})
    assert asked == [CHECKS], "with one class there is nothing to tell apart"


@pytest.mark.parametrize("status", get_args(CheckStatus))
def test_a_check_that_passed_without_the_class(status: CheckStatus, llama: nn.Module, subjects: list[Subject]) -> None:
    """What was patched beside it shows nothing of it."""
    attention, mlp = (
        [name for name, module in llama.named_modules() if type(module) is one.original] for one in subjects
    )
    for names, seen in (((), False), (attention, False), (mlp, True), (mlp[:1], True), ([*attention, *mlp], True)):
        result = CheckResult("eval", status, patched_modules=tuple(names))
        told = proving._seen(llama, subjects[1], result)
        if seen or status != "passed":
            assert told is result
        else:
            assert (told.status, told.findings.problems) == ("failed", ("no module of this class was patched",))


def test_another_patch_is_used_where_one_is_given(llama: nn.Module, subjects: list[Subject]) -> None:
    """It patches a whole model, and is undone by what came with it."""
    used: list[str] = []

    def patch(model: nn.Module) -> None:
        used.append("patch")
        patcher(subjects)(model)

    def revert(model: nn.Module) -> None:
        used.append("revert")
        unpatch(model)

    trials = prove(llama, tiny_inputs("llama", llama), subjects, ("revert",), patch=patch, revert=revert)
    assert [one.status for one in trials] == ["passed", "passed"]
    assert set(used) == {"patch", "revert"}
    assert all(re.fullmatch("fused", level) for one in trials for level in one.levels.values())
    assert not any(PATCH in vars(type(module)) for module in llama.modules())
