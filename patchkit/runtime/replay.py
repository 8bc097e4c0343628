"""What runs in a recomputation: the level of the forward that is run again, whatever has changed since.

Gradient checkpointing runs a region a second time and expects the same tensors to be saved, in the same order; see
:mod:`patchkit.runtime.checkpointing`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from patchkit.adapters.protocol import Reason
from patchkit.runtime.checkpointing import watched
from patchkit.runtime.choice import Choice
from patchkit.runtime.levels import GLOBAL_HOOK, Ready, adapted


class Watched(NamedTuple):
    """In a recomputation: what was computed fused in the forward, and now has to be called too, for a hook."""

    then: Any


THEN_CALLED: Reason = "it was called when this was run first"
_FOR_HOOKS = ("a forward hook is registered on it", "a backward hook is registered on it", GLOBAL_HOOK)


def is_for_hooks(reason: object) -> bool:
    """Whether nothing but a hook speaks against computing this. Hooks change nothing in what upstream saves."""
    return isinstance(reason, str) and reason.endswith(_FOR_HOOKS)


def merge_readings(then: Ready | Reason | None, now: Ready | Reason) -> Ready | Reason | Watched:
    """What to make of a projection in a recomputation."""
    if not (isinstance(then, Ready) and adapted(then)):
        return THEN_CALLED
    return Watched(then) if is_for_hooks(now) else now


def merge_choices(then: Choice | None, now: Choice) -> Choice | Watched:
    """What to make of a block in a recomputation."""
    if then is None:
        return Choice("upstream", (THEN_CALLED,) * len(now.readings))
    if then.precision is None:
        pairs = zip(then.readings, now.readings, strict=True)
        return Choice(then.level, tuple([merge_readings(*pair) for pair in pairs]))  # type: ignore[misc]
    # Where a projection cannot be read, what is said of the block follows from that.
    reasons: list[object] = [reading for reading in now.readings if isinstance(reading, str)] or [now.reason]
    return Watched(then) if now.precision is None and all(map(is_for_hooks, reasons)) else now


def replay(
    run: Callable[[Tensor, Sequence[nn.Module], Choice], Any],
    x: Tensor,
    modules: Sequence[nn.Module],
    now: Choice,
    merged: Choice | Watched,
) -> Any:
    """Run a block as :func:`merge_choices` decided."""
    if isinstance(merged, Watched):
        return watched(lambda: run(x, modules, now), lambda: run(x, modules, merged.then), x.device)
    return run(x, modules, merged)
