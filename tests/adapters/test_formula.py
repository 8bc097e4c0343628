"""One formula compares the functions of others that are in use, and never says more of them than is so."""

from __future__ import annotations

import pytest
from torch import nn

from patchkit.adapters.formula import Formula


class Shared(nn.Module):
    def forward(self, x):
        return x


class Part(nn.Module):
    def forward(self, x):
        return 2 * x


def other(self, x):
    return 3 * x


@pytest.fixture
def formulas():
    first = Formula({Shared: "forward"})
    later = Formula({Part: "forward"}, {Shared: "magnitude"}, after=first)
    assert first.replaced() is None
    assert later.replaced() is None
    assert first.intact()
    assert later.held
    return first, later


@pytest.mark.parametrize(("owner", "name"), [(Part, "forward"), (Part, "__call__"), (Shared, "magnitude")])
def test_what_only_the_later_one_stands_for(owner, name, formulas, monkeypatch):
    first, later = formulas
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, other, raising=False)
        assert not first.intact()
        assert first.replaced() is None
        assert first.intact()
        assert not later.held
        assert later.replaced() == f"{__name__}.{owner.__name__}.{name} was replaced by {__name__}.other"
        assert first.intact()
        assert not later.held
    assert first.replaced() is None
    assert later.replaced() is None
    assert first.intact()
    assert later.held


def test_what_both_stand_for(formulas, monkeypatch):
    first, later = formulas
    with monkeypatch.context() as patch:
        patch.setattr(nn.Module, "_call_impl", other)
        assert not first.intact()
        assert first.replaced() == f"torch.nn.modules.module.Module._call_impl was replaced by {__name__}.other"
        assert not later.held
    assert first.replaced() is None
    assert later.replaced() is None
    assert first.intact()
    assert later.held


def test_an_unrelated_attribute_makes_all_look_again(formulas, monkeypatch):
    first, later = formulas
    monkeypatch.setattr(Shared, "unrelated", 1, raising=False)
    assert not first.intact()
    assert first.replaced() is None
    assert not later.held
    assert later.replaced() is None
    assert later.held
