"""What PEFT can do to adapters while a model is patched."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from patchkit.testing.checks.base import InapplicableError, require_method, scenario
from patchkit.testing.lora import randomise_adapter
from patchkit.testing.parity import Inputs, Run, relative_error, run
from patchkit.testing.random_state import seed_generators

_PEFT_MODEL = "a PEFT model"
_SECOND = "second"

# Two settings whose logits differ by less show nothing: a patch that ignores the switch would pass.
_VISIBLE = 1e-3


@scenario("disable_adapter", "disable_adapter(), and afterwards the adapter again")
def disable_adapter(model: nn.Module, inputs: Inputs) -> Iterator[tuple[str, Run]]:
    """Without the adapter, then with it."""
    disabled = require_method(model, "disable_adapter", _PEFT_MODEL)
    with disabled():
        without = run(model.train(), inputs, input_gradients=True)
    yield "disabled", without
    enabled = run(model, inputs, input_gradients=True)
    _require_visible(without, enabled, "the adapter")
    yield "enabled again", enabled


@scenario("merge_adapter", "merge_adapter(), and afterwards unmerge_adapter()")
def merge_adapter(model: nn.Module, inputs: Inputs) -> Iterator[tuple[str, Run]]:
    """A merged adapter gets no gradient, and must not be applied a second time."""
    require_method(model, "merge_adapter", _PEFT_MODEL)()
    yield "merged", run(model.train(), inputs, input_gradients=True)
    require_method(model, "unmerge_adapter", _PEFT_MODEL)()
    yield "unmerged", run(model, inputs, input_gradients=True)


@scenario("merge_and_unload", "the plain model that merge_and_unload() leaves")
def merge_and_unload(model: nn.Module, inputs: Inputs) -> Iterator[tuple[str, Run]]:
    """Patched before the adapters go away."""
    plain = require_method(model, "merge_and_unload", _PEFT_MODEL)()
    yield "unloaded", run(plain.train(), inputs, input_gradients=True)


@scenario("adapter_switching", "a second adapter, added after patching: alone, together with the first, and back")
def adapter_switching(model: nn.Module, inputs: Inputs) -> Iterator[tuple[str, Run]]:
    """Adapters of different rank, one and two active."""
    first = _add_second_adapter(model.train())
    for stage, active in (("second", _SECOND), ("both", [first, _SECOND]), ("first", first)):
        # PeftModel.set_adapter takes one name; its tuner takes several.
        model.base_model.set_adapter(active)  # type: ignore[operator, union-attr]
        found = run(model, inputs, input_gradients=True)
        if stage == "second":
            alone = found
        else:
            _require_visible(alone, found, "the choice of adapter")
        yield stage, found


@scenario("mixed_adapters", "another adapter for each row of the batch (adapter_names), in eval mode")
def mixed_adapters(model: nn.Module, inputs: Inputs) -> Iterator[tuple[str, Run]]:
    """Rows take the first adapter, the second, and none, in turn."""
    first = _add_second_adapter(model.eval())
    rows = inputs["input_ids"].shape[0]
    if rows < 2:
        raise InapplicableError("one row cannot mix adapters")
    choices = [first, _SECOND, "__base__"]
    for stage, turn in (("mixed", 0), ("mixed, other order", 1)):
        names = [choices[(row + turn) % len(choices)] for row in range(rows)]
        with torch.no_grad():
            yield stage, run(model, inputs, backward=False, adapter_names=names)
    yield "unmixed again", run(model, inputs)


def _add_second_adapter(model: nn.Module) -> str:
    add = require_method(model, "add_adapter", _PEFT_MODEL)
    configs: dict[str, Any] = getattr(model, "peft_config", {})
    if not configs:
        raise InapplicableError(f"{type(model).__name__} is not {_PEFT_MODEL}")
    first = next(iter(configs))
    config = copy.deepcopy(configs[first])
    config.r += 1
    config.init_lora_weights = False
    seed_generators(1, model)
    add(_SECOND, config)
    randomise_adapter(model, _SECOND, seed=1)
    return first


def _require_visible(first: Run, second: Run, what: str) -> None:
    if relative_error(second.outputs["logits"], first.outputs["logits"]) < _VISIBLE:
        raise InapplicableError(f"{what} makes no visible difference: give adapters weights that contribute")
