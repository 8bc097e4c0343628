"""The parity contract on one tiny model, with the transformers that is imported.

This runs in worker processes, which :class:`patchkit.check.numeric.environments.Environment` starts and asks: the
release's code is imported there and nowhere else.
"""

from __future__ import annotations

import functools
import json
import time
import warnings
from typing import TYPE_CHECKING, Any

from patchkit.check.numeric.outcomes import NUMERIC_CHECKS, ArchitectureOutcome, BlockOutcome, CheckOutcome
from patchkit.check.numeric.probe import folder_of

if TYPE_CHECKING:
    from patchkit.check.numeric.proving import Trial


def answer(request: bytes) -> bytes:
    """What a worker is asked, as JSON, and its answer.

    ``{"models_of": [architecture, ...]}`` is answered by the names of their tiny models, ``{"architecture": ...,
    "model": ...}`` by the place of transformers and the outcome of :func:`check_model`.
    """
    place = _place()  # before anything of the release is imported
    asked = json.loads(request)
    if "models_of" in asked:
        from patchkit.testing import tiny_models_of

        return json.dumps({name: tiny_models_of(name) for name in asked["models_of"]}).encode()
    outcome = check_model(asked["architecture"], asked["model"])
    return json.dumps({"place": place, "outcome": outcome.to_json()}).encode()


@functools.lru_cache(maxsize=1)
def _place() -> str:
    return folder_of("transformers")


def check_model(architecture: str, name: str) -> ArchitectureOutcome:
    """Run the contract on one tiny model.

    Args:
        architecture: whose outcome it is; the blocks of its towers count too.
        name: a tiny model, or nothing if there is no recipe for the architecture.
    """
    import patchkit
    from patchkit.check.numeric.proving import prove, subjects_of, versions
    from patchkit.testing import tiny_inputs

    start = time.perf_counter()
    if not name:
        problem = "there is no tiny model of it: patchkit.testing has no recipe"
        return ArchitectureOutcome(architecture, versions(), problems={architecture: problem})
    try:
        model = _adapted(name)
        inputs = tiny_inputs(name, model)
    except Exception as error:  # a release that lacks the model, or builds it in another way
        problem = f"its tiny model cannot be built: {type(error).__name__}: {error}"
        return ArchitectureOutcome(architecture, versions(), problems={name: problem})
    subjects, left = subjects_of(model)
    apply = functools.partial(patchkit.apply, trust="always")  # what is to be proven cannot be asked for its proof
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trials = prove(model, inputs, subjects, NUMERIC_CHECKS, patch=apply, revert=patchkit.revert)
    return ArchitectureOutcome(
        architecture,
        versions(),
        tuple(_outcome(trial, name) for trial in trials),
        {cls.__qualname__: reason for cls, reason in left.items()},
        {},
        round(time.perf_counter() - start, 2),
    )


def _adapted(name: str) -> Any:
    """A tiny model with adapters on every projection of its registered blocks, those of a vision tower included."""
    from patchkit.arch.discovery import find_blocks
    from patchkit.testing import add_lora, tiny_model

    model = tiny_model(name)
    targets = [f"{found.name}.{name}" for found in find_blocks(model) for name in found.block.projections()]
    # A scaling that is no power of two, so that leaving it out or applying it twice rounds differently.
    return add_lora(model, target_modules=targets, r=4, lora_alpha=11).train()


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
