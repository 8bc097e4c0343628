"""Whatever a user does to a patched model, it gives the numbers, and the errors, of its untouched copy.

A stateful search: a tiny model in float64, where rounding does not matter, and a deepcopy that is never patched. Every
action is done to both; only ``apply``, ``revert`` and ``patched`` are done to one. After any of them the model is used
in some way, and everything that can be observed has to agree.
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable

import pytest
import torch
from attack_actions import ACTIONS, BETWEEN, REPLACEMENTS, Action, Replacement, Undo
from attack_settings import EXAMPLES, SEED, SHARDS, STEPS, search
from attack_uses import USES, Failed, Seen, Use, observe
from hypothesis import note, seed
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from torch import nn

import patchkit
from patchkit.errors import RevertError
from patchkit.testing import add_lora, compare_runs, tiny_inputs, tiny_model
from patchkit.testing.parity import compare_types

NAMES = ("llama", "qwen2", "gemma3")
ADAPTERS = (
    {},
    {"lora_dropout": 0.2},
    {"use_dora": True},
    {"use_dora": True, "lora_dropout": 0.2},
    {"lora_bias": True},
    {"bias": "all", "lora_dropout": 0.1},
    {"target_modules": ["q_proj", "v_proj"]},
    {"target_modules": ["q_proj", "k_proj", "gate_proj", "down_proj", "embed_tokens"]},
    {"target_modules": ["o_proj", "up_proj", "lm_head"], "use_rslora": True},
    {"modules_to_save": ["lm_head"]},
)
OPTIONS = (
    {},
    {},
    {"qkv": False},
    {"o": False, "embedding": False},
    {"mlp": False, "head": False},
    {"trust": "always"},
)
# PEFT keeps adapters in float32 over a bfloat16 base. Nothing but types, draws and errors is compared there: numbers in
# low precision are for the tests of precision.
DTYPES = (torch.float64,) * 5 + (torch.bfloat16,)
where = st.integers(0, 255)


def attempt(act: Callable[[], Undo | None]) -> Undo | Failed | None:
    try:
        return act()
    except Exception as error:
        return Failed(type(error).__name__, str(error))


class Life(RuleBasedStateMachine):
    """One model's life: ``mine`` is patched now and then, ``theirs`` never."""

    @initialize(name=st.sampled_from(NAMES), adapter=st.sampled_from(ADAPTERS), dtype=st.sampled_from(DTYPES))
    def build(self, name: str, adapter: dict[str, object], dtype: torch.dtype) -> None:
        self.exact = dtype is torch.float64
        self.mine: nn.Module = add_lora(tiny_model(name, dtype=dtype), **adapter).train()
        self.theirs = copy.deepcopy(self.mine)
        inputs = tiny_inputs(name, self.mine)
        self.inputs = {key: inputs[key] for key in ("input_ids", "attention_mask", "labels")}
        self.undos: list[tuple[Undo, Undo]] = []
        self.replaced: list[Undo] = []
        patchkit.apply(self.mine)

    # ---- patchkit

    @rule(options=st.sampled_from(OPTIONS))
    def apply(self, options: dict[str, object]) -> None:
        self.unless_owned(lambda: patchkit.apply(self.mine, **options))

    @rule()
    def revert(self) -> None:
        self.unless_owned(lambda: patchkit.revert(self.mine))

    @rule()
    def report(self) -> None:
        patchkit.report(self.mine)

    def unless_owned(self, act: Callable[[], object]) -> None:
        """A forward that was set on a patched module may call the patched one: only there nothing can be undone."""
        try:
            act()
        except RevertError:
            assert any("forward" in module.__dict__ for module in self.mine.modules())

    # ---- the user

    @rule(action=st.sampled_from(ACTIONS), where=where)
    def act(self, action: Action, where: int) -> None:
        theirs, mine = (attempt(lambda m=model: action.do(m, where)) for model in (self.theirs, self.mine))
        assert isinstance(theirs, Failed) == isinstance(mine, Failed), (theirs, mine)
        if callable(theirs) and callable(mine):
            self.undos.append((theirs, mine))

    @precondition(lambda self: self.undos)
    @rule(where=where)
    def undo(self, where: int) -> None:
        for act in self.undos.pop(where % len(self.undos)):
            act()

    @precondition(lambda self: len(self.replaced) < 2)
    @rule(replacement=st.sampled_from(REPLACEMENTS))
    def replace_for_everyone(self, replacement: Replacement) -> None:
        self.replaced.append(replacement.make(1.0 + 0.25 * (len(self.replaced) + 1)))

    @precondition(lambda self: self.replaced)
    @rule()
    def put_back(self) -> None:
        self.replaced.pop()()

    @rule()
    def copied(self) -> None:
        self.mine, self.theirs = copy.deepcopy(self.mine), copy.deepcopy(self.theirs)
        self.undos.clear()

    @precondition(lambda self: not self.undos)
    @rule()
    def pickled(self) -> None:
        for side in ("mine", "theirs"):
            file = io.BytesIO()
            if isinstance(attempt(lambda f=file, s=side: torch.save(getattr(self, s), f)), Failed):
                return
            file.seek(0)
            setattr(self, side, torch.load(file, weights_only=False))

    # ---- what it comes to

    @rule(use=st.sampled_from(USES))
    def use(self, use: Use) -> None:
        self.compare(use, lambda model: None)

    @rule(use=st.sampled_from(USES[:5]), action=st.sampled_from(BETWEEN), where=where)
    def use_with_a_change_between(self, use: Use, action: Action, where: int) -> None:
        self.compare(use, lambda model: action.do(model, where))

    @rule(use=st.sampled_from(USES[:5]), revert=st.booleans(), options=st.sampled_from(OPTIONS))
    def use_and_patch_between(self, use: Use, revert: bool, options: dict[str, object]) -> None:
        def change(model: nn.Module) -> None:
            if model is self.mine:
                self.unless_owned(lambda: patchkit.revert(model) if revert else patchkit.apply(model, **options))

        self.compare(use, change)

    @rule(use=st.sampled_from(USES), options=st.sampled_from(OPTIONS))
    def use_within_patched(self, use: Use, options: dict[str, object]) -> None:
        def within() -> None:
            with patchkit.patched(self.mine, **options):
                self.compare(use, lambda model: None)

        self.unless_owned(within)

    def compare(self, use: Use, between: Callable[[nn.Module], object]) -> None:
        theirs, mine = (
            observe(use, model, self.inputs, lambda m=model: between(m)) for model in (self.theirs, self.mine)
        )
        note(f"{use.name}: {describe(theirs)}")
        assert_same(use if self.exact else use._replace(tolerance=None), theirs, mine)

    def teardown(self) -> None:
        while getattr(self, "replaced", None):
            self.replaced.pop()()


