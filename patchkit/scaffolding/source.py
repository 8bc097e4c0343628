"""Where the source of a new architecture is: a model type of transformers, a module that is installed, or a file."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from patchkit.errors import NewArchitectureError, UnknownModelTypeError
from patchkit.scaffolding.models import WholeModel, model_types_in, whole_model_in
from patchkit.upstream.release import installed_release, module_path
from patchkit.upstream.text import parsed


@dataclass(frozen=True)
class Source:
    """The source of an architecture.

    Attributes:
        shown: for people: what it is of.
        module: the module of the classes, as the new package will be installed.
        text: of that module.
        model_types: of its configurations.
        model: the class of a whole model in it; None where a model type of transformers is enough, or there is none.
        files: text by name, of what has to be copied into the new package.
        needs: distributions that the new package needs for it.
        shown_classes: names of the classes that the tiny models of it hold, those that they inherit from included; None
            where that is not known before the package is installed.
    """

    shown: str
    module: str
    text: str
    model_types: tuple[str, ...] = ()
    model: WholeModel | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    shown_classes: frozenset[str] | None = None


def of_model_type(model_type: str) -> Source:
    """The module of transformers that defines the model of a model type.

    Raises:
        UnknownModelTypeError: the installed transformers has none of this name; near ones are named.
        TinyModelError: it has no model of it.
        RewriteError: the text cannot be read.
    """
    import transformers

    from patchkit.testing.tiny.heads import source_of

    if model_type not in transformers.CONFIG_MAPPING:
        near = difflib.get_close_matches(model_type, transformers.CONFIG_MAPPING, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UnknownModelTypeError(f"transformers {transformers.__version__} has no model type {model_type!r}{hint}")
    module = source_of(model_type, None).model_class.__module__
    release = installed_release()
    text = release.read(module_path(module))
    if text is None:
        raise NewArchitectureError(f"transformers {release.version} has no file {module_path(module)}")
    shown, classes = f"transformers {release.version}", _classes_of(model_type, module)
    return Source(shown, module, text, (model_type,), needs=("transformers",), shown_classes=classes)


def _classes_of(model_type: str, module: str) -> frozenset[str]:
    """Names of the classes of a module that a tiny model of a model type holds.

    Raises:
        TinyModelError: there is none, so that nothing that is said of it could be proven.
    """
    from patchkit.testing import tiny_model_from

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers, about configurations
        kinds = {cls for inner in tiny_model_from(model_type).modules() for cls in type(inner).__mro__}
    return frozenset(cls.__qualname__ for cls in kinds if cls.__module__ == module)


def of_file(file: Path, package: str) -> Source:
    """The module that a file is, if it is installed; else a copy in the new package, with what it imports beside it.

    Args:
        file: Python source with the classes of a model.
        package: name of the new package.

    Raises:
        NewArchitectureError: there is no such file, or it could not be imported from the new package.
        RewriteError: it does not parse.
    """
    text = _read(file)
    model, module = whole_model_in(text, str(file)), _installed_as(file.resolve())
    if module:
        imported = (name for node in _relative(parsed(text, str(file))) for name in _files_of(node))
        beside = (file.with_name(name) for name in dict.fromkeys(imported))
        types = model_types_in([text, *(_read(one) for one in beside if one.is_file())])
        return Source(module, module, text, types, model, needs=_distributions(module))
    files = dict(_with_neighbours(file))
    return Source(file.name, f"{package}.{file.stem}", text, model_types_in(files.values()), model, files)


def _read(file: Path) -> str:
    if file.suffix != ".py" or not file.stem.isidentifier():
        raise NewArchitectureError(f"{file} is no file of a Python module: expected a name such as modeling_acme.py")
    try:
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else f"no UTF-8: {error.reason}"
        raise NewArchitectureError(f"{file} cannot be read: {why}") from error


# ---- a file that is installed


def _installed_as(file: Path) -> str:
    """The name under which a file is imported, from wherever a program starts; empty if it is not."""
    parts, folder = [file.stem], file.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    with _without_current_folder():
        try:
            spec = importlib.util.find_spec(parts[0])
        except (ImportError, ValueError):
            return ""
    places = list(spec.submodule_search_locations or [spec.origin or ""]) if spec else []
    here = folder / parts[0] if len(parts) > 1 else file
    return ".".join(parts) if any(os.path.realpath(place) == os.path.realpath(here) for place in places) else ""


@contextmanager
def _without_current_folder() -> Iterator[None]:
    """What is found only because a person stands beside it is not installed."""
    before = sys.path
    sys.path = [entry for entry in before if entry and os.path.realpath(entry) != os.getcwd()]
    try:
        yield
    finally:
        sys.path = before


def _distributions(module: str) -> tuple[str, ...]:
    from importlib.metadata import packages_distributions

    return tuple(sorted(set(packages_distributions().get(module.partition(".")[0], ()))))


# ---- a file that is copied


def _with_neighbours(file: Path) -> Iterator[tuple[str, str]]:
    """A file and those beside it that it imports, directly or indirectly: names and texts."""
    waiting, seen = [file], {file.name}
    while waiting:
        one = waiting.pop(0)
        text = _read(one)
        yield one.name, text
        for line, name in _beside(parsed(text, str(one)), one):
            if name in seen:
                continue
            if not one.with_name(name).is_file():
                raise NewArchitectureError(f"{one}:{line} imports {name}, which is not beside it")
            seen.add(name)
            waiting.append(one.with_name(name))


def _beside(tree: ast.Module, file: Path) -> Iterator[tuple[int, str]]:
    """The lines in which a file imports one beside it, and the names of those files.

    Raises:
        NewArchitectureError: it imports from a package above it, or by a name that only works where it lies now.
    """
    for node in _relative(tree):
        if node.level > 1:
            where = f"{file}:{node.lineno} imports from a package above it"
            raise NewArchitectureError(f"{where}; install the package that it is in, and try again")
        yield from ((node.lineno, name) for name in _files_of(node))
    for line, name in _absolute(tree):
        if file.with_name(f"{name}.py").is_file() and name not in sys.stdlib_module_names:
            where = f"{file}:{line} imports {name} from beside it by a name that no package has"
            raise NewArchitectureError(f"{where}; write `from .{name} import ...`, and try again")


def _relative(tree: ast.Module) -> Iterator[ast.ImportFrom]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level)


def _files_of(node: ast.ImportFrom) -> list[str]:
    """The files that ``from .a import b`` (a.py) and ``from . import b`` (b.py) need."""
    names = [node.module.partition(".")[0]] if node.module else [alias.name for alias in node.names]
    return [f"{name}.py" for name in names]


def _absolute(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The top-level modules that a text imports, with lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.lineno, node.module.partition(".")[0]
