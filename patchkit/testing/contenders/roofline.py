"""A modelled time: what traced work would take if each operation were as fast as its products or its bytes allow.

It is a prediction, and never shown as a measurement. Each operation alone takes the longer of two times::

    a matrix product    max(FLOPs / rate of its units, bytes / rate of skinny products)
    anything else       bytes / rate of pointwise kernels

Nothing is added for launches, and nothing overlaps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType

from patchkit.errors import EstimateError
from patchkit.estimation.traffic import Work


@dataclass(frozen=True)
class Rates:
    """Of a device.

    Attributes:
        bf16: TFLOP/s of products of factors with 16 bits.
        float32: TFLOP/s of other products; TF32 is off, as is torch's default.
        pointwise: TB/s of kernels that work element by element.
        skinny: TB/s of products of which one side is a rank.
    """

    bf16: float
    float32: float
    pointwise: float
    skinny: float


RATES: Mapping[str, Rates] = MappingProxyType({"h200": Rates(bf16=770.0, float32=45.0, pointwise=4.1, skinny=3.4)})
"""By a word in the name of the device, in lower case. What such a device reaches, not what it is sold as."""


def rates_of(device: str, given: str = "") -> Rates | None:
    """The rates of a device; None where they are not known.

    Args:
        device: its name.
        given: a key of :data:`RATES`, or each rate as in ``bf16=770,float32=45,pointwise=4.1,skinny=3.4``.

    Raises:
        EstimateError: what is given is neither.
    """
    if not given:
        return next((rates for word, rates in RATES.items() if word in device.lower()), None)
    if given.lower() in RATES:
        return RATES[given.lower()]
    names = [field.name for field in fields(Rates)]
    try:
        pairs = {name.strip(): float(value) for name, _, value in (one.partition("=") for one in given.split(","))}
        if sorted(pairs) != sorted(names) or min(pairs.values()) <= 0:
            raise ValueError
    except ValueError:
        raise EstimateError(
            f"rates {given!r} are neither {' nor '.join(RATES)} nor a positive number for each of "
            f"{', '.join(names)}: bf16=770,float32=45,pointwise=4.1,skinny=3.4"
        ) from None
    return Rates(**pairs)


def modelled_seconds(work: Mapping[Work, int], rates: Rates) -> float:
    """The time that this work takes by the formulas above.

    Args:
        work: how often each work is done.
        rates: of a device.
    """
    return sum(_seconds(one, rates) * times for one, times in work.items())


def _seconds(work: Work, rates: Rates) -> float:
    if work.kind == "pointwise":
        return work.bytes / (rates.pointwise * 1e12)
    peak = rates.bf16 if work.kind == "half product" else rates.float32
    return max(work.flops / (peak * 1e12), work.bytes / (rates.skinny * 1e12))
