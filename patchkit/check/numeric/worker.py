"""The parity contract on one tiny model, with the transformers that is imported.

This runs in worker processes, which :class:`patchkit.check.numeric.environments.Environment` starts and asks: the
release's code is imported there and nowhere else.
"""

from __future__ import annotations

import functools
import json
import time
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from patchkit.arch.registry import architectures, find, is_built_in
from patchkit.check.numeric.outcomes import NUMERIC_CHECKS, ArchitectureOutcome, BlockOutcome, CheckOutcome
from patchkit.check.numeric.probe import folder_of
from patchkit.errors import DeviceError, PatchkitError

if TYPE_CHECKING:
    from patchkit.arch.spec import Architecture
    from patchkit.check.numeric.proving import Trial
    from patchkit.testing import Inputs


def answer(request: bytes) -> bytes:
    """What a worker is asked, as JSON, and its answer.

    ``{"models_of": [architecture, ...]}`` is answered by the names of their tiny models, ``{"architecture": ...,
    "model": ...}``, and perhaps ``"device"``, by the place of transformers and the outcome of :func:`check_model`.
    """
    place = _place()  # before anything of the release is imported
    asked = json.loads(request)
    if "models_of" in asked:
        return json.dumps({name: _models_of(name) for name in asked["models_of"]}).encode()
    outcome = check_model(asked["architecture"], asked["model"], asked.get("device"))
    return json.dumps({"place": place, "outcome": outcome.to_json()}).encode()


def _models_of(name: str) -> tuple[str, ...]:
    from patchkit.testing.tiny.architectures import tiny_names

    known = architectures().get(name)  # a plugin may not work with this release
    return tiny_names(known) if known is not None else ()


@functools.lru_cache(maxsize=1)
def _place() -> str:
    return folder_of("transformers")


def check_model(architecture: str, name: str, device: str | None = None) -> ArchitectureOutcome:
    """Run the contract on one tiny model.

    Args:
        architecture: whose outcome it is; the blocks of its towers count too.
        name: a tiny model, or nothing if the architecture has none.
        device: where it runs, as torch names it; by default the CPU.
    """
    from patchkit.check.numeric.proving import versions
    from patchkit.check.numeric.tiny_instances import comparable
    from patchkit.testing.tiny.architectures import tiny_of

    start = time.perf_counter()
    try:
        described = find(architecture)
        model, inputs = tiny_of(described, name)
    except Exception as error:  # a release that lacks the model, or builds it in another way
        problem = f"its tiny model cannot be built: {_said(error)}"
        return ArchitectureOutcome(architecture, versions(), problems={name or architecture: problem})
    if not is_built_in(architecture):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model, inputs = comparable(model, inputs)
    if device is not None:
        from patchkit.testing.devices import on_device

        try:
            model, inputs = on_device(model, inputs, device)
        except DeviceError as error:
            return ArchitectureOutcome(architecture, versions(), problems={name or architecture: str(error)})
    outcome = check_tiny(described, name, model, inputs)
    return replace(outcome, seconds=round(time.perf_counter() - start, 2))


def _said(error: Exception) -> str:
    """A patchkit error speaks for itself."""
    return str(error) if isinstance(error, PatchkitError) else f"{type(error).__name__}: {error}"


def check_tiny(architecture: Architecture, name: str, model: Any, inputs: Inputs) -> ArchitectureOutcome:
    """Run the contract on a model that is there.

    Args:
        architecture: whose outcome it is.
        name: what to call the model.
        model: without adapters; it gets some on every projection of its registered blocks.
        inputs: keyword arguments of its ``forward``, with ``labels``.
    """
    import patchkit
    from patchkit.check.numeric.proving import prove, subjects_of, versions

    adapted = with_adapters(model, causal=is_built_in(architecture.name), r=4, lora_alpha=11)
    if adapted is None:
        classes = ", ".join(block.class_name for block in architecture.blocks) or "registered blocks"
        problem = f"it holds none of {classes} with its projections"
        return ArchitectureOutcome(architecture.name, versions(), problems={name: problem})
    subjects, left = subjects_of(adapted)
    apply = functools.partial(patchkit.apply, trust="always")  # what is to be proven cannot be asked for its proof
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trials = prove(adapted, inputs, subjects, NUMERIC_CHECKS, patch=apply, revert=patchkit.revert)
    return ArchitectureOutcome(
        architecture.name,
        versions(),
        tuple(_outcome(trial, name) for trial in trials),
        {cls.__qualname__: reason for cls, reason in left.items()},
        {},
    )


def with_adapters(model: Any, *, causal: bool = False, r: int, lora_alpha: int) -> Any:
    """A model with adapters on every projection of its registered blocks, those of a vision tower included.

    Args:
        model: without adapters.
        causal: whether it gets PEFT's class for causal models, which hands on inputs that not every model takes.
        r: rank.
        lora_alpha: one for a scaling that is no power of two, so that leaving it out or applying it twice rounds
            differently.

    Returns:
        The PEFT model in train mode, or None if there is no such projection.
    """
    from patchkit.arch.discovery import find_blocks
    from patchkit.module_tree import children_of
    from patchkit.testing import add_lora

    targets = [
        f"{found.name}.{name}"
        for found in find_blocks(model)
        for name in found.block.projections()
        if name in children_of(found.module)
    ]
    if not targets:
        return None
    options: dict[str, Any] = {} if causal else {"task_type": None}
    return add_lora(model, target_modules=targets, r=r, lora_alpha=lora_alpha, **options).train()


def _outcome(trial: Trial, model: str) -> BlockOutcome:
    checks = {
        result.check: CheckOutcome(
            result.status,
            float(f"{result.worst.error:.3g}") if result.worst is not None else None,
            trial.fault(result),
        )
        for result in trial.results
    }
    return BlockOutcome(
        trial.subject.key.class_name,
        trial.subject.key.source,
        model,
        trial.status,
        dict(trial.levels),
        checks,
        trial.reason,
        trial.proof("numeric").to_line() if trial.status == "passed" else None,
    )
