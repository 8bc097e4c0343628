"""Cutting one method out of the text of a module.

Python's own parser says where the method stands (it is fast, and release files have thousands of lines); libcst then
parses the lines of the method alone. Every other line of the file is carried as text, so it cannot change.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass

from patchkit.errors import RewriteError
from patchkit.upstream.classes import class_named, first_line, method_named
from patchkit.upstream.text import failures_of, parsed, split_lines

MOST_NESTED = 100
"""Levels of the syntax tree of a method beyond which it is not rewritten.

The methods of transformers have up to 30. libcst and the rules go down by recursion: far below this they stay within
Python's limit, and far above it libcst's parser, which is native code, would end the process.
"""


@dataclass(frozen=True)
class MethodText:
    """The text of a module cut in three: the lines before a method, its own lines, and the lines after it.

    Attributes:
        before: everything above the method's first line (its first decorator, if it has one).
        text: the lines of the method, with their indentation and line ends.
        after: everything below it.
        line: line of the method's first line in the module, 1-based.
    """

    before: str
    text: str
    after: str
    line: int


def find_method(source: str, class_name: str, method: str, filename: str) -> MethodText:
    """Cut ``source`` around one method of one class.

    Args:
        source: text of a module.
        class_name: a class at the top level, also under a condition; ``Outer.Inner`` for a nested one.
        method: name of a method written in the body of that class.
        filename: what to call the module in error messages.

    Raises:
        RewriteError: the text does not parse, or has no such class or method, or has several and a condition decides
            which of them Python keeps.
    """
    with failures_of(filename, f"{class_name}.{method} cannot be found"):
        return _cut(source, class_name, method, filename)


def _cut(source: str, class_name: str, method: str, filename: str) -> MethodText:
    node = class_named(parsed(source, filename), class_name, filename)
    function = method_named(node, class_name, method, filename)
    if _depth(function) > MOST_NESTED:
        raise RewriteError(
            f"{filename}:{function.lineno}: class {class_name}: {method} is nested too deeply to rewrite"
        )
    first = first_line(function)
    lines = split_lines(source)
    end = function.end_lineno or function.lineno
    return MethodText("".join(lines[: first - 1]), "".join(lines[first - 1 : end]), "".join(lines[end:]), first)


def _depth(tree: ast.AST) -> int:
    """Levels of a tree, counted without recursion."""
    depth = 0
    level = [tree]
    while level:
        depth += 1
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    return depth
