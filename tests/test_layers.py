"""The order of rooms in CONTRIBUTING.md holds: read from the imports of every file."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"patchkit": ROOT / "patchkit", "patchkit_kernels": ROOT / "kernels" / "patchkit_kernels"}

LAZY_UPWARDS = {("trust", "check/numeric"), ("testing", "check/architecture")}
"""Imports that run up, inside a function: the harness is loaded only if there is something to verify, and the public
test kit has one call that runs all of it."""


class Import(NamedTuple):
    """One import of this repository's own code: who, of what, in which line, and whether a function does it."""

    file: str
    room: str
    of: str
    line: int
    lazy: bool


def floors() -> list[list[str]]:
    """The rooms, from the top floor down, as CONTRIBUTING.md lists them."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    (block,) = re.findall(r"```text\n(\s*patchkit\n.*?)```", text, re.DOTALL)
    return [re.split(r",\s*", line.strip()) for line in block.splitlines() if line.strip()]


ROOMS = {room: floor for floor, rooms in enumerate(floors()) for room in rooms}


def room_of(module: str) -> str:
    """The room of a module: the longest listed path that leads to it."""
    package, _, rest = module.partition(".")
    path = rest.replace(".", "/") if package == "patchkit" else f"{package}/{rest.replace('.', '/')}"
    while path and path not in ROOMS:
        path = path.rpartition("/")[0]
    return path or package


def imports_of(tree: ast.AST, *, lazy: bool = False) -> Iterator[tuple[str, int, bool]]:
    """Every module that a file imports, but for type checkers only; ``from a import b`` may name a module b."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((f"{node.module}.{alias.name}", node.lineno, lazy) for alias in node.names)
        else:
            inner = lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            yield from imports_of(node, lazy=inner)


def all_imports() -> Iterator[Import]:
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            module = ".".join((package, *(part for part in parts if part != "__init__")))
            for name, line, lazy in imports_of(ast.parse(path.read_text("utf-8"))):
                # The packages themselves load nothing but the version; their names come from the rooms when they are used.
                if name.partition(".")[0] in PACKAGES and name not in PACKAGES:
                    yield Import(path.relative_to(ROOT).as_posix(), room_of(module), room_of(name), line, lazy)


IMPORTS = list(all_imports())


def test_every_file_stands_in_a_room_that_is_listed():
    rooms = {one.room for one in IMPORTS} | {one.of for one in IMPORTS}
    assert rooms <= set(ROOMS), f"say in CONTRIBUTING.md where these stand: {sorted(rooms - set(ROOMS))}"


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_down(room):
    wrong = [
        f"{one.file}:{one.line} imports from {one.of}"
        for one in IMPORTS
        if one.room == room != one.of
        and ROOMS[one.of] <= ROOMS[room]
        and not (one.lazy and (one.room, one.of) in LAZY_UPWARDS)
    ]
    assert not wrong, "\n".join(wrong)


def test_what_is_allowed_to_run_up_is_there():
    found = {(one.room, one.of) for one in IMPORTS if one.lazy and ROOMS[one.of] < ROOMS[one.room]}
    assert found == LAZY_UPWARDS


def test_an_import_that_runs_up_is_found():
    tree = ast.parse(
        "from patchkit.cli.main import app\ndef f():\n    import patchkit.api\nif TYPE_CHECKING:\n    import x"
    )
    assert list(imports_of(tree)) == [("patchkit.cli.main.app", 1, False), ("patchkit.api", 3, True)]
    assert room_of("patchkit.cli.main.app") == "cli"
    assert ROOMS[room_of("patchkit.api")] < ROOMS[room_of("patchkit.rewrite.rules.gated_mlp")]


def test_no_circle_of_files():
    """Files of one room may import one another, but not in a circle."""
    graph: dict[str, set[str]] = {}
    files = {path for folder in PACKAGES.values() for path in folder.rglob("*.py")}
    named = {}
    for package, folder in PACKAGES.items():
        for path in files:
            if path.is_relative_to(folder):
                parts = path.relative_to(folder).with_suffix("").parts
                named[".".join((package, *(part for part in parts if part != "__init__")))] = path
    for module, path in named.items():
        found = (name for name, _, lazy in imports_of(ast.parse(path.read_text("utf-8"))) if not lazy)
        graph[module] = {
            target
            for name in found
            if (target := name if name in named else name.rpartition(".")[0]) in named and target != module
        }
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, f"a circle: {' -> '.join((*above, module))}"
        if module not in done:
            for target in sorted(graph[module] - PACKAGES.keys()):
                visit(target, (*above, module))
            done.add(module)

    for module in graph:
        visit(module, ())
