"""What stands between an activation and the down projection: fused, or called, with the same draws and dtypes."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from trained_modules import assert_equal, trained

from patchkit.runtime.before_down import Between, read_dropout
from patchkit.runtime.methods import make_apply_mlp, make_apply_ungated_mlp
from patchkit.testing import randomise_adapter
from patchkit.testing.fused_calls import fused_calls


class Own(nn.Dropout):
    """A subclass may compute anything."""

    def forward(self, x):
        return 2 * super().forward(x)


class MLP(nn.Module):
    """Without a gate, and dropout is a module."""

    def __init__(self, dropout):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)
        self.act, self.dropout, self.p = nn.GELU(), dropout, 0.4

    def forward(self, x):
        return self.down(self.dropout(self.act(self.gate(x))))


class FusedMLP(MLP):
    apply_mlp = make_apply_ungated_mlp("gate", "down", "act", "peft")

    def forward(self, x):
        return self.apply_mlp(x, dropout=self.dropout)


class Functional(MLP):
    def forward(self, x):
        return self.down(F.dropout(self.act(self.gate(x)), p=self.p, training=self.training))


class FusedFunctional(FusedMLP):
    def forward(self, x):
        return self.apply_mlp(x, dropout=F.dropout, p=self.p, training=self.training)


class Gated(MLP):
    def forward(self, x):
        return self.down(self.dropout(self.act(self.gate(x)) * self.up(x)))


class FusedGated(MLP):
    order = ("gate", "act", "up", "down")
    apply_mlp = make_apply_mlp(("gate", "up"), "down", "act", order, "peft", gate_first=True)

    def forward(self, x):
        return self.apply_mlp(x, dropout=self.dropout)


class GatedFunctional(MLP):
    def forward(self, x):
        h = self.act(self.gate(x)) * self.up(x)
        return self.down(F.dropout(h, p=self.p, training=self.training))


class FusedGatedFunctional(FusedGated):
    def forward(self, x):
        return self.apply_mlp(x, dropout=F.dropout, p=self.p, training=self.training)


KINDS = {
    "module": (MLP, FusedMLP, "lora_mlp"),
    "function": (Functional, FusedFunctional, "lora_mlp"),
    "gated module": (Gated, FusedGated, "lora_gated_mlp"),
    "gated function": (GatedFunctional, FusedGatedFunctional, "lora_gated_mlp"),
}
TARGETS = ["gate", "up", "down"]


def pair(kind, dropout=None, targets=TARGETS, **options):
    """A module and the same one whose MLP is fused, with adapters."""
    torch.manual_seed(0)
    module = KINDS[kind][0](dropout or nn.Dropout(0.4))
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets, init_lora_weights=False, **options)
    module = peft.inject_adapter_in_model(config, module)
    randomise_adapter(module)
    fused = copy.deepcopy(module)
    fused.__class__ = KINDS[kind][1]
    return module.train(), fused.train()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("probability", [0.0, 0.4, 1.0, 1])
@pytest.mark.parametrize("options", [{}, {"lora_dropout": 0.3}, {"use_dora": True}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_equal_and_fused(kind, options, probability, training):
    reference, module = pair(kind, nn.Dropout(probability), **options)
    for one in (reference, module):
        one.p = probability
        one.train(training)
    with fused_calls() as calls:
        assert_equal(reference, module)
    assert calls == [KINDS[kind][2]]


@pytest.mark.parametrize("targets", [["gate"], ["down"]])
@pytest.mark.parametrize("kind", KINDS)
def test_equal_with_an_adapter_on_one_side_of_it(kind, targets):
    reference, module = pair(kind, targets=targets)
    with fused_calls() as calls:
        assert_equal(reference, module)
    assert calls == [KINDS[kind][2]]


CALLED = {
    "a subclass": lambda: Own(0.4),
    "in place": lambda: nn.Dropout(0.4, inplace=True),
    "another kind": lambda: nn.AlphaDropout(0.4),
    "a number of another type": lambda: replaced(nn.Dropout(0.4), p=torch.tensor(0.4)),
    "a forward of its own": lambda: replaced(nn.Dropout(0.4), forward=lambda x: x * 2),
    "several": lambda: nn.Sequential(nn.Dropout(0.2), nn.Dropout(0.2)),
}


def replaced(module, **attributes):
    for name, value in attributes.items():
        object.__setattr__(module, name, value)
    return module


@pytest.mark.parametrize("called", CALLED)
@pytest.mark.parametrize("kind", ["module", "gated module"])
def test_what_is_called_instead(kind, called):
    reference, module = pair(kind, CALLED[called]())
    with fused_calls() as calls:
        assert_equal(reference, module)
    assert calls == ["lora_linear"] * (3 if "gated" in kind else 2)


def test_no_dropout_at_all_is_an_identity():
    reference, module = pair("module", nn.Identity())
    with fused_calls() as calls:
        assert_equal(reference, module)
    assert calls == ["lora_mlp"]


@pytest.mark.parametrize("hook", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"])
@pytest.mark.parametrize("kind", ["module", "gated module"])
def test_a_hook_on_it_is_called(kind, hook):
    reference, module = pair(kind)
    seen = []
    for one in (reference, module):
        getattr(one.dropout, hook)(lambda *_: seen.append(1))
    with fused_calls() as calls:
        assert_equal(reference, module)
    assert len(seen) == 2
    assert KINDS[kind][2] not in calls


@pytest.mark.parametrize("kind", KINDS)
def test_another_function_in_its_place(kind, monkeypatch):
    reference, module = pair(kind)
    original = F.dropout
    monkeypatch.setattr(F, "dropout", lambda x, p=0.5, training=True, inplace=False: 3 * original(x, p, training))
    with fused_calls() as calls:
        assert_equal(reference, module)
    assert calls == []  # PEFT's layers look it up, too


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("p", [-0.1, 1.5])
def test_what_is_no_probability_is_upstreams_error(kind, p):
    for one in pair(kind):
        one.p = one.dropout.p = p
        with pytest.raises(ValueError, match="probability"):
            one(torch.randn(5, 8))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_checkpointed(kind, reentrant):
    reference, module = pair(kind, lora_dropout=0.3)
    assert_equal(reference, module, lambda one, x: checkpoint(one, x, use_reentrant=reentrant))


@pytest.mark.parametrize("kind", KINDS)
def test_a_hook_that_comes_between_forward_and_recomputation(kind):
    reference, module = pair(kind, lora_dropout=0.3)
    seen = []

    def call(one, x):
        y = checkpoint(one, x, use_reentrant=False)
        one.gate.register_forward_hook(lambda *_: seen.append(1))
        return y

    assert_equal(reference, module, call)
    assert len(seen) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_without_a_graph_break(kind):
    torch.compiler.reset()
    reference, module = pair(kind)
    compiled = {id(one): torch.compile(one, fullgraph=True, backend="aot_eager") for one in (reference, module)}
    with fused_calls() as calls:
        assert_equal(reference, module, lambda one, x: compiled[id(one)](x))
    assert set(calls) == {KINDS[kind][2]}


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_where_it_is_called(kind):
    torch.compiler.reset()
    reference, module = pair(kind)
    for one in (reference, module):
        one.act = nn.Mish()
    compiled = {id(one): torch.compile(one, fullgraph=True, backend="aot_eager") for one in (reference, module)}
    with fused_calls() as calls:
        assert_equal(reference, module, lambda one, x: compiled[id(one)](x))
    assert set(calls) == {"lora_linear"}


class Cast(MLP):
    """As in T5."""

    def forward(self, x):
        h = self.dropout(self.act(self.gate(x)))
        if (
            isinstance(self.down.weight, torch.Tensor)
            and h.dtype != self.down.weight.dtype
            and self.down.weight.dtype != torch.int8
        ):
            h = h.to(self.down.weight.dtype)
        return self.down(h)


class FusedCast(FusedMLP):
    def forward(self, x):
        return self.apply_mlp(x, dropout=self.dropout, cast_unless=(torch.int8,))


class CastGated(MLP):
    def forward(self, x):
        h = self.act(self.gate(x)) * self.up(x)
        if isinstance(self.down.weight, torch.Tensor) and h.dtype != self.down.weight.dtype:
            h = h.to(self.down.weight.dtype)
        return self.down(h)


class FusedCastGated(FusedGated):
    def forward(self, x):
        return self.apply_mlp(x, cast_unless=())


CASTS = {"cast": (Cast, FusedCast, "lora_mlp"), "gated cast": (CastGated, FusedCastGated, "lora_gated_mlp")}
KEPT = {  # dtypes of the base weights, before and of down: whether it is fused
    (torch.float32, torch.float32): True,
    (torch.float64, torch.float64): True,
    (torch.float32, torch.float64): False,
    (torch.float64, torch.float32): False,
    (torch.bfloat16, torch.bfloat16): True,
    (torch.bfloat16, torch.float32): False,
}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtypes", KEPT, ids=str)
@pytest.mark.parametrize("kind", CASTS)
def test_the_cast_to_the_dtype_of_downs_weight(kind, dtypes, autocast, monkeypatch):
    monkeypatch.setattr(f"{__name__}.KINDS", {**KINDS, **CASTS})
    reference, module = pair(kind)
    first, last = dtypes
    for one in (reference, module):
        for name, base in (("gate", first), ("up", first), ("down", last)):
            getattr(one, name).base_layer.to(base)
            getattr(one, name).lora_A.to(base)
            getattr(one, name).lora_B.to(base)

    def call(one, x):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return one(x.to(first))

    with fused_calls() as calls:
        found = [trained(call, one) for one in (reference, module)]
    for expected, actual in zip(*found, strict=True):
        assert (expected is None) == (actual is None)
        if expected is not None:
            assert expected.dtype == actual.dtype
            low = autocast or torch.bfloat16 in dtypes
            assert (expected - actual).norm() <= (3e-2 if low else 1e-5) * expected.norm()
    whole = KEPT[dtypes] and (not autocast or first == torch.bfloat16)
    assert (CASTS[kind][2] in calls) == whole


@pytest.mark.parametrize("exceptions", [(), (torch.float64,), (torch.int8, torch.float64)])
def test_no_cast_to_a_dtype_that_is_excepted(exceptions):
    down = nn.Linear(3, 3).double()
    hidden = torch.randn(2, 3)
    found = Between(down, None, {}, exceptions)(hidden)
    assert found.dtype == (torch.float32 if torch.float64 in exceptions else torch.float64)
    assert Between(down, None, {}, None)(hidden) is hidden
    del down.weight
    down.weight = "no tensor"
    assert Between(down, None, {}, exceptions)(hidden) is hidden


@pytest.mark.parametrize(
    ("dropout", "how", "expected"),
    [
        (None, {}, 0.0),
        (F.dropout, {}, 0.5),
        (F.dropout, {"p": 0.3}, 0.3),
        (F.dropout, {"p": 1, "training": True}, 1),
        (F.dropout, {"p": 0.3, "training": False}, 0.0),
        (F.dropout, {"p": "0.3"}, "its p is a str"),
        (F.dropout, {"p": True}, "its p is a bool"),
        (F.dropout, {"p": 1.01, "training": False}, "its p is 1.01"),
        (F.dropout, {"training": 1}, "its training is a int"),
        (F.alpha_dropout, {}, "it is a function"),
        (nn.Dropout(0.3), {}, 0.3),
        (nn.Dropout(0.3).eval(), {}, 0.0),
        (nn.Dropout(0.3), {"p": 0.3}, "it is a Dropout"),
        (nn.Identity(), {}, 0.0),
        (Own(0.3), {}, "its dropout is a Own"),
    ],
)
def test_what_is_read(dropout, how, expected):
    assert read_dropout(dropout, how) == expected
