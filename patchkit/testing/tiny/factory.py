"""A tiny model of any configuration: the ladder."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedModel

from patchkit.errors import TinyModelError
from patchkit.testing.random_state import seeded
from patchkit.testing.tiny.heads import Source, source_of
from patchkit.testing.tiny.hints import HINTS
from patchkit.testing.tiny.inputs import Search, search_inputs
from patchkit.testing.tiny.limits import few_parameters, require_few_parameters
from patchkit.testing.tiny.outcome import in_short, require_a_step
from patchkit.testing.tiny.repairs import repairs
from patchkit.testing.tiny.shrinking import Variant, all_sub_configs, as_it_is, is_config, shrunk
from patchkit.testing.tiny_models import initialise

_MOST_CHANGES = 2
_MOST_REPAIRS = 16
_MOST_REPAIRS_OF_WHAT_RUNS = 4
_DEEPEST_REPAIR = 3
_MOST_PARAMETERS = 3_000_000
_MOST_WITH_WHOLE_WIDTHS = 25_000_000
_MOST_WITH_OWN_SIZES = 100_000_000


class _Rung(NamedTuple):
    """One way to a small configuration, and the fields of :class:`Variant` in which it is not the usual one."""

    name: str
    changes: tuple[str, ...]
    config: Callable[[], Any]


def tiny_model_from(
    source: Any,
    *,
    head: str | type[PreTrainedModel] | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **config_overrides: Any,
) -> PreTrainedModel:
    """A small model of a configuration, in train mode, on the CPU. Global random state is left as it was.

    Two layers, or as many as show every kind of layer, and hidden states of size 64; see
    :mod:`patchkit.testing.tiny`. Weights are those of :func:`patchkit.testing.tiny_models.initialise`.

    Args:
        source: a model type of transformers (``"llama"``), a configuration class, a configuration, or a model class
            with a ``config_class``. Of a plugin or remote code: the model class, or configuration and it as ``head``.
        head: one of :data:`patchkit.testing.tiny.heads.HEADS`, or a model class; None for the first that there is.
        dtype: of the parameters; buffers stay as upstream makes them.
        seed: weights depend on this and on the parameter's name only.
        config_overrides: values of the configuration, after it was made small. A mapping goes to a sub-configuration.

    Raises:
        TinyModelError: this is no configuration, or no rung leads to a model that runs; the message says why.
    """
    found = source_of(source, head)
    if found.model_class.forward is nn.Module.forward:
        raise TinyModelError(f"{found.model_class.__name__} has no forward: it generates, and its parts are trained")
    hint = HINTS.get(str(getattr(found.config_class, "model_type", "")))
    if hint is not None and hint.lacks:
        raise TinyModelError(f"no tiny {found.model_class.__name__}: {hint.lacks}")
    climb = _Climb(found.model_class, seed)
    seen: set[str] = set()
    progress: set[str] = set()  # the changes that alone lead to another error
    failures: dict[str, tuple[str, Any]] = {}
    try:
        rungs = _rungs(found)
    except Exception as error:  # a class may need arguments, and its own checks may raise anything
        raise TinyModelError(f"{found.config_class.__name__} cannot be made: {in_short(error)}") from error
    for rung in rungs:
        if climb.partial is not None and len(rung.changes) > 1:
            break  # it runs: two changes at once will not bring the tower that is missing
        if len(rung.changes) > 1 and not progress & set(rung.changes):
            continue
        try:
            config = _with(rung.config(), config_overrides)
            if (written := repr(config)) in seen:
                continue
            seen.add(written)
        except Exception as error:  # a configuration's own checks may raise anything
            climb.reasons.append(f"{rung.name}: {in_short(error)}")
            continue
        whole = "whole_widths" in rung.changes
        model = climb.model(rung.name, config, _MOST_WITH_WHOLE_WIDTHS if whole else _MOST_PARAMETERS)
        if isinstance(model, str):
            if model not in failures:
                progress.update(rung.changes)
            failures.setdefault(model, (rung.name, config))
            continue
        return _finished(model, dtype)
    for failure, (name, config) in failures.items():
        mended = climb.mended(name, config, failure)
        if mended is not None:
            return _finished(mended, dtype)
    if climb.partial is not None:
        return _finished(climb.partial.model, dtype)
    unshrunk = _of_own_sizes(climb, found, config_overrides)
    if unshrunk is not None:
        return _finished(unshrunk, dtype)
    raise TinyModelError(
        f"no tiny {found.model_class.__name__} of {found.config_class.__name__}:\n"
        + "\n".join(f"  {reason}" for reason in climb.reasons)
    )


def _finished(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model.train()


def _of_own_sizes(climb: _Climb, source: Source, overrides: Mapping[str, Any]) -> PreTrainedModel | None:
    """The last rung: the model as it is, if it is no large one. Those that convolve have sizes that no rule knows."""
    start = source.config if source.config is not None else source.config_class()
    try:
        config = _with(as_it_is(start), overrides)
    except Exception:  # a configuration's own checks may raise anything
        return None
    model = climb.model("its own sizes", config, _MOST_WITH_OWN_SIZES)
    return None if isinstance(model, str) else model


def _rungs(source: Source) -> list[_Rung]:
    start = source.config if source.config is not None else source.config_class()
    names = [field.name for field in fields(Variant)]
    rungs = []
    for count in range(_MOST_CHANGES + 1):
        for changed in itertools.combinations(names, count):
            variant = Variant(**dict.fromkeys(changed, True))
            name = " and ".join(changed).replace("_", " ") or "usual sizes"
            rungs.append(_Rung(name, changed, partial(_hinted, start, variant)))
    return rungs


def _hinted(start: Any, variant: Variant) -> Any:
    """A small configuration in which each model type, nested ones too, has what the table of hints says."""
    config = shrunk(start, variant)
    for part in (config, *all_sub_configs(config)):
        hint = HINTS.get(str(getattr(part, "model_type", "")))
        if hint is not None:
            _with(part, hint.values)
    return config


def _with(config: Any, values: Mapping[str, Any]) -> Any:
    """A configuration with values by the paths of fields; mappings are for sub-configurations."""
    for path, value in values.items():
        *outer, name = path.split(".")
        holder = config
        for part in outer:
            holder = holder[part] if isinstance(holder, dict) else getattr(holder, part)
        if isinstance(holder, dict):
            holder[name] = copy.deepcopy(value)
        elif isinstance(value, Mapping) and "model_type" in value:
            # Of another type; past the checks of a class that knows one type only.
            vars(holder)[name] = CONFIG_MAPPING[value["model_type"]](**copy.deepcopy(dict(value)))
        elif isinstance(value, Mapping) and is_config(vars(holder).get(name)):
            _with(getattr(holder, name), value)
        else:
            setattr(holder, name, copy.deepcopy(value))
    return config


class _Climb:
    """Attempts at models of one class, and why they failed.

    Attributes:
        reasons: one line for each attempt that gave another error than those before it.
        partial: the model that leaves out the fewest towers; None if none ran.
    """

    def __init__(self, model_class: type[PreTrainedModel], seed: int) -> None:
        self.model_class, self.seed = model_class, seed
        self.reasons: list[str] = []
        self.partial: _LeavesOutError | None = None
        self._errors: set[str] = set()
        self._left = _MOST_REPAIRS

    def model(self, name: str, config: Any, most: int = _MOST_PARAMETERS) -> PreTrainedModel | str:
        """The model of a configuration with at most so many parameters, or why it is none.

        What is kept of an error is what it says: the frames of each hold a model.
        """
        try:
            require_few_parameters(config, self.model_class, most)
            return _made(config, self.model_class, self.seed, most)
        except Exception as error:  # upstream's constructors may raise anything for sizes they were not made for
            if isinstance(error, _LeavesOutError) and (self.partial is None or error.missing < self.partial.missing):
                self.partial = error.with_traceback(None)
            if str(error) not in self._errors:
                self._errors.add(str(error))
                self.reasons.append(f"{name}: {in_short(error)}")
            return str(error)

    def mended(self, name: str, config: Any, failure: str, depth: int = 1) -> PreTrainedModel | None:
        """The model of a configuration in which sizes are as errors say; None if they lead nowhere.

        A change after which the error is one that was there before is not followed.
        """
        further = []
        for change, changed in repairs(config, failure):
            if self.partial is not None:
                self._left = min(self._left, _MOST_REPAIRS_OF_WHAT_RUNS)
            if self._left == 0:
                return None
            self._left -= 1
            before = set(self._errors)
            found = self.model(f"{name}, {change}", changed)
            if not isinstance(found, str):
                return found
            if found not in before:
                further.append((f"{name}, {change}", changed, found))
        if depth < _DEEPEST_REPAIR:
            for step in further:
                model = self.mended(*step, depth + 1)
                if model is not None:
                    return model
        return None


def _made(config: Any, model_class: type[PreTrainedModel], seed: int, most: int) -> PreTrainedModel:
    with seeded(seed), few_parameters(most):
        model = model_class(copy.deepcopy(config))
    initialise(model, seed)
    model.train()
    found = search_inputs(model)
    if found.inputs is None:
        raise TinyModelError(found.why)
    require_a_step(copy.deepcopy(model), found.inputs)  # some keep what a forward has computed
    if found.missing:
        raise _LeavesOutError(model, found)
    return model


class _LeavesOutError(TinyModelError):
    """A model runs, but on inputs that leave out a tower.

    Attributes:
        model: that runs.
        missing: how many towers are left out.
    """

    def __init__(self, model: PreTrainedModel, found: Search) -> None:
        super().__init__(f"it runs without {' and '.join(found.missing)} only: {found.why}")
        self.model, self.missing = model, len(found.missing)
