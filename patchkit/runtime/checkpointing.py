"""Gradient checkpointing without reentrance: recomputation runs what the forward ran, whatever changed in between.

torch runs a checkpointed region a second time during backward and takes what it saves, tensor for tensor, in place of
what the forward saved. A fused block saves other tensors than the modules it stands for. So where the level of a block
is another one by then (a hook was added to a projection, or removed), or its class is (``apply`` or ``revert`` came in
between), the second run would not fit the first, although upstream's would.

* Within a region, each block leaves its choice with the region's frame, and the recomputation makes the same one. If a
  hook stands on a projection by then, the modules are called as well: the hooks see what they see upstream, the values
  that are passed on are the modules', and what the fused function saves is what backward is given.
* Before classes are changed, the frames whose backward is still to come are made to recompute with the present ones.

The frames are torch's private affair (``torch.utils.checkpoint``, the same from 2.8 to 2.13). Where they are not found
nothing of this happens.
"""

from __future__ import annotations

import gc
import sys
import sysconfig
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from types import FunctionType
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _python_dispatch

_Choice = TypeVar("_Choice")
_Result = TypeVar("_Result")
Exchange: TypeAlias = Callable[[nn.Module, type], AbstractContextManager[Any]]

_CHECKPOINT = "torch.utils.checkpoint"
_CALLS = "_patchkit_calls"
_FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))

_top_hooks: Callable[[bool], tuple[Any, Any] | None] = getattr(
    torch._C._autograd, "_top_saved_tensors_default_hooks", lambda ignore: None
)


class _Calls:
    """The choices that were made within one region, for each module in the order of its calls."""

    def __init__(self) -> None:
        self._choices: defaultdict[int, list[tuple[nn.Module, Any]]] = defaultdict(list)
        self._positions: defaultdict[tuple[object, int], int] = defaultdict(int)

    def add(self, owner: nn.Module, choice: object) -> None:
        self._choices[id(owner)].append((owner, choice))  # with the owner, whose identity must not be given away

    def following(self, owner: nn.Module, run: object) -> Any:
        """The choice of the next call of a module in a recomputation; None if there is none."""
        key = run, id(owner)
        choices, position = self._choices.get(id(owner), ()), self._positions[key]
        self._positions[key] += 1
        return choices[position][1] if position < len(choices) else None


class _Region(NamedTuple):
    """The checkpointed region that what is saved now belongs to.

    Attributes:
        frame: torch's.
        run: None in the forward; of a recomputation, the backward that it is for.
    """

    frame: Any
    run: object


def is_saved_by_hooks() -> bool:
    """Whether a saved-tensor hook takes what is saved now: never so in training without checkpoints or offloading."""
    return not torch.compiler.is_compiling() and _top_hooks(False) is not None


def as_in_forward(
    owner: nn.Module,
    choice: _Choice,
    run: Callable[[Any], _Result],
    merge: Callable[[Any, _Choice], Any],
) -> _Result:
    """Run a block at the level that it had when the region around it was run first.

    Args:
        owner: the module whose calls are counted: a block, or a projection that is computed alone.
        choice: what would be chosen now.
        run: computes the block for a choice.
        merge: what to run in a recomputation, from the choice of the forward (None if no patched block ran there) and
            that of now.
    """
    hooks = _top_hooks(False)
    region = None if hooks is None else _region_of(hooks[0])
    if region is None:
        return run(choice)
    if region.run is None:
        vars(region.frame).setdefault(_CALLS, _Calls()).add(owner, choice)
        return run(choice)
    calls: _Calls | None = vars(region.frame).get(_CALLS)
    return run(merge(None if calls is None else calls.following(owner, region.run), choice))


def _region_of(pack: object) -> _Region | None:
    """The region whose hook this is; None for any other hook."""
    while not isinstance(pack, FunctionType) or "__wrapped__" in vars(pack):  # by torch._dynamo.disable
        pack = getattr(pack, "__wrapped__", None)
        if pack is None:
            return None
    if pack.__module__ != _CHECKPOINT:
        return None
    cells = dict(zip(pack.__code__.co_freevars, pack.__closure__ or (), strict=True))
    if "frame" in cells:
        return _Region(cells["frame"].cell_contents, None)
    if cells.keys() >= {"target_frame_ref", "gid"}:
        frame = cells["target_frame_ref"].cell_contents()
        return None if frame is None else _Region(frame, cells["gid"].cell_contents)
    return None


def watched(call: Callable[[], _Result], save: Callable[[], object], device: torch.device) -> _Result:
    """Call modules for their values and hooks, and compute the fused function for what it saves.

    Args:
        call: calls the modules; what is saved there stays out of the region.
        save: computes the fused function. It draws what the modules drew.
        device: where dropout is drawn.
    """
    modules = [torch.random] if device.type in ("cpu", "meta") else [torch.random, torch.get_device_module(device)]
    states = [module.get_rng_state() for module in modules]
    with torch.autograd.graph.saved_tensors_hooks(_detached, _unchanged), _unseen_by_the_region():
        result = call()
    for module, state in zip(modules, states, strict=True):
        module.set_rng_state(state)
    save()
    return result


def _detached(tensor: Tensor) -> Tensor:
    return tensor.detach()


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


def _unseen_by_the_region() -> AbstractContextManager[Any]:
    """Selective checkpointing hands out, operation by operation, what the forward kept."""
    modes = _python_dispatch._get_current_dispatch_mode_stack()
    if any(type(mode).__module__ == _CHECKPOINT for mode in modes):
        return _python_dispatch._disable_current_modes()
    return nullcontext()


def keep_classes(
    modules: Sequence[nn.Module], exchange: Callable[[nn.Module, type], AbstractContextManager[Any]]
) -> None:
    """Make every region whose backward is still to come recompute with the classes that these modules have now.

    Args:
        modules: whose classes are about to change.
        exchange: gives a module a class for the time of a ``with`` block, if that can be done by then.
    """
    frames = pending_frames() if modules else []
    classes = [(module, type(module)) for module in modules] if frames else []
    for frame in frames:
        frame.recompute_fn = _with_classes(frame.recompute_fn, classes, exchange)


def _with_classes(
    recompute: Callable[..., Any],
    classes: Sequence[tuple[nn.Module, type]],
    exchange: Exchange,
) -> Callable[..., Any]:
    def recompute_with_classes(*args: Any) -> Any:
        with ExitStack() as stack:  # torch leaves by an exception as soon as it has what it needs
            for module, cls in classes:
                stack.enter_context(exchange(module, cls))
            return recompute(*args)

    return recompute_with_classes


class _NoFrame:
    """A class like torch's, of which there is no instance."""

    def __init__(self) -> None:
        raise NotImplementedError


def pending_frames() -> list[Any]:
    """The frames of all regions that a graph holds, in any thread.

    Every instance holds a reference to its class. So the number of references says that there is none, which is so
    almost always, and the search through the garbage collector's objects (0.1 s) is left out.
    """
    kind, like = getattr(sys.modules.get(_CHECKPOINT), "_CheckpointFrame", None), _NoFrame
    if kind is None or (not _FREE_THREADED and sys.getrefcount(kind) <= sys.getrefcount(like)):
        return []
    return [frame for frame in gc.get_referrers(kind) if type(frame) is kind]
