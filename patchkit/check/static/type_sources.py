"""Which model types of two releases have the same sources: a hash of each type's files, and of those that they name.

Nothing is imported. A type's files are those of the folder whose configuration says its name. Others count with them:
those of folders from which they import, and those of the model types that their configurations name, since a model of
several towers is built of these. What all models share (``modeling_utils.py``, masks, caches) does not count: it is
another one in every release, runs as it is on both sides of a comparison, and is part of no proof.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from patchkit.cache.digests import digest
from patchkit.errors import RewriteError
from patchkit.upstream.identity import source_hash

_DIGITS = 20
_NAMED = re.compile(r"""^    model_type(?:\s*:[^=\n]*)?\s*=\s*["']([^"']+)["']""", re.MULTILINE)
_STRING = re.compile(r"""["']([a-z][a-z0-9_-]*)["']""")
_IMPORT = re.compile(r"^\s*from\s+(?:\.\.|transformers\.models\.)([a-z0-9_]+)[. ]", re.MULTILINE)


def type_sources(transformers: Path) -> dict[str, str]:
    """A hash of the sources of each model type. Comments, docstrings and formatting do not change it.

    Args:
        transformers: the folder of the package.

    Raises:
        OSError: a file cannot be read.
    """
    folders = _folders(transformers / "models")
    types: dict[str, list[str]] = {}
    for name, files in folders.items():
        for text in files.values():
            for model_type in _NAMED.findall(text):
                types.setdefault(model_type, []).append(name)
    named = {name: _named_by(name, files, folders, types) for name, files in folders.items()}
    hashes = {name: _hashes(files) for name, files in folders.items()}
    return {
        model_type: digest([[name, hashes[name]] for name in sorted(_reached(own, named))])[:_DIGITS]
        for model_type, own in sorted(types.items())
    }


def _folders(models: Path) -> dict[str, dict[str, str]]:
    """The texts of the configurations and models of each folder, by the names of their files."""
    found: dict[str, dict[str, str]] = {}
    for kind in ("configuration", "modeling"):
        for path in sorted(models.rglob(f"{kind}_*.py")):
            if not path.name.startswith(("modeling_tf_", "modeling_flax_")):
                found.setdefault(path.parent.name, {})[path.name] = path.read_text("utf-8", errors="replace")
    return found


def _named_by(
    name: str, files: Mapping[str, str], folders: Mapping[str, object], types: Mapping[str, list[str]]
) -> set[str]:
    """The folders that one names: by imports, and by model types in its configurations."""
    found = {other for text in files.values() for other in _IMPORT.findall(text) if other in folders}
    for file, text in files.items():
        if file.startswith("configuration_"):
            found.update(folder for word in _STRING.findall(text) for folder in types.get(word, ()))
    return found - {name, "auto"}


def _reached(start: list[str], named: Mapping[str, set[str]]) -> set[str]:
    found, waiting = set(start), list(start)
    while waiting:
        new = named[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def _hashes(files: Mapping[str, str]) -> list[list[str]]:
    return [[file, one] for file, text in sorted(files.items()) for one in _hash_of(text)]


def _hash_of(text: str) -> Iterator[str]:
    try:
        yield source_hash(text)
    except RewriteError:  # a file that does not parse is itself
        yield hashlib.sha256(text.encode()).hexdigest()
