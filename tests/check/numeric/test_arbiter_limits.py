"""The limits of the arbiter, each on both sides, with runs that are given."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from patchkit.check.numeric import arbiter
from patchkit.check.numeric.arbiter import arbitrate, use_eager_experts
from patchkit.testing.parity import Run

T = torch.tensor([3.0, 4.0], dtype=torch.float64)
"""Its norm is 5."""


def of(error=0.0, *, zero=0.0, scale=1.0, names=("w",)):
    """A run whose outputs and gradients have this relative error; one gradient has this norm."""
    gradients = dict.fromkeys(names, T * (1 + error))
    return Run({"logits": T * (1 + error)}, gradients | {"z": torch.tensor([zero * scale])})


@pytest.fixture
def judge(monkeypatch):
    """Decides between runs that are given; what it runs, and on what, is kept."""
    asked = []

    def decide(*runs, expected, found, model=None):
        waiting = iter(runs)

        def run(one, inputs):
            asked.append((one, inputs))
            given = next(waiting)
            if isinstance(given, Exception):
                raise given
            return given

        monkeypatch.setattr(arbiter, "_run", run)
        patched = []
        options = SimpleNamespace(apply=lambda one, **kwargs: patched.append((one, kwargs)))
        monkeypatch.setattr(arbiter, "patchkit", options)
        reference = model or nn.Linear(2, 2)
        inputs = {"x": torch.ones(2), "ids": torch.arange(2)}
        verdict = arbitrate(reference, inputs, expected, found)
        return verdict, asked, patched, reference

    return decide


def test_what_is_run(judge):
    """A float64 copy of the reference, and a patched copy of that, on float64 inputs; ids stay what they are."""
    verdict, asked, patched, reference = judge(of(), of(), expected=of(1e-6), found=of(1e-6))
    assert verdict == ("equal", 0.0, "")
    assert [one.weight.dtype for one, _ in asked] == [torch.float64] * 2
    assert reference.weight.dtype == torch.float32
    assert [inputs["x"].dtype for _, inputs in asked] == [torch.float64] * 2
    assert [inputs["ids"].dtype for _, inputs in asked] == [torch.int64] * 2
    ((one, options),) = patched
    assert one is asked[1][0] is not asked[0][0]
    assert options == {"trust": "always"}


@pytest.mark.parametrize(("error", "outcome"), [(1e-10, "equal"), (0.99e-9, "equal"), (1.1e-9, "different")])
def test_in_float64_formulas_agree(error, outcome, judge):
    verdict, *_ = judge(of(), of(error), of(), expected=of(1e-6), found=of(1e-6))
    assert verdict.outcome == outcome
    assert verdict.error == pytest.approx(error, rel=0.06)
    assert verdict.error == float(f"{verdict.error:.2g}")
    assert verdict.why.startswith("in float64: ") == (outcome == "different")


@pytest.mark.parametrize(("again", "outcome"), [(0.0, "different"), (1e-10, "different"), (1e-8, "undecided")])
def test_a_model_that_differs_from_itself_decides_nothing(again, outcome, judge):
    verdict, asked, *_ = judge(of(), of(1e-6), of(again), expected=of(1e-6), found=of(1e-6))
    assert verdict.outcome == outcome
    assert asked[2][0] is asked[0][0]
    assert ("it draws what no seed decides" in verdict.why) == (outcome == "undecided")
    assert verdict.error == pytest.approx(1e-6, rel=0.06)


@pytest.mark.parametrize(("found", "outcome"), [(1e-6, "equal"), (1.99e-6, "equal"), (2.01e-6, "different")])
def test_in_float32_the_error_is_not_much_larger_than_upstreams(found, outcome, judge):
    others = [of(0.9e-6)] * arbiter._ROUNDINGS
    verdict, asked, *_ = judge(of(), of(1e-12), *others, expected=of(1e-6), found=of(found))
    assert verdict.outcome == outcome
    assert verdict.why == ("in float32 its error is 2e-06, upstream's 1e-06" if outcome == "different" else "")
    assert verdict.error == pytest.approx(1e-12, rel=0.06)
    assert len(asked) == 2 + (len(others) if outcome == "different" else 0)


@pytest.mark.parametrize(("largest", "outcome"), [(2.49e-6, "different"), (2.51e-6, "equal")])
def test_upstreams_error_is_the_largest_of_several_roundings(largest, outcome, judge):
    """The first that is large enough ends it. Each is of the float32 model, with other parameters, on its inputs."""
    others = [of(0.1e-6), of(largest), *[of(0.1e-6)] * (arbiter._ROUNDINGS - 2)]
    verdict, asked, _, reference = judge(of(), of(), *others, expected=of(1e-6), found=of(5e-6))
    assert verdict.outcome == outcome
    assert verdict.why == ("in float32 its error is 5e-06, upstream's 2.5e-06" if outcome == "different" else "")
    again = asked[2:]
    assert len(again) == (2 if outcome == "equal" else arbiter._ROUNDINGS)
    assert all(inputs["x"].dtype == torch.float32 for _, inputs in again)
    assert all(one.weight.dtype == torch.float32 and not torch.equal(one.weight, reference.weight) for one, _ in again)
    assert not torch.equal(again[0][0].weight, again[1][0].weight)


def test_rounded_otherwise_is_the_next_number_or_the_same():
    model = nn.Sequential(nn.Linear(40, 40), nn.Embedding(3, 2))
    model.register_parameter("ids", nn.Parameter(torch.arange(3), requires_grad=False))
    other = arbiter._rounded_otherwise(model, 3)
    weight, found = model[0].weight, other[0].weight
    above = torch.nextafter(weight, torch.full_like(weight, float("inf")))
    assert ((found == weight) | (found == above)).all()
    assert 0.4 < (found == above).float().mean() < 0.6
    assert torch.equal(other.ids, model.ids)


def test_upstream_that_fails_in_float64_decides_nothing(judge):
    verdict, *_ = judge(ValueError("no\n double"), expected=of(), found=of())
    assert verdict == (
        "undecided", 0.0, "float32 misses its tolerance, and float64 fails upstream: ValueError: no double",
    )  # fmt: skip


WHOLE = 5.0
"""Of all gradients together, but for one that is small."""


@pytest.mark.parametrize(("truth", "ours", "outcome"), [
    (0.0, 0.0, "equal"), (0.0, 4.9e-12, "equal"), (0.0, 5.1e-12, "different"), (4.9e-12, 4.9e-12, "equal"),
    (4.9e-12, 0.0, "equal"), (5.1e-12, 5.1e-12, "equal"), (5.1e-12, 0.0, "different"),
])  # fmt: skip
def test_which_gradient_is_zero_in_float64(truth, ours, outcome, judge):
    """One part in a million millions of all of them together; a larger one is compared as any other."""
    verdict, *_ = judge(of(zero=truth), of(zero=ours), of(zero=truth), expected=of(zero=truth), found=of(zero=truth))
    assert verdict.outcome == outcome


@pytest.mark.parametrize(("found", "outcome"), [(0.0, "equal"), (4.9e-5, "equal"), (5.1e-5, "different")])
def test_such_a_gradient_in_float32(found, outcome, judge):
    verdict, *_ = judge(of(), of(), expected=of(1e-6), found=of(1e-6, zero=found))
    assert verdict.outcome == outcome
    assert verdict.why == ("gradient of z is 1e-05 of all, upstream's is zero" if outcome == "different" else "")


def test_it_has_no_relative_error(judge):
    """Where it is zero it is left out of every comparison: of upstream's own run and of a second one, too."""
    verdict, *_ = judge(of(), of(), expected=of(1e-6, zero=3e-5), found=of(1e-6, zero=1e-5))
    assert verdict == ("equal", 0.0, "")
    verdict, *_ = judge(of(), of(1e-6), of(zero=4e-12), expected=of(1e-6), found=of(1e-6))
    assert verdict.outcome == "different"


def test_a_gradient_that_is_missing_is_no_zero():
    """Of zeros only what was found is looked at; the comparison tells what is missing."""
    assert arbiter._not_zero(Run({}, {"w": T}), frozenset({"z"}), 1e-5) == ""
    assert arbiter._not_zero(Run({}, {"w": T, "z": torch.tensor([float("nan")])}), frozenset({"z"}), 1e-5) != ""


def test_norms():
    assert arbiter._norm({}) == 0.0
    assert arbiter._norm({"a": T.float(), "b": torch.tensor([12.0])}) == pytest.approx(13.0)


def test_experts_are_run_one_by_one():
    """Wherever their configuration stands; others are left as they are."""
    model = nn.Sequential(nn.Identity(), nn.Identity(), nn.Identity())
    model[0].config = SimpleNamespace(_experts_implementation="grouped_mm")
    model[1].config = SimpleNamespace(hidden_size=3)
    model[2].config = SimpleNamespace(_experts_implementation=None)
    use_eager_experts(model)
    assert [vars(model[i].config) for i in range(3)] == [
        {"_experts_implementation": "eager"}, {"hidden_size": 3}, {"_experts_implementation": "eager"},
    ]  # fmt: skip
