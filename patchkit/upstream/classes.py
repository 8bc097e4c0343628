"""Which class and which method of a module's text count, and what the classes are.

A text may define one name several times, and under conditions. Python keeps the last definition that it comes to. What
this file answers is therefore what Python does wherever the text alone can say it, and otherwise a refusal. The static
stage, the rewriter, the ledger's key and the method that really runs (:mod:`patchkit.upstream.live`) all ask here.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import UnionType
from typing import NamedTuple

from patchkit.errors import RewriteError, UndecidedError
from patchkit.upstream.identity import source_hash
from patchkit.upstream.text import NOT_PARSED, failures_of, parsed, place, split_lines

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = ast.ClassDef | Function

_SUITES = ("body", "cases", "handlers", "orelse", "finalbody")
"""The fields in which a statement holds others, in the order of the text: ``cases`` of ``match``, and so on."""


# ---- one walk, one rule


class Defined(NamedTuple):
    """A definition in a body.

    Attributes:
        node: the class or function.
        certain: whether it is a statement of that body itself, so that nothing decides whether Python comes to it.
    """

    node: Definition
    certain: bool


def definitions(body: Iterable[ast.AST], *, certain: bool = True) -> Iterator[Defined]:
    """Classes and functions of a body in the order of the text, also under conditions, but not inside of one another.

    Args:
        body: the statements of a module or a class.
        certain: whether Python comes to all of them.
    """
    for node in body:
        if isinstance(node, Definition):
            yield Defined(node, certain)
        else:
            for suite in _SUITES:
                yield from definitions(getattr(node, suite, ()), certain=False)


def namesakes(body: Iterable[ast.AST]) -> dict[str, list[Defined]]:
    """The definitions of a body by name, both in the order of the text."""
    found: dict[str, list[Defined]] = {}
    for defined in definitions(body):
        found.setdefault(defined.node.name, []).append(defined)
    return found


def is_decided(several: Sequence[Defined]) -> bool:
    """Whether Python keeps the last of several definitions of one name, whatever the conditions come to."""
    return len(several) == 1 or several[-1].certain


def class_named(module: ast.Module, name: str, filename: str = "") -> ast.ClassDef:
    """The class of this name that Python keeps.

    Args:
        module: a module's tree.
        name: ``Outer.Inner`` for a nested class.
        filename: what to call the module in error messages.

    Raises:
        UndecidedError: there are several, and a condition decides which of them counts.
        RewriteError: there is none.
    """
    node: ast.Module | ast.ClassDef = module
    for part in name.split("."):
        line = node.lineno if isinstance(node, ast.ClassDef) else 1
        found = _kept(node.body, part, ast.ClassDef, f"{place(filename, line)}class")
        assert isinstance(found, ast.ClassDef)  # narrows the type
        node = found
    assert isinstance(node, ast.ClassDef)  # a name has one part at least
    return node


def method_named(node: ast.ClassDef, class_name: str, name: str, filename: str = "") -> Function:
    """The method of this name in the body of a class that Python keeps.

    Args:
        node: the class.
        class_name: its name, with those of the classes around it.
        name: of the method.
        filename: what to call the module in error messages.

    Raises:
        UndecidedError: there are several, and a condition decides which of them counts.
        RewriteError: there is none.
    """
    found = _kept(node.body, name, Function, f"{place(filename, node.lineno)}class {class_name}: method")
    assert isinstance(found, Function)  # narrows the type
    return found


def definition(module: ast.Module, path: str, filename: str = "") -> Function:
    """A method by its dotted path, ``Outer.Inner.method``: the one that Python keeps.

    Raises:
        UndecidedError: there are several, and a condition decides which of them counts.
        RewriteError: there is none.
    """
    class_name, _, method = path.rpartition(".")
    return method_named(class_named(module, class_name, filename), class_name, method, filename)


def _kept(body: Sequence[ast.stmt], name: str, kind: type[Definition] | UnionType, what: str) -> Definition:
    """The definition of this name that Python keeps, which has to be of this kind."""
    named = namesakes(body)
    several = named.get(name, [])
    if several and not is_decided(several):
        raise UndecidedError(_undecided(several, f"{what} {name}"))
    if several and isinstance(several[-1].node, kind):
        return several[-1].node
    others = [other for other, found in named.items() if isinstance(found[-1].node, kind)]
    near = difflib.get_close_matches(name, others, n=3)
    raise RewriteError(f"{what} {name} not found" + (f"; near it: {', '.join(near)}" if near else ""))


def _undecided(several: Sequence[Defined], what: str) -> str:
    lines = ", ".join(str(defined.node.lineno) for defined in several)
    return f"{what} is defined more than once, under conditions (lines {lines})"


def first_line(node: Definition) -> int:
    """Line of a definition's first decorator, or of the definition if it has none, 1-based."""
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


