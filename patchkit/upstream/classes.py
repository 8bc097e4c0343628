"""The classes of one module, from its text: what each inherits, whether it defines ``forward``, and its identity."""

from __future__ import annotations

import ast
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from patchkit.upstream.identity import first_line, source_hash
from patchkit.upstream.source import failures_of, split_lines


@dataclass(frozen=True)
class ClassEntry:
    """One class of a module.

    Attributes:
        name: with the names of the classes around it: ``Outer.Inner``.
        bases: its bases as they are written, such as ``nn.Module``, each once; empty for one that is no name.
        line: of its first line, decorators included, 1-based.
        text: its lines.
        has_forward: whether its body defines ``forward``.
    """

    name: str
    bases: tuple[str, ...]
    line: int
    text: str
    has_forward: bool

    @property
    def source(self) -> str:
        """Hash of its source, see :mod:`patchkit.upstream.identity`.

        Raises:
            RewriteError: the class is nested too deeply.
        """
        return source_hash(self.text)


@dataclass(frozen=True)
class ClassTable:
    """The classes of a module, and the names that it imports.

    Attributes:
        classes: by name. Of several classes of one name the last counts, as for Python.
        imports: (module, name there) by the name here. The module of a relative import begins with dots.
        repeated: names that several classes have.
    """

    classes: Mapping[str, ClassEntry]
    imports: Mapping[str, tuple[str, str]]
    repeated: frozenset[str]

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
    with failures_of(filename, "the source does not parse"):
        return _table(source)


def _table(source: str) -> ClassTable:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # upstream's invalid escapes are not the user's business
        body = ast.parse(source).body
    imports = {}
    for node in body:
        if isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            imports.update({alias.asname or alias.name: (module, alias.name) for alias in node.names})
    entries = list(_classes(split_lines(source), body, ""))
    counts = Counter(entry.name for entry in entries)
    repeated = frozenset(name for name, count in counts.items() if count > 1)
    return ClassTable({entry.name: entry for entry in entries}, imports, repeated)


def _classes(lines: list[str], body: list[ast.stmt], prefix: str) -> Iterator[ClassEntry]:
    """The classes of a body, also under conditions and in other classes, but not in functions."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            name = f"{prefix}{node.name}"
            line = first_line(node)
            forward = any(isinstance(item, ast.FunctionDef) and item.name == "forward" for item in node.body)
            bases = tuple(dict.fromkeys(_named(base) for base in node.bases))
            yield ClassEntry(name, bases, line, "".join(lines[line - 1 : node.end_lineno]), forward)
            yield from _classes(lines, node.body, f"{name}.")
        elif isinstance(node, (ast.If, ast.Try, ast.With)):
            for part in ("body", "orelse", "finalbody"):
                yield from _classes(lines, getattr(node, part, []), prefix)


def _named(base: ast.expr) -> str:
    """A base as it is written, if that is a name with dots; nothing else is ever looked for."""
    parts = []
    while isinstance(base, ast.Attribute):
        parts.append(base.attr)
        base = base.value
    return ".".join([base.id, *reversed(parts)]) if isinstance(base, ast.Name) else ""
