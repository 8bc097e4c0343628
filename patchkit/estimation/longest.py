"""The longest context of which a step fits in memory."""

from __future__ import annotations

from collections.abc import Callable

LARGEST = 2**24
"""Tokens beyond which nobody looks."""

_GRAIN = 64


def longest_context(peak_of: Callable[[int], int], room: int, start: int) -> int:
    """The largest number of tokens whose peak fits, a multiple of 64 where it is above that; 0 if none fits.

    A peak grows with tokens, nearly along a line or a parabola. So the next number is taken from the line through the
    two that enclose the answer, and from their middle where that leads nowhere: a few steps.

    Args:
        peak_of: bytes of a step of so many tokens.
        room: bytes that there are.
        start: where to begin.
    """
    low, high = 0, 0  # low fits, high does not
    at: dict[int, int] = {}

    def fits(tokens: int) -> bool:
        at[tokens] = peak_of(tokens)
        return at[tokens] <= room

    tokens = max(_GRAIN, start // _GRAIN * _GRAIN)
    while not high:
        if fits(tokens):
            low = tokens
            if low >= LARGEST:
                return LARGEST
            tokens = min(LARGEST, _further(low, at[low], room))
        else:
            high = tokens
    while high - low > _GRAIN:
        tokens = _between(low, high, at, room)
        low, high = (tokens, high) if fits(tokens) else (low, tokens)
    if low:
        return low
    while high - low > 1:  # shorter than the grain
        tokens = (low + high) // 2
        low, high = (tokens, high) if fits(tokens) else (low, tokens)
    return low


def _further(tokens: int, peak: int, room: int) -> int:
    """A number of tokens that is expected just not to fit."""
    guess = int(tokens * min(8.0, max(1.1, 1.05 * room / max(1, peak))))
    return -(-guess // _GRAIN) * _GRAIN


def _between(low: int, high: int, at: dict[int, int], room: int) -> int:
    """A multiple of the grain strictly between two, where their line meets the room; every other time their middle."""
    steps = (high - low) // _GRAIN
    below = at.get(low, 0)
    share = (room - below) / max(1, at[high] - below) if len(at) % 3 else 0.5
    return low + _GRAIN * min(steps - 1, max(1, round(steps * share)))
