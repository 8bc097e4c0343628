"""What a patched model remains: copyable, picklable, with the same keys, alone in being patched, and revertible."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator

import torch
from torch import nn

from patchkit.testing.checks.base import (
    Case,
    InapplicableError,
    cast_inputs,
    cast_parameters,
    check,
    run_upstream,
    scenario,
)
from patchkit.testing.parity import (
    FP32_TOLERANCE,
    Findings,
    Inputs,
    Measurement,
    Run,
    compare_runs,
    identical_runs,
    run,
)


@scenario("deepcopy", "a deep copy of the patched model, and the original after the copy's weights changed")
def deepcopy(model: nn.Module, inputs: Inputs) -> Iterator[tuple[str, Run]]:
    """A copy that still used the original's weights, or the other way round, would show."""
    duplicate = copy.deepcopy(model.train())
    yield "copy", run(duplicate, inputs)
    with torch.no_grad():
        for parameter in duplicate.parameters():
            if parameter.is_floating_point():
                parameter.mul_(1.1)
    yield "copy with other weights", run(duplicate, inputs)
    yield "original", run(model, inputs)


@scenario("pickle", "torch.save(model) and torch.load, after patching")
def pickle(model: nn.Module, inputs: Inputs) -> Iterator[tuple[str, Run]]:
    """Whole-model pickles, where the unpatched model has them."""
    buffer = io.BytesIO()
    torch.save(model.train(), buffer)
    buffer.seek(0)
    yield "loaded", run(torch.load(buffer, weights_only=False), inputs)


@check("state_dict", "keys, values, parameter identity, module names, isinstance and class names; loading a state dict")
def state_dict(case: Case) -> Findings:
    """What saving, optimizers, wrap policies and type checks rely on."""
    model = cast_parameters(case.unpatched(), torch.float32)
    classes = {name: type(module) for name, module in model.named_modules()}
    parameters = {name: (id(parameter), parameter.requires_grad) for name, parameter in model.named_parameters()}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    case.patched(model)
    problems = []
    after = model.state_dict()
    if list(after) != list(before):
        problems.append(f"state_dict keys changed: {sorted(set(after) ^ set(before)) or 'in their order'}")
    problems += [
        f"value of {key} changed" for key in before if key in after and not torch.equal(before[key], after[key])
    ]
    if parameters != {name: (id(parameter), parameter.requires_grad) for name, parameter in model.named_parameters()}:
        problems.append("parameters were replaced, renamed, or changed in requires_grad")
    if list(classes) != [name for name, _ in model.named_modules()]:
        problems.append("named_modules() changed")
    for name, module in model.named_modules():
        problems += _class_problems(name, type(module), classes.get(name))
    findings = Findings(problems=tuple(problems))
    return findings + _loaded_state(case, model)


def _class_problems(name: str, found: type, expected: type | None) -> list[str]:
    if expected is None:
        return []
    problems = []
    if not issubclass(found, expected):
        problems.append(f"{name} is no longer an instance of {expected.__name__}")
    if (found.__name__, found.__qualname__) != (expected.__name__, expected.__qualname__):
        problems.append(f"{name}: class is named {found.__qualname__}, upstream's {expected.__qualname__}")
    return problems


def _loaded_state(case: Case, model: nn.Module) -> Findings:
    """New values must be seen: nothing derived from weights may be kept from before."""
    inputs = cast_inputs(case.inputs, torch.float32)
    reference = cast_parameters(case.unpatched(), torch.float32).train()
    # On both sides: some upstream models keep positions from call to call (Qwen2-VL of transformers 4.48).
    run_upstream(reference, inputs)
    run(model.train(), inputs)
    changed = {
        key: value * 1.1 if value.is_floating_point() and value.ndim > 1 else value
        for key, value in reference.state_dict().items()
    }
    for side in (reference, model):
        side.load_state_dict(changed)
    return compare_runs(run_upstream(reference, inputs), run(model, inputs), stage="loaded")


