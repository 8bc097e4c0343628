"""The files of a plugin package for an architecture, and writing them."""

from __future__ import annotations

import json
import keyword
import os
import re
import shutil
import tempfile
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from patchkit.arch.registry import architectures, is_built_in
from patchkit.arch.spec import Block
from patchkit.check.static.drift import described, words_of
from patchkit.errors import NewArchitectureError
from patchkit.escaping import one_line
from patchkit.scaffolding.description import Described
from patchkit.scaffolding.source import Source

TINY = "tiny_model"
"""What the function is called that makes a small model of those that are none of transformers, and its module."""

_WIDTH = 118


class Names(NamedTuple):
    """What things are called.

    Attributes:
        architecture: what the user types: ``patchkit check --arch NAME``.
        distribution: the name for pip, and of the folder.
        package: the name for import.
    """

    architecture: str
    distribution: str
    package: str


def names_for(name: str) -> Names:
    """Names made of what a person has typed, such as ``Acme-7B``.

    Raises:
        NewArchitectureError: nothing can be made of it, or an architecture has the name.
    """
    word = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    if not word.isidentifier() or keyword.iskeyword(word):
        raise NewArchitectureError(f"no name can be made of {name!r}; begin with a letter, as in acme2")
    if word in architectures():
        owner = "patchkit's own" if is_built_in(word) else "that of a plugin that is installed"
        raise NewArchitectureError(f"there is an architecture {word!r} already, {owner}; take another name")
    return Names(word, f"patchkit-{word.replace('_', '-')}", f"patchkit_{word}")


def package_of(names: Names, source: Source, found: Described) -> dict[str, str]:
    """The files of the package: text by path."""
    inner = f"src/{names.package}"
    files = {
        "README.md": _readme(names, source),
        "pyproject.toml": _pyproject(names, source),
        f"{inner}/__init__.py": f'"""The architecture {names.architecture} for patchkit."""\n',
        f"{inner}/patchkit_architecture.py": _architecture(names, source, found),
        f"tests/test_{names.architecture}.py": _test(names),
    }
    if to_fill_in(source):
        files[f"{inner}/{TINY}.py"] = _tiny(source)
    return files | {f"{inner}/{name}": text for name, text in source.files.items()}


def write_package(folder: Path, files: Mapping[str, str]) -> None:
    """Write the files of a package into a folder of its own, all or none.

    Raises:
        NewArchitectureError: the folder is there already, or cannot be written.
    """
    if folder.exists():
        raise NewArchitectureError(f"{folder} exists, and nothing in it was changed; delete it, or say --out DIR")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            for path, text in files.items():
                (aside / path).parent.mkdir(parents=True, exist_ok=True)
                (aside / path).write_text(text, encoding="utf-8")
            aside.chmod(0o755)
            os.rename(aside, folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise NewArchitectureError(f"{folder} cannot be written: {error.strerror or error}") from error


# ---- the files


def _architecture(names: Names, source: Source, found: Described) -> str:
    types = ", ".join(map(json.dumps, source.model_types)) + ("," if len(source.model_types) == 1 else "")
    model = source.model.name if source.model is not None else None
    if to_fill_in(source):
        model = f"{names.package}.{TINY}:{TINY}"
    lines = [
        f'"""{names.architecture}: written by `patchkit new-arch` from the source of {source.shown}."""',
        "",
        f"from patchkit.arch.spec import {', '.join(sorted(['Architecture', *found.kinds], key=_as_isort))}",
        "",
        f"{names.architecture.upper()} = Architecture(",
        f"    name={json.dumps(names.architecture)},",
        f"    model_types=({types}),",
        f"    module={json.dumps(source.module)},",
        "    blocks=(",
        *(line for block in found.blocks for line in _lines_of(block)),
        "    ),",
        *([f"    model={json.dumps(model)},"] if model is not None else []),
        ")",
    ]
    if found.left_out:
        lines += [""]
        for note in found.left_out:
            said = one_line(" ".join(note.split()))
            lines += [f"# {line}" for line in textwrap.wrap(said, _WIDTH, break_long_words=False)]
    return "\n".join([*lines, ""])


def _lines_of(block: Block) -> list[str]:
    """A block of the list, in one line or, where that is too long, with a line for each word."""
    line = f"        {described(block)},"
    if len(line) <= _WIDTH + 2:
        return [line]
    return [f"        {type(block).__name__}(", *(f"            {word}," for word in words_of(block)), "        ),"]


def _as_isort(name: str) -> tuple[bool, str]:
    """Constants first, then classes, as ruff orders them."""
    return (not name.isupper(), name)


def _pyproject(names: Names, source: Source) -> str:
    needs = ", ".join(json.dumps(name) for name in dict.fromkeys(["patchkit-lora", *source.needs]))
    return f"""\
[build-system]
requires = ["hatchling>=1.26"]
build-backend = "hatchling.build"

[project]
name = "{names.distribution}"
version = "0.1.0"
description = "The architecture {names.architecture} for patchkit."
requires-python = ">=3.10"
dependencies = [{needs}]

[project.optional-dependencies]
test = ["pytest"]

[project.entry-points."patchkit.architectures"]
{names.architecture} = "{names.package}.patchkit_architecture:{names.architecture.upper()}"

[tool.hatch.build.targets.wheel]
packages = ["src/{names.package}"]
"""


def _test(names: Names) -> str:
    return f"""\
from patchkit.testing import verify_architecture


def test_{names.architecture}() -> None:
    verify_architecture("{names.architecture}")
"""


def _tiny(source: Source) -> str:
    """A function to be completed, which makes a small model and its inputs."""
    assert source.model is not None
    arguments = ", ".join(f"{name}=..." for name in source.model.arguments)
    inputs = ", ".join(f'"{name}": ...' for name in source.model.inputs)
    return f"""\
\"\"\"A small model for the proof. Fill in its sizes, and its inputs: tensors of several rows.\"\"\"

from typing import Any

from torch import nn

from {source.module} import {source.model.name}


def {TINY}() -> tuple[nn.Module, dict[str, Any]]:
    \"\"\"A model that has every block, and keyword arguments of its forward.\"\"\"
    return {source.model.name}({arguments}), {{{inputs}}}
"""


def _readme(names: Names, source: Source) -> str:
    return f"""\
# {names.distribution}

The architecture `{names.architecture}` for patchkit, described from the source of {source.shown}.
`src/{names.package}/patchkit_architecture.py` has the description.

```
pip install -e ".[test]"
patchkit diff --arch {names.architecture}     # what is rewritten
patchkit check --arch {names.architecture}    # whether the numbers are equal
python -m pytest tests
```
"""


def to_fill_in(source: Source) -> bool:
    """Whether a person has to complete something: of a model that is none of transformers nobody knows the inputs."""
    return source.model is not None and not source.model.of_transformers
