"""The modelled time, on work made by hand."""

from __future__ import annotations

import pytest

from patchkit.errors import EstimateError
from patchkit.estimation.traffic import Work
from patchkit.testing.contenders.roofline import RATES, Rates, modelled_seconds, rates_of

MINE = Rates(bf16=100.0, float32=10.0, pointwise=2.0, skinny=1.0)


@pytest.mark.parametrize(
    ("work", "seconds"),
    [
        (Work("pointwise", 0, 4 * 10**12), 2.0),
        (Work("half product", 300 * 10**12, 10**12), 3.0),
        (Work("float32 product", 300 * 10**12, 10**12), 30.0),
        (Work("half product", 10**12, 5 * 10**12), 5.0),  # a side is a rank: its bytes take longer
    ],
)
def test_one_operation(work, seconds):
    assert modelled_seconds({work: 1}, MINE) == pytest.approx(seconds)
    assert modelled_seconds({work: 3}, MINE) == pytest.approx(3 * seconds)


def test_operations_follow_each_other():
    work = {Work("pointwise", 0, 2 * 10**12): 2, Work("float32 product", 10**13, 1): 1}
    assert modelled_seconds(work, MINE) == pytest.approx(3.0)
    assert modelled_seconds({}, MINE) == 0


def test_rates_by_the_name_of_the_device_or_as_given():
    assert rates_of("NVIDIA H200") == RATES["h200"] == rates_of("cpu", "H200")
    assert rates_of("cpu") is None
    assert rates_of("NVIDIA H200", "bf16=100, float32=10, pointwise=2, skinny=1") == MINE


@pytest.mark.parametrize(
    "given", ["h300", "bf16=1", "bf16=1,float32=1,pointwise=1,skinny=0", "bf16=1,float32=1,pointwise=1,skinny=fast"]
)
def test_rates_that_are_none(given):
    with pytest.raises(EstimateError, match="are neither h200 nor a positive number for each of bf16, float32"):
        rates_of("cpu", given)
