"""Which plans stand: every combination of what the ledger knows, what verifying shows, and what was decided before."""

from __future__ import annotations

import itertools
import logging
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from patchkit.arch.discovery import Found
from patchkit.arch.registry import architectures
from patchkit.binding.patch import Patch, Refusal
from patchkit.check.numeric import on_the_spot
from patchkit.check.numeric.proving import Subject, Trial
from patchkit.errors import CacheError, PatchkitWarning
from patchkit.options import Options
from patchkit.planning.plan import Planned, plan
from patchkit.planning.survey import survey
from patchkit.testing.checks.base import CheckResult
from patchkit.testing.parity import Findings, Measurement
from patchkit.trust import policy
from patchkit.trust.ledger import Key

LLAMA = architectures()["llama"]
MLP = LLAMA.blocks[1]
CLASSES = {name: type(name, (nn.Module,), {}) for name in "ABC"}


def key(name: str, outside: str = "") -> Key:
    return Key(f"m.{name}", name.lower() * 64, 1, outside * 64)


def trial(name: str, status: str, found: Key | None = None) -> Trial:
    cls = CLASSES[name]
    problems = ("it differs",) if status == "failed" else ()
    result = CheckResult("forward_backward", status, Findings((Measurement("x", 1e-7, 1e-5, True),), problems))
    return Trial(Subject(found or key(name), cls, cls, MLP), {"mlp": "fused"}, (result,))


