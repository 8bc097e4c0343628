"""Outcomes of model types that are remembered in the cache: a second scan is instant, and one that was stopped goes on.

An outcome is one of everything that could change it, and its file is named by a hash of all of that: the sources of
transformers, PEFT and patchkit (but for rooms that only show results), every installed distribution with its version,
Python, the machine, the variables that computing libraries read, and the descriptions that plugins give. A remembered
``verified`` is a claim, so that it is believed by the rules of the ledger: from files that nobody else can have
written, and only if it is an outcome of that very type. What is not lasting is not remembered: a difference, which is
to be looked at again, and a process that was lost.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import patchkit
import patchkit_kernels
from patchkit.arch.registry import architectures
from patchkit.cache.contents import touch, trim
from patchkit.cache.digests import digest, sources_digest
from patchkit.cache.storage import OUTCOMES, cache_directory, read_ours, warn_once, write_whole
from patchkit.check.numeric.environments import Environment
from patchkit.check.numeric.model_types import TypeOutcome
from patchkit.errors import CacheError
from patchkit.processes.interpreters import variables_for_release

_LAYOUT = 1  # of what is kept; another number forgets all of it
_SHOWING = ("cli", "check/results", "check/run.py", "trainer_callback.py")
"""Rooms of patchkit that nothing of an outcome comes from. Those below them import none of them."""

Read = TypeVar("Read")


class Remembered:
    """What earlier scans found in one setting.

    Args:
        setting: a hash of everything that outcomes depend on, as :func:`setting_of` makes it.
    """

    def __init__(self, setting: str) -> None:
        self._setting = setting

    def outcome(self, model_type: str, head: str) -> TypeOutcome | None:
        """The outcome of a model type; None if it is not known."""

        def read(data: Any) -> TypeOutcome:
            found = TypeOutcome.from_json(data)
            if (found.model_type, found.head) != (model_type, head):
                raise ValueError(f"it is of {found.model_type}")
            return found

        return self._read(["type", model_type, head], read)

    def keep(self, outcome: TypeOutcome) -> None:
        """Remember an outcome, unless it is a difference."""
        if outcome.state != "different":
            self._write(["type", outcome.model_type, outcome.head], outcome.to_json())

    def types(self, heads: Sequence[str]) -> dict[str, list[str]] | None:
        """Which model types have which of these heads; None if it is not known."""

        def read(data: Any) -> dict[str, list[str]]:
            if list(data) != list(dict.fromkeys(heads)):
                raise ValueError("it is of other heads")
            return {str(head): [str(name) for name in names] for head, names in data.items()}

        return self._read(["types", *heads], read)

    def keep_types(self, found: Mapping[str, Sequence[str]]) -> None:
        """Remember which types there are."""
        self._write(["types", *found], dict(found))

    def close(self) -> None:
        """Keep the cache within its limit."""
        trim(OUTCOMES)

    def _place(self, words: Sequence[str]) -> Path:
        key = digest([self._setting, *words])
        return cache_directory() / OUTCOMES / key[:2] / f"{key[2:]}.json"

    def _read(self, words: Sequence[str], read: Callable[[Any], Read]) -> Read | None:
        try:
            place = self._place(words)
            found = read(json.loads(read_ours(place)))
        except CacheError as error:
            warn_once("outcomes", f"the cache is not used, which takes longer: {error}")
            return None
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            return None
        touch(place)
        return found

    def _write(self, words: Sequence[str], data: Any) -> None:
        try:
            write_whole(self._place(words), json.dumps(data))
        except CacheError as error:
            warn_once("outcomes", f"the cache is not used, which takes longer: {error}")


def setting_of(environment: Environment) -> str:
    """A hash of everything that the outcome of a model type depends on in an environment.

    Raises:
        OSError: a source cannot be read.
    """
    own = environment.path is None
    peft = environment.place.parent / "peft"
    variables = {**variables_for_release(Path()), "PATH": ""}
    return digest(
        [
            _LAYOUT,
            dict(sorted(environment.versions.items())),
            sys.version,
            platform.machine(),
            sorted(variables.items()),
            _distributions(),
            [] if own else sorted(path.name for path in environment.place.parent.glob("*.dist-info")),
            sources_digest(environment.place),
            sources_digest(peft if peft.is_dir() else _folder("peft")),
            sources_digest(Path(patchkit.__file__).parent, without=_SHOWING),
            sources_digest(Path(patchkit_kernels.__file__).parent),
            [repr(architecture) for _, architecture in sorted(architectures().items())],
        ]
    )


def _folder(package: str) -> Path:
    spec = find_spec(package)
    return Path(spec.origin).parent if spec is not None and spec.origin else Path(package)


def _distributions() -> list[tuple[str, str]]:
    """What is installed: whether a model type can be built depends on packages that nothing here names."""
    found = importlib.metadata.distributions()
    return sorted({(str(one.metadata["Name"]), str(one.version)) for one in found})
