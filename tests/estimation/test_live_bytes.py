"""Bytes that live at each moment, where they are known."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from patchkit.estimation.layers import chosen, roles_of, stack_of
from patchkit.estimation.live import Held, LiveBytes, Roles, Segment

FLOAT, ROWS, WIDTH = 4, 6, 8
SIZE = ROWS * WIDTH * FLOAT


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x):
        return x + self.mlp(x).sin()


class Model(nn.Module):
    def __init__(self, count=3):
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(count))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x.pow(2).sum()


def test_a_storage_lives_until_nobody_holds_it():
    x = torch.randn(ROWS, WIDTH)
    live = LiveBytes([x], Roles({}, {}))
    with live:
        y = x + 1
        z = y.view(-1)
        assert live.live == SIZE
        del y
        assert live.live == SIZE
        w = z * 2 + z
        del z
        assert live.live == SIZE
        assert x.add_(1) is x
        del w
    assert live.live == 0
    assert live.spans[Segment("before")].peak == 3 * SIZE


def test_phases_layers_and_parts():
    model, x = Model(), torch.randn(ROWS, WIDTH)
    live = LiveBytes([*model.parameters(), x], roles_of(model.layers))
    with live:
        loss = model(x)
        kept = live.kept()
        loss.backward()
    phases = [Segment("forward", layer) for layer in range(3)] + [Segment("loss")]
    assert list(live.spans) == [*phases, *(Segment("backward", layer) for layer in reversed(range(3)))]
    assert kept[Held(1, "MLP")] == SIZE  # what the sine keeps
    assert kept[Held(1, "residual stream")] == SIZE  # what the next layer's product keeps
    assert kept[Held(-1, "head and loss")] == FLOAT
    # What lives at the end is the gradients.
    assert live.live == 3 * WIDTH * WIDTH * FLOAT + FLOAT


def test_dropout_counts_as_devices_keep_it():
    x = torch.randn(ROWS, WIDTH, requires_grad=True)
    live = LiveBytes([x], Roles({}, {}))
    with live:
        y = F.dropout(x, 0.5)
        assert live.live == SIZE + ROWS * WIDTH  # the mask as booleans
    del y
    assert live.live == 0


def test_what_is_moved_to_the_host_counts_there():
    x = torch.randn(ROWS, WIDTH)
    live = LiveBytes([x], Roles({}, {}))
    with live:
        with live.on_host():
            y = x.clone()
        assert (live.live, live.host) == (0, SIZE)
        assert not live.kept()
        assert live.host_by_layer() == {-1: SIZE}
        del y
    assert live.host == 0


@pytest.mark.parametrize(
    ("kinds", "positions"),
    [
        ((0,), (0,)),
        ((0, 0), (0, 1)),
        ((0,) * 32, (0, 1, 31)),
        ((0, 0, 1, 0, 0, 1, 0), (0, 1, 2, 6)),
        ((0, 1, 1, 1, 2), (0, 1, 4)),
    ],
)
def test_layers_that_stand_for_all(kinds, positions):
    assert chosen(kinds) == positions


def test_the_longest_list_that_is_trained_is_the_stack():
    model = nn.ModuleDict({"few": nn.ModuleList([nn.Linear(2, 2)]), "many": nn.ModuleList([Layer(), Layer(), Layer()])})
    stack = stack_of(model)
    assert (stack.name, stack.kinds) == ("many", (0, 0, 0))
    model["many"].requires_grad_(False)
    assert stack_of(model).name == "few"
    assert stack_of(model.requires_grad_(False)) is None


def test_layers_that_differ_in_a_value_are_of_two_kinds():
    model = Model(4)
    model.layers[1].window, model.layers[3].layer_idx = 5, 3
    assert stack_of(model).kinds == (0, 1, 0, 0)
