"""Asked in an environment (:mod:`patchkit.check.numeric.environments`): what is there, from where, and what to hide."""

from __future__ import annotations

import importlib
import importlib.util
import json
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, entry_points, packages_distributions, requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from patchkit.arch.plugins import ENTRY_POINT_GROUP


def folder_of(package: str) -> str:
    """The folder of a package that would be imported; empty if there is none. A first look imports nothing."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return ""
    return spec.submodule_search_locations[0] if spec and spec.submodule_search_locations else ""


def versions_and_place(request: bytes) -> bytes:
    """The versions of imported packages, and their places, which were asked for before any of them ran.

    Args:
        request: their names as a JSON list.
    """
    names = json.loads(request)
    place, places = folder_of(names[0]), {name: folder_of(name) for name in names}
    versions = {name: str(importlib.import_module(name).__version__).split("+")[0] for name in names}
    told = {"place": place, "places": places, "versions": {**versions, "python": platform.python_version()}}
    return json.dumps(told).encode()


def unneeded(request: bytes) -> bytes:
    """Every top-level module that belongs to no distribution that the roots need, directly or indirectly.

    Args:
        request: the roots as a JSON list of distributions.
    """
    kept = _needed(json.loads(request))
    hidden = {top for top, names in _top_level().items() if not kept & names}
    return json.dumps(sorted(hidden - {"_distutils_hack", "pkg_resources"})).encode()


def plugin_modules() -> list[str]:
    """Every top-level module of a distribution that has architectures, or that one of these needs.

    An environment hides what was not needed when it was made; plugins come and go.
    """
    roots = {point.dist.name for point in entry_points(group=ENTRY_POINT_GROUP) if point.dist is not None}
    if not roots:
        return []
    needed = _needed(roots) - _needed(())  # which is never hidden
    return sorted(top for top, names in _top_level().items() if needed & names)


def _top_level() -> dict[str, set[str]]:
    """The top-level modules that are installed, each with the canonical names of its distributions."""
    found = packages_distributions().items()
    return {top: set(map(canonicalize_name, names)) for top, names in found if top.isidentifier()}


def _needed(roots: Iterable[str]) -> set[str]:
    kept, waiting = {"pip", "setuptools", "patchkit"}, list(roots)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in kept - {"setuptools"}:
            continue
        kept.add(name)
        try:
            needed = map(Requirement, requires(name) or ())
        except PackageNotFoundError:
            continue
        waiting += [one.name for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    return kept
