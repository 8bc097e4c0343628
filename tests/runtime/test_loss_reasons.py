"""Each reason to leave a loss to upstream alone: labels, scaling, divisor and head, without a model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from patchkit.runtime import loss
from patchkit.runtime.loss import NO_GRADIENT, Scaling, choose_head, gives_tuple, with_logits_if_asked
from patchkit_kernels.lora.cross_entropy import Form

F32 = torch.float32


class Subclass(torch.Tensor):
    """A tensor with rules of its own."""


DIVISORS = {
    "none": (None, None),
    "an integer": (3, None),
    "a number": (0.5, None),
    "a truth value": (True, "its num_items_in_batch is no number"),
    "a text": ("3", "its num_items_in_batch is no number"),
    "of int64": (torch.tensor(3), None),
    "of int32": (torch.tensor(3, dtype=torch.int32), None),
    "of float32": (torch.tensor(3.0), None),
    "of float64": (torch.tensor(3.0, dtype=torch.float64), "its num_items_in_batch is no number"),
    "of bfloat16": (torch.tensor(3.0, dtype=torch.bfloat16), "its num_items_in_batch is no number"),
    "a vector": (torch.tensor([3]), "its num_items_in_batch is no number"),
    "a subclass": (torch.tensor(3).as_subclass(Subclass), "its num_items_in_batch is no number"),
    "trained": (torch.tensor(3.0, requires_grad=True), "its num_items_in_batch needs a gradient"),
}


@pytest.mark.parametrize("name", DIVISORS)
def test_divisors(name):
    divisor, reason = DIVISORS[name]
    assert loss._unfit_divisor(divisor) == reason


FORMS = {
    "nothing": (Scaling(), -100, Form(-100, 1.0, 0.0)),
    "another label that does not count": (Scaling(), 0, Form(0, 1.0, 0.0)),
    "multiplied": (Scaling(multiplied=2), -100, Form(-100, 2.0, 0.0)),
    "divided": (Scaling(divided=4.0), -100, Form(-100, 0.25, 0.0)),
    "both": (Scaling(multiplied=-3.0, divided=2), -100, Form(-100, -1.5, 0.0)),
    "capped": (Scaling(softcap=30), -100, Form(-100, 1.0, 30.0)),
    "multiplied by zero": (Scaling(multiplied=0.0), -100, "its logits are multiplied by 0.0"),
    "divided by zero": (Scaling(divided=0), -100, "its logits are divided by 0"),
    "divided by infinity": (Scaling(divided=float("inf")), -100, "its logits are divided by inf"),
    "multiplied by no number": (Scaling(multiplied=float("nan")), -100, "its logits are multiplied by nan"),
    "multiplied by a tensor": (
        Scaling(multiplied=torch.tensor(2.0)),
        -100,
        "its logits are multiplied by tensor(2.)",
    ),
    "multiplied by a truth value": (Scaling(multiplied=True), -100, "its logits are multiplied by True"),
    "capped at zero": (Scaling(softcap=0.0), -100, "its soft cap is 0.0"),
    "capped below zero": (Scaling(softcap=-1.0), -100, "its soft cap is -1.0"),
    "capped by a text": (Scaling(softcap="30"), -100, "its soft cap is '30'"),
    "a label that is no integer": (Scaling(), -100.0, "its ignore_index is -100.0"),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms(name):
    scaling, ignored, expected = FORMS[name]
    assert loss._form(scaling, ignored) == expected


X = torch.ones(2, 3, 4)
LABELS = torch.tensor([[1, 2, 3], [4, -100, 0]])

LABELS_7 = LABELS.where(LABELS != -100, -7)
NO_LABELS, OUTSIDE = "its labels are no tensor of int64", "a label is out of range"
TARGETS = {
    "shifted here": ({"labels": LABELS_7}, [2, 3, -7, -7, 0, -7]),
    "shifted by the caller": ({"labels": None, "shift_labels": LABELS_7}, [1, 2, 3, 4, -7, 0]),
    "shifted by the caller, and as they were": (
        {"labels": LABELS_7 * 0, "shift_labels": LABELS_7},
        [1, 2, 3, 4, -7, 0],
    ),
    "the largest": ({"labels": LABELS_7 * 0 + 4}, [4, 4, -7, 4, 4, -7]),
    "too large": ({"labels": LABELS_7 * 0 + 5}, OUTSIDE),
    "negative": ({"labels": LABELS_7 * 0 - 1}, OUTSIDE),
    "another that does not count": ({"labels": LABELS}, OUTSIDE),
    "another vocabulary": ({"labels": LABELS_7, "vocab_size": 6}, "its head has 5 outputs for a vocabulary of 6"),
    "no vocabulary": ({"labels": LABELS_7, "vocab_size": None}, "its head has 5 outputs for a vocabulary of None"),
    "none": ({}, NO_LABELS),
    "a list": ({"labels": [[1, 2, 3]] * 2}, NO_LABELS),
    "of int32": ({"labels": LABELS_7.int()}, NO_LABELS),
    "a subclass": ({"labels": LABELS_7.as_subclass(Subclass)}, NO_LABELS),
    "a scalar": ({"labels": torch.tensor(1)}, "its labels are a scalar"),
    "too few": ({"labels": LABELS_7[:1]}, "there are 3 labels for 6 tokens"),
    "too many": ({"labels": LABELS_7.repeat(2, 1)}, "there are 12 labels for 6 tokens"),
}


@pytest.fixture
def shifts(monkeypatch):
    """As in releases whose loss function takes labels that are shifted already."""
    if loss._SHIFTED not in loss._parameters("ForCausalLMLoss"):
        pytest.skip("this release's loss function takes no shifted labels")


@pytest.mark.parametrize("name", TARGETS)
def test_targets(name, shifts):
    given, expected = TARGETS[name]
    found = loss._target(X, 5, -7, {"vocab_size": 5} | given)
    assert (found if isinstance(expected, str) else found.tolist()) == expected


@pytest.mark.parametrize("shape", [(2, 3, 0), (0, 3, 4), (2, 0, 4)], ids=str)
def test_no_tokens(shape):
    found = loss._target(torch.ones(shape), 5, -100, {"vocab_size": 5, "labels": torch.ones(0, 3, dtype=torch.int64)})
    assert found == "there are 0 labels for 0 tokens"


def test_labels_of_the_meta_device_are_not_looked_at():
    labels = torch.empty(2, 3, dtype=torch.int64, device="meta")
    found = loss._target(X.to("meta"), 5, -100, {"vocab_size": 5, "labels": labels})
    assert (found.shape, found.device.type) == ((6,), "meta")


HEADS = {
    "trained": (lambda: nn.Linear(4, 5), X, None),
    "without a bias": (lambda: nn.Linear(4, 5, bias=False), X, None),
    "frozen, of an input that is computed": (lambda: nn.Linear(4, 5).requires_grad_(False), X.clone().requires_grad_(), None),
    "frozen but for its bias": (lambda: bias_alone(), X, None),
    "frozen": (lambda: nn.Linear(4, 5).requires_grad_(False), X, NO_GRADIENT),
    "none": (lambda: None, X, "there is no head"),
    "of other features": (lambda: nn.Linear(3, 5), X, "its weight has shape (5, 3) for 4 features (sharded, or not a matrix)"),
    "of no known class": (lambda: nn.Bilinear(4, 4, 5), X, "Bilinear"),
    "of a scalar": (lambda: nn.Linear(4, 5), torch.tensor(1.0), "the input is a scalar"),
}  # fmt: skip


def bias_alone():
    head = nn.Linear(4, 5).requires_grad_(False)
    head.bias.requires_grad_()
    return head


@pytest.mark.parametrize("name", HEADS)
def test_heads(name):
    make, x, reason = HEADS[name]
    head = make()
    found = choose_head(head, x, "peft")
    if reason is None:
        assert found.projection.weight is head.weight
        with torch.no_grad():
            assert choose_head(head, x, "peft") == NO_GRADIENT
    else:
        assert isinstance(found, str)
        assert reason in found


@pytest.mark.parametrize(
    ("config", "asked", "expected"),
    [(True, None, False), (False, None, True), (True, False, True), (False, True, False), (None, None, False)],
)
def test_whether_a_tuple_is_given(config, asked, expected):
    model = SimpleNamespace() if config is None else SimpleNamespace(config=SimpleNamespace(return_dict=config))
    assert gives_tuple(model, asked) is expected


CALLS = [
    # what forward is called with, and which one runs with what
    ({}, ("rewritten", {})),
    ({"output_logits": False}, ("rewritten", {})),
    ({"output_logits": True}, ("upstream", {})),
    ({"return_dict": False, "other": 1}, ("upstream", {"return_dict": False, "other": 1})),
    ({"return_dict": True}, ("rewritten", {"return_dict": True})),
]


@pytest.mark.parametrize(("given", "expected"), CALLS, ids=str)
def test_who_asks_for_logits_gets_upstreams_forward(given, expected):
    def upstream(self, *args, **kwargs):
        return "upstream", kwargs

    def rewritten(self, *args, **kwargs):
        return "rewritten", kwargs

    model = SimpleNamespace(config=SimpleNamespace(return_dict=True))
    assert with_logits_if_asked(rewritten, upstream)(model, **given) == expected


def test_a_class_with_an_argument_of_that_name_keeps_it():
    def upstream(self, output_logits=False, **kwargs):
        return "upstream"

    def rewritten(self, output_logits=False, **kwargs):
        return "rewritten", output_logits

    assert with_logits_if_asked(rewritten, upstream)(SimpleNamespace(), output_logits=True) == ("rewritten", True)