# ---- the table


@dataclass(frozen=True)
class ClassEntry:
    """One class of a module.

    Attributes:
        name: with the names of the classes around it: ``Outer.Inner``.
        bases: its bases as they are written, such as ``nn.Module``, each once; empty for one that is no name.
        line: of its first line, decorators included, 1-based.
        text: its lines.
        has_forward: whether its body defines ``forward``.
        undecided: why nobody can say that Python keeps this class and not another of its name; empty if it is certain.
            The rest then is of the last of them, but ``has_forward`` of any.
    """

    name: str
    bases: tuple[str, ...]
    line: int
    text: str
    has_forward: bool
    undecided: str = ""

    @property
    def source(self) -> str:
        """Hash of its source, see :mod:`patchkit.upstream.identity`.

        Raises:
            UndecidedError: the class need not be the one that counts.
            RewriteError: the class is nested too deeply.
        """
        if self.undecided:
            raise UndecidedError(self.undecided)
        return source_hash(self.text)


@dataclass(frozen=True)
class ClassTable:
    """The classes of a module, and the names that it imports.

    Attributes:
        classes: by name.
        imports: (module, name there) by the name here. The module of a relative import begins with dots.
    """

    classes: Mapping[str, ClassEntry]
    imports: Mapping[str, tuple[str, str]]

    def heirs(self, name: str) -> list[str]:
        """The classes of this module that inherit from this one, at any distance, and define ``forward`` anew."""
        found = {name}
        for entry in self.classes.values():  # in the order of the text: a base stands above its heirs
            if not found.isdisjoint(entry.bases):
                found.add(entry.name)
        found.remove(name)
        return [entry.name for entry in self.classes.values() if entry.name in found and entry.has_forward]


@lru_cache(maxsize=64)
def class_table(source: str, filename: str) -> ClassTable:
    """The table of a module.

    Args:
        source: its text.
        filename: what to call it in an error message.

    Raises:
        RewriteError: the text does not parse, or is nested too deeply.
    """
    with failures_of(filename, NOT_PARSED):
        body = parsed(source, filename).body
        imports = {}
        for node in body:
            if isinstance(node, ast.ImportFrom):
                module = "." * node.level + (node.module or "")
                imports.update({alias.asname or alias.name: (module, alias.name) for alias in node.names})
        entries = _entries(split_lines(source), body, "", filename)
        return ClassTable({entry.name: entry for entry in entries}, imports)


def _entries(
    lines: list[str], body: list[ast.stmt], prefix: str, filename: str, line: int = 1, undecided: str = ""
) -> Iterator[ClassEntry]:
    """The classes of a body, also under conditions and in other classes, but not in functions."""
    for name, several in namesakes(body).items():
        why = undecided
        if not why and not is_decided(several):
            why = _undecided(several, f"{place(filename, line)}class {name}")
        classes = [node for node, _ in several if isinstance(node, ast.ClassDef)]
        if not classes or (not why and classes[-1] is not several[-1].node):  # a function has taken the name
            continue
        node = classes[-1]
        bases = [_bases(one) for one in classes]
        forward = _defines_forward(node)
        if why:  # nobody can say that it inherits forward, nor from where
            forward = any(map(_defines_forward, classes)) or len(set(bases)) > 1
        text = "".join(lines[first_line(node) - 1 : node.end_lineno])
        yield ClassEntry(f"{prefix}{name}", bases[-1], first_line(node), text, forward, why)
        yield from _entries(lines, node.body, f"{prefix}{name}.", filename, node.lineno, why)


def _defines_forward(node: ast.ClassDef) -> bool:
    several = namesakes(node.body).get("forward", [])
    return bool(several) and (isinstance(several[-1].node, Function) or not is_decided(several))


def _bases(node: ast.ClassDef) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_named(base) for base in node.bases))


def _named(base: ast.expr) -> str:
    """A base as it is written, if that is a name with dots; nothing else is ever looked for."""
    parts = []
    while isinstance(base, ast.Attribute):
        parts.append(base.attr)
        base = base.value
    return ".".join([base.id, *reversed(parts)]) if isinstance(base, ast.Name) else ""