def describe(seen: Seen) -> str:
    if isinstance(seen.outcome, Failed):
        return f"{seen.outcome.kind}: {seen.outcome.message.splitlines()[0] if seen.outcome.message else ''}"
    return f"loss {seen.outcome.outputs['loss'].item():.6g}" if "loss" in seen.outcome.outputs else "done"


def assert_same(use: Use, theirs: Seen, mine: Seen) -> None:
    expected, found = theirs.outcome, mine.outcome
    if isinstance(expected, Failed) or isinstance(found, Failed):
        kinds = [one.kind if isinstance(one, Failed) else "no error" for one in (expected, found)]
        assert kinds[0] == kinds[1], f"upstream: {describe(theirs)}; patched: {describe(mine)}"
        return
    assert theirs.draws == mine.draws, "other random numbers were drawn"
    if use.tolerance is None:
        findings = compare_types(expected, found)
        assert not findings.problems, findings.problems
        assert expected.gradients.keys() == found.gradients.keys()
    else:
        findings = compare_runs(expected, found, use.tolerance)
        assert not findings.problems, findings.problems
        assert findings.passed, str(findings.worst)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shard", range(SHARDS))
def test_a_life_of_actions(shard: int) -> None:
    machine = seed(SEED * 1000 + shard)(Life)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_state_machine_as_test(machine, settings=search(EXAMPLES, stateful_step_count=STEPS))