class World:
    """A ledger and a harness that answer what they are told, and remember what they were asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.keys: dict[int, Key | str] = {}
        self.proven: set[Key] = set()
        self.trials: dict[type, Trial | str] = {}
        self.asked: list[str] = []
        self.verified: list[list[str]] = []
        self.remembered: list[tuple[Key, str]] = []
        self.limits: list[int | None] = []
        monkeypatch.setattr(policy, "_decided", {})
        monkeypatch.setattr(policy, "key_of", self._key_of)
        monkeypatch.setattr(policy, "find_proof", lambda found: found if found in self.proven else None)
        monkeypatch.setattr(policy, "add_proofs", self._add)
        monkeypatch.setattr(on_the_spot, "verify_on_the_spot", self._verify)

    def _key_of(self, cls: type, module: nn.Module | None = None, block: object = None) -> Key | str:
        self.asked.append(cls.__name__)
        return self.keys.get(id(module), key(cls.__name__))

    def _verify(self, model: Any, classes: Any) -> dict[type, Trial | str]:
        self.verified.append([cls.__name__ for cls in classes])
        return {cls: self.trials[cls] for cls in classes}

    def _add(self, path: Any, proofs: Any, *, limit: int | None = None) -> None:
        self.limits.append(limit)
        self.remembered += [(proof.key, proof.stage) for proof in proofs]

    def block(self, name: str, given: Key | str | None = None) -> tuple[Found, type[nn.Module]]:
        module = CLASSES[name]()
        if given is not None:
            self.keys[id(module)] = given
        return Found(f"layers.{name}", module, LLAMA, MLP), CLASSES[name]

    def refusals(self, *blocks: tuple[Found, type[nn.Module]], trust: str = "verify") -> dict[str, str]:
        found = policy._refusals(nn.Module(), blocks, trust)  # type: ignore[arg-type]
        return {cls.__name__: reason for cls, reason in found.items()}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


NOT_IN_IT = "its source is not in the ledger; trust='verify' verifies it on the spot"
UNSHOWN = (
    "its source is not in the ledger and could not be verified on the spot (no tiny model); "
    "trust='always' binds it unproven"
)
UNEQUAL = (
    "its source is not in the ledger, and verified on the spot it is not equal to upstream "
    "(forward_backward: it differs)"
)
FATES = {
    # what is known of a class: why it is refused by the ledger alone, and where it is verified
    "proven": ("", ""),
    "passes": (NOT_IN_IT, ""),
    "differs": (NOT_IN_IT, UNEQUAL),
    "unshown": (NOT_IN_IT, UNSHOWN),
    "no key": ("it cannot be looked up in the ledger: no source",) * 2,
}


def told(world: World, name: str, fate: str) -> tuple[Found, type[nn.Module]]:
    """Have the world give a class this fate."""
    if fate == "proven":
        world.proven.add(key(name))
    if fate == "unshown":
        world.trials[CLASSES[name]] = "no tiny model"
    if fate in ("passes", "differs"):
        world.trials[CLASSES[name]] = trial(name, "passed" if fate == "passes" else "failed")
    return world.block(name, "no source" if fate == "no key" else None)


@pytest.mark.parametrize("trust", ["ledger", "verify"])
@pytest.mark.parametrize("fates", list(itertools.permutations(FATES, 2)), ids=str)
def test_each_class_has_its_own_fate(fates, trust, world):
    """In whatever order classes come; and asked again, nothing is verified again but what could not be."""
    blocks = [told(world, name, fate) for name, fate in zip("AB", fates, strict=True)]
    column = ("ledger", "verify").index(trust)
    expected = {name: said for name, fate in zip("AB", fates, strict=True) if (said := FATES[fate][column])}
    unknown = [name for name, fate in zip("AB", fates, strict=True) if fate in ("passes", "differs", "unshown")]
    assert world.refusals(*blocks, trust=trust) == expected
    assert world.verified == ([unknown] if unknown and trust == "verify" else [])
    passed = [key(name) for name, fate in zip("AB", fates, strict=True) if fate == "passes"]
    assert world.remembered == [(one, "spot") for one in passed if trust == "verify"]
    assert set(world.limits) <= {policy.USER_LIMIT}
    assert world.refusals(*blocks, trust=trust) == expected
    again = [name for name, fate in zip("AB", fates, strict=True) if fate == "unshown"]
    assert world.verified[1:] == ([again] if again and trust == "verify" else [])


def test_a_class_is_asked_for_once_unless_what_is_outside_may_differ(world):
    blocks = [told(world, "A", "proven"), world.block("A"), told(world, "B", "no key"), world.block("B")]
    assert set(world.refusals(*blocks)) == {"B"}
    assert world.asked == ["A", "B"]
    world.asked.clear()
    world.proven.add(key("C", "1"))
    assert world.refusals(*(world.block("C", key("C", "1")) for _ in range(3))) == {}
    assert world.asked == ["C"] * 3


@pytest.mark.parametrize("order", [("1", "2"), ("1", "1", "2"), ("1", "2", "1"), ("1", "2", "2")], ids=str)
@pytest.mark.parametrize("proven", [True, False])
def test_two_of_a_class_with_other_modules_between_their_projections(order, proven, world):
    """No proof is of both: the class is refused, whatever is known of one of them; the other class is not."""
    if proven:
        world.proven |= {key("A", "1"), key("A", "2")}
    world.trials[CLASSES["A"]] = "no tiny model"
    blocks = [world.block("A", key("A", outside)) for outside in order]
    said = "layers.A has other modules between its projections than others of its class"
    assert world.refusals(*blocks, told(world, "B", "proven")) == {"A": said}
    assert world.verified == []


def test_what_was_proven_of_another_instance_is_no_proof(world):
    """The tiny one is built by the constructor; the user's has something else between its projections."""
    given = key("A", "1")
    world.trials[CLASSES["A"]] = trial("A", "passed", key("A", "2"))
    assert world.refusals(world.block("A", given)) == {
        "A": "its source is not in the ledger and could not be verified on the spot (what is called between the "
        "projections of layers.A is not what its constructor puts there); trust='always' binds it unproven"
    }
    assert world.remembered == []
    assert policy._decided == {}


@pytest.mark.parametrize("fate", ["unshown", "differs", "passes"])
def test_the_command_that_examines_it(fate, world, monkeypatch):
    """Named where the class has an architecture file; what is derived has none."""
    block = told(world, "A", fate)
    monkeypatch.setattr(policy, "registered", lambda cls: (LLAMA, MLP) if cls is CLASSES["A"] else None)
    examine = "`patchkit check --arch llama` examines it"
    expected = {
        "unshown": {"A": UNSHOWN.replace("; ", f"; {examine}, ")},
        "differs": {"A": f"{UNEQUAL}; {examine}"},
        "passes": {},
    }
    assert world.refusals(block) == expected[fate]