@check("patch_twice", "patching an already patched model changes nothing")
def patch_twice(case: Case) -> Findings:
    """The second call is a no-op, and no error."""
    inputs = cast_inputs(case.inputs, torch.float32)
    reference = run_upstream(cast_parameters(case.unpatched(), torch.float32).train(), inputs)
    once = run(case.patched(cast_parameters(case.unpatched(), torch.float32)).train(), inputs)
    model = case.patched(cast_parameters(case.unpatched(), torch.float32)).train()
    patched_modules = case.patched_modules
    case.patched(model)
    changed, case.patched_modules = case.patched_modules, patched_modules
    twice = run(model, inputs)
    findings = compare_runs(reference, twice, FP32_TOLERANCE, stage="patched twice")
    if changed:
        findings += Findings(problems=(f"the second call changed {', '.join(changed[:3])}, ...",))
    return findings + _same_bits("patched twice and once", once, twice)


@check("isolation", "another instance of the same classes is unchanged to the last bit while one is patched")
def isolation(case: Case) -> Findings:
    """No global monkey patch."""
    inputs = cast_inputs(case.inputs, torch.float32)
    bystander = cast_parameters(case.unpatched(), torch.float32).train()
    before, state = _reproducible_run(bystander, inputs), _snapshot(bystander)
    model = case.patched(cast_parameters(case.unpatched(), torch.float32)).train()
    findings = compare_runs(before, run(model, inputs), stage="patched")
    findings += _same_bits("bystander", before, run(bystander, inputs))
    findings += _same_bits("new copy", before, run(cast_parameters(case.unpatched(), torch.float32).train(), inputs))
    return findings + _same_state("bystander", state, _snapshot(bystander))


@check("revert", "after revert: the exact classes, nothing left behind, identical bits; and it can be patched again")
def revert(case: Case) -> Findings:
    """A way to revert is needed; inapplicable without."""
    if case.revert is None:
        raise InapplicableError("no revert function was given")
    inputs = cast_inputs(case.inputs, torch.float32)
    model = cast_parameters(case.unpatched(), torch.float32).train()
    reference, state = _reproducible_run(model, inputs), _snapshot(model)
    case.patched(model)
    patched_modules = case.patched_modules
    findings = compare_runs(reference, run(model, inputs), stage="patched")
    case.revert(model)
    findings += _same_state("reverted", state, _snapshot(model))
    findings += _same_bits("reverted", reference, run(model, inputs))
    case.patched(model)
    if set(case.patched_modules) != set(patched_modules):
        findings += Findings(problems=("patching again after revert changed other modules than the first time",))
    return findings + compare_runs(reference, run(model, inputs), stage="patched again")


def _reproducible_run(model: nn.Module, inputs: Inputs) -> Run:
    first, second = run_upstream(model, inputs), run_upstream(model, inputs)
    if not identical_runs(first, second):
        raise InapplicableError("upstream itself does not give the same bits twice")
    return first


def _same_bits(stage: str, reference: Run, candidate: Run) -> Findings:
    same = identical_runs(reference, candidate)
    return Findings((Measurement(f"{stage}: runs that differ in a bit", float(not same), 0.5, same),))


def _snapshot(model: nn.Module) -> dict[str, tuple[type, frozenset[str], int]]:
    """Class, instance attributes and number of hooks of every module."""
    return {name: (type(module), frozenset(vars(module)), _hooks(module)) for name, module in model.named_modules()}


def _hooks(module: nn.Module) -> int:
    return sum(len(hooks) for key, hooks in vars(module).items() if key.endswith("_hooks") and hooks is not None)


def _same_state(
    stage: str,
    expected: dict[str, tuple[type, frozenset[str], int]],
    found: dict[str, tuple[type, frozenset[str], int]],
) -> Findings:
    problems = []
    for name in expected.keys() | found.keys():
        if expected.get(name) == found.get(name):
            continue
        problems.append(f"{stage}: {name or 'the model'} was {expected.get(name)}, now is {found.get(name)}")
    return Findings(problems=tuple(sorted(problems)))
