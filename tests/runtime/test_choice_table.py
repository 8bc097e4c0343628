"""The choice of level from what is found of each projection: every reason alone, and what stands beside it."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from patchkit.runtime import choice
from patchkit.runtime.choice import NO_ADAPTER, NO_GRADIENT, Choice, choose_mlp, choose_shared
from patchkit.runtime.levels import Input, Ready
from patchkit_kernels.lora.projection import Adapter, Precision, Projection

F32, BF16 = torch.float32, torch.bfloat16
GIVEN = Input(4, BF16, torch.device("cpu"), None, "peft", 2, {})
USUAL, OF_PLAIN, OTHER = Precision(BF16, F32, BF16, F32), Precision(*[BF16] * 4), Precision(*[F32] * 4)
ODD, DIFFER = "it is odd", "the projections differ in dtype"


def ready(precision=USUAL, *, adapters=1, outputs=6, trained=False):
    weight = torch.ones(outputs, 4).requires_grad_(trained)
    return Ready(Projection(weight, None, (Adapter(torch.ones(2, 4), torch.ones(outputs, 2)),) * adapters), precision)


A, PLAIN = ready(), ready(OF_PLAIN, adapters=0)


class Layer(nn.Module):
    """Stands in for a projection of which this is found."""

    in_features = 77

    def __init__(self, found):
        super().__init__()
        self.found, self.given = found, None


@pytest.fixture(autouse=True)
def _as_said(monkeypatch):
    def examine(module, given):
        module.given = given
        return module.found

    monkeypatch.setattr(choice, "examine", examine)


SHARED = {
    "one": ((A,), "fused", USUAL, None),
    "three": ((A, A, A), "fused", USUAL, None),
    "one with an adapter": ((PLAIN, PLAIN, A), "fused", USUAL, None),
    "the first with an adapter": ((A, PLAIN, PLAIN), "fused", USUAL, None),
    "equal and not the same": ((A, ready(Precision(*USUAL))), "fused", USUAL, None),
    "no adapter": ((PLAIN, PLAIN), "upstream", None, NO_ADAPTER),
    "none that is read": ((ODD, ODD), "upstream", None, NO_ADAPTER),
    "no adapter, and one that is odd": ((ODD, PLAIN), "upstream", None, NO_ADAPTER),
    "one that is odd first": ((ODD, A, A), "alone", None, ODD),
    "one that is odd last": ((A, A, ODD), "alone", None, ODD),
    "different ones": ((A, ready(OTHER), A), "alone", None, DIFFER),
}


@pytest.mark.parametrize("name", SHARED)
def test_projections_of_one_input(name):
    found, level, precision, reason = SHARED[name]
    modules = [Layer(one) for one in found]
    assert choose_shared(modules, GIVEN) == Choice(level, found, precision, reason)
    assert all(module.given is GIVEN for module in modules)


def test_an_input_that_cannot_be_known():
    assert choose_shared([Layer(A), Layer(A)], ODD) == Choice("upstream", (ODD, ODD))
    assert choose_mlp([Layer(A)] * 2, Layer(A), nn.SiLU(), torch.ones(1), ODD) == Choice("upstream", (ODD,) * 3)
    assert choose_mlp([Layer(A)], Layer(A), nn.SiLU(), torch.ones(1), ODD) == Choice("upstream", (ODD,) * 2)


def choose(inputs, down=A, *, activation=None, x=None, **words):
    modules, last = [Layer(one) for one in inputs], Layer(down)
    made = choose_mlp(modules, last, activation or nn.SiLU(), torch.ones(1) if x is None else x, GIVEN, **words)
    assert made.readings == (*inputs, down)
    return made, last.given


FUSED = {
    "all with adapters": ((A, A), A),
    "down alone": ((PLAIN, PLAIN), A),
    "gate alone": ((A, PLAIN), PLAIN),
    "up alone": ((PLAIN, A), PLAIN),
    "equal and not the same": ((A, A), ready(Precision(*USUAL))),
}


@pytest.mark.parametrize("name", FUSED)
def test_a_fused_mlp(name):
    inputs, down = FUSED[name]
    made, _ = choose(inputs, down, dropout=0.25, limit=7.0)
    assert (made.level, made.precision, made.reason) == ("fused", USUAL, None)
    assert (made.activation, made.dropout, made.limit) == ("silu", 0.25, 7.0)


WORDS = {
    "one that is odd": ({"inputs": (A, ODD)}, ODD),
    "down that is odd": ({"down": ODD}, ODD),
    "different ones": ({"inputs": (A, ready(OTHER))}, DIFFER),
    "another down": ({"down": ready(OTHER)}, DIFFER),
    "other widths": ({"inputs": (A, ready(outputs=8))}, "gate and up differ in width"),
    "an activation": ({"activation": nn.Tanh()}, "activation Tanh: it is not fused"),
    "a cast": ({"casts": True}, "the down projection's weight is of another dtype than its input"),
    "dropout": ({"dropout": ODD}, f"dropout before the down projection: {ODD}"),
    "a limit": ({"limit": ODD}, f"clamp of gate and up: {ODD}"),
}


@pytest.mark.parametrize("name", WORDS)
def test_an_mlp_that_is_not_fused_says_why(name):
    words, reason = WORDS[name]
    made, _ = choose(**{"inputs": (A, A)} | words)
    assert (made.level, made.precision, made.reason) == ("alone", None, reason)


@pytest.mark.parametrize(("name", "others"), itertools.product(WORDS, ["none", "down", "up"]))
def test_it_has_layers_to_fuse_alone_where_there_is_an_adapter(name, others):
    words, reason = WORDS[name]
    if not {"inputs", "down"} & words.keys():
        inputs, down = (PLAIN, A if others == "up" else PLAIN), A if others == "down" else PLAIN
        made, _ = choose(inputs, down, **words)
        assert (made.level, made.reason) == ("upstream" if others == "none" else "alone", reason)


def test_down_that_is_cast_to_its_own_dtype_is_fused():
    last = Layer(A)
    last.weight = torch.ones(1, dtype=BF16)
    made = choose_mlp([Layer(A)] * 2, last, nn.SiLU(), torch.ones(1), GIVEN, casts=True)
    assert made.level == "fused"


GRADIENTS = {
    "x": (torch.ones(1, requires_grad=True), PLAIN, PLAIN, True),
    "up's weight": (torch.ones(1), ready(OF_PLAIN, adapters=0, trained=True), PLAIN, True),
    "down's weight": (torch.ones(1), PLAIN, ready(OF_PLAIN, adapters=0, trained=True), True),
    "nothing": (torch.ones(1), PLAIN, PLAIN, False),
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", GRADIENTS)
def test_without_adapter_it_saves_something_for_a_gradient(name, grad):
    x, up, down, wants = GRADIENTS[name]
    with torch.set_grad_enabled(grad):
        made, _ = choose((PLAIN, up), down, x=x)
        expected = ("fused", OF_PLAIN, None) if wants and grad else ("upstream", None, NO_GRADIENT)
        assert (made.level, made.precision, made.reason) == expected
        assert choose((A, up), down, x=x)[0].level == "fused"


def test_a_weight_that_is_no_tensor_is_never_trained():
    stored = PLAIN._replace(projection=PLAIN.projection._replace(weight=SimpleNamespace(shape=(6, 4))))
    made, _ = choose((stored, stored), PLAIN)
    assert made.reason == NO_GRADIENT


HIDDEN = {
    # what is found of gate and up, whether there is a gate: features and dtype of what down is given
    "gate and up": ((A, A), True, 6, BF16),
    "up alone": ((A,), False, 6, BF16),
    "one for both": ((ready(outputs=12),), True, 6, BF16),
    "in the dtype of what they give": ((ready(Precision(F32, F32, F32, F32)),) * 2, True, 6, F32),
    "gate is odd": ((ODD, A), True, 6, BF16),
    "up is odd": ((A, ODD), True, 6, BF16),
    "both are odd": ((ODD, ODD), True, 77, BF16),
    "they differ": ((A, ready(outputs=8)), True, 77, BF16),
    "they differ the other way": ((ready(outputs=8), A), True, 77, BF16),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_what_down_is_given(name):
    inputs, gated, features, dtype = HIDDEN[name]
    _, given = choose(inputs, gated=gated)
    assert given == GIVEN._replace(features=features, dtype=dtype)


@pytest.mark.parametrize(("names", "features"), [({"in_dim": 5}, 5), ({"in_features": 4, "in_dim": 5}, 4), ({}, -1)])
def test_the_width_of_a_layer_by_either_name(names, features):
    assert choice._in_features(SimpleNamespace(**names)) == features