def test_the_log_says_what_was_verified_and_how_long_it_took(world, monkeypatch, caplog):
    blocks = [told(world, name, fate) for name, fate in zip("ABC", ("passes", "differs", "passes"), strict=True)]
    clock = iter([100.0, 102.5])
    monkeypatch.setattr(policy, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    with caplog.at_level(logging.INFO, logger="patchkit"):
        world.refusals(*blocks)
    assert [record.getMessage() for record in caplog.records] == ["patchkit: verified A, C on the spot in 2.5 s"]
    assert world.remembered == [(key("A"), "spot"), (key("C"), "spot")]


@pytest.mark.parametrize("fate", ["proven", "differs"])
def test_where_nothing_passed_nothing_is_written(fate, world, caplog):
    with caplog.at_level(logging.INFO, logger="patchkit"):
        world.refusals(told(world, "A", fate))
    assert (world.limits, caplog.records) == ([], [])


def test_what_cannot_be_remembered_is_said(world, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise CacheError("the disk is full")

    monkeypatch.setattr(policy, "add_proofs", full)
    with pytest.warns(PatchkitWarning, match="what was verified is not remembered: the disk is full"):
        assert world.refusals(told(world, "A", "passes")) == {}


# ---- plans


def planned(**options: Any) -> tuple[nn.Module, list[Planned]]:
    """A model of one block, and the plan for it."""
    model = nn.ModuleList([LlamaMLP(LlamaConfig(hidden_size=8, intermediate_size=12, num_attention_heads=2))])
    return model, plan(survey(model), Options(**options))


@pytest.mark.parametrize("trust", ["always", "ledger", "verify"])
def test_only_what_would_be_patched_is_asked_for(trust, world, monkeypatch):
    model, (patched,) = planned()
    assert isinstance(patched.outcome, Patch)
    _, (switched_off,) = planned(mlp=False)
    layer = patched.candidate._replace(block=None)
    of_layer = Planned(layer, nn.Linear, nn.Linear, replace(patched.outcome, block=None), ())
    world.trials[patched.original] = "no tiny model"
    plans = policy.trusted(model, iter([switched_off, of_layer, patched]), trust)
    assert plans[:2] == [switched_off, of_layer]
    assert world.asked == ([] if trust == "always" else ["LlamaMLP"])
    if trust == "always":
        assert plans[2] is patched
    else:
        assert isinstance(plans[2].outcome, Refusal)
        assert plans[2].target is patched.original
        reason = (
            NOT_IN_IT if trust == "ledger" else UNSHOWN.replace("; ", "; `patchkit check --arch llama` examines it, ")
        )
        assert [row.reason for row in plans[2].rows] == [reason]


DECIDED = {
    "nothing": (None, None),
    "equal": ("", None),
    "not equal": ("it is not equal", "it is not equal"),
}


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("case", DECIDED)
def test_the_report_says_what_was_decided_before(case, asked, world):
    """Of what is not patched and was refused in this process; what is patched keeps its plan."""
    decided, expected = DECIDED[case]
    _, (patched,) = planned()
    before = patched if asked else Planned(patched.candidate, patched.original, patched.original, None, patched.rows)
    if decided is not None:
        policy._decided[key("LlamaMLP")] = decided
    (after,) = policy.refused_before([before])
    if asked or expected is None:
        assert after is before
    else:
        assert isinstance(after.outcome, Refusal)
        assert [row.reason for row in after.rows] == [expected]
    assert world.asked == (["LlamaMLP"] if not asked and decided is not None else [])


def test_what_has_no_key_was_not_refused_for_it(world):
    _, (patched,) = planned()
    before = Planned(patched.candidate, patched.original, patched.original, None, patched.rows)
    policy._decided[key("B")] = "it is not equal"
    world.keys[id(patched.candidate.module)] = "no source"
    assert policy.refused_before([before]) == [before]
    layer = before.candidate._replace(block=None)
    of_layer = Planned(layer, before.original, before.target, None, before.rows)
    policy._decided[key("LlamaMLP")] = "it is not equal"
    del world.keys[id(patched.candidate.module)]
    assert policy.refused_before([of_layer]) == [of_layer]
