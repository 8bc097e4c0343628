"""What to tell a person of a part that is no longer rewritten: where, what was expected, what is there, what to edit.

The edit is found by trying: names that are near the old ones are put into the block, and the rewriter says whether the
part then matches as it did. Nothing is guessed that the rewriter does not confirm.
"""

from __future__ import annotations

import ast
import difflib
import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import patchkit.arch
from patchkit.arch.spec import (
    BLOCKS,
    Architecture,
    Attention,
    Block,
    GatedMLP,
    LanguageModel,
    Part,
    SharedInput,
)
from patchkit.check.static.findings import Finding, Owner, owner_of_forward
from patchkit.check.static.records import Record
from patchkit.errors import RewriteError
from patchkit.escaping import is_name, string_literal
from patchkit.rewrite.sites import RuleName
from patchkit.upstream.classes import class_table
from patchkit.upstream.release import Release, module_path
from patchkit.upstream.text import failures_of, parsed_alone, split_lines

_NEAR = 4
"""How many names are tried in place of one that is gone."""

_MOST_TRIALS = 80

_MOST_NAMES, _LONGEST_NAME = 200, 80
"""How many names of a class are compared, and by how many letters: to compare takes time that grows with both."""


@dataclass(frozen=True)
class Edit:
    """A change of an architecture's description after which the part is rewritten as before.

    Attributes:
        before: the description now, as Python.
        after: the description that works.
        diff: the same as a unified diff of the architecture file; empty if that file is not found (a plugin's).
    """

    before: str
    after: str
    diff: str


@dataclass(frozen=True)
class Diagnosis:
    """One part of one class that is not rewritten as it was.

    Attributes:
        path: file in the release.
        line: 1-based; 0 if there is no such place.
        class_name: the class.
        part: the part of the model.
        expected: what the last known release had.
        found: what this release has.
        text: the line of the release that ``line`` points to.
        edit: the smallest edit that repairs it, if one is found.
    """

    path: str
    line: int
    class_name: str
    part: Part
    expected: str
    found: str
    text: str
    edit: Edit | None


def diagnose(
    release: Release, architecture: Architecture, block: Block, finding: Finding, part: Part, known: Record | None
) -> Diagnosis:
    """Explain why a part is not rewritten as it was, and look for the edit that repairs it.

    Args:
        release: where it was found.
        architecture: whose block it is.
        block: the block, as the architecture file has it.
        finding: what was found.
        part: the part of the model.
        known: the last earlier release in which it was rewritten, or None.

    Raises:
        ReleaseError: a file of the release cannot be read.
    """
    outcome = finding.parts[part]
    line, text = finding.line, ""
    owner = owner_of_forward(release, architecture.module, finding.class_name)
    if isinstance(owner, Owner):
        line = _line_of(owner, block, part) or finding.line
        lines = split_lines(owner.text)
        text = lines[line - 1].strip() if 0 < line <= len(lines) else ""
    expected = "a part that a rule knows"
    wanted = _whole(part)
    if known is not None:
        before = known.finding.parts[part].rules
        wanted = (before,)
        expected = f"{_said(before)}, as in {known.finding.release} ({known.finding.path}:{known.finding.line})"
    found = "; ".join(outcome.reasons) or _said(outcome.rules)
    if outcome.absent and isinstance(owner, Owner):
        found += f" (it calls {', '.join(_called(owner.entry.text)) or 'nothing of its own'})"
    try:
        with failures_of(finding.path, "no edit can be looked for"):
            edit = _find_edit(release, architecture, block, finding, part, wanted)
    except RewriteError:
        edit = None
    return Diagnosis(finding.path, line, finding.class_name, part, expected, found, text, edit)


def _whole(part: Part) -> tuple[tuple[RuleName, ...], ...]:
    """What the sites of a part may be where nothing is known of it: one, of any rule that rewrites all of it."""
    from patchkit.rewrite.rules.registry import rules_of  # imports libcst, as below

    return tuple((rule.name,) for rule in rules_of(part) if rule.whole)


def _said(rules: tuple[RuleName, ...]) -> str:
    return f"rule {' + '.join(rules)}"


def _line_of(owner: Owner, block: Block, part: Part) -> int | None:
    """The line that the rewriter's reason points to."""
    try:
        rewritten = owner.rewrite(block)
    except RewriteError:
        return None
    return next((skip.line for skip in rewritten.skips if skip.part == part and skip.line), rewritten.line)


# ---- the edit


def _find_edit(
    release: Release,
    architecture: Architecture,
    block: Block,
    finding: Finding,
    part: Part,
    wanted: tuple[tuple[RuleName, ...], ...],
) -> Edit | None:
    """The first of the candidates, nearest first, with which the part is rewritten by one of the rules wanted."""
    candidates: Iterable[tuple[str, Block]]
    if not finding.line:
        candidates = itertools.islice(_renamed_classes(release, architecture, block), _MOST_TRIALS)
    else:
        owner = owner_of_forward(release, architecture.module, finding.class_name)
        if not isinstance(owner, Owner) or finding.class_name != block.class_name:
            return None
        renamed = itertools.islice(_renamed_attributes(owner, block), _MOST_TRIALS)
        candidates = ((architecture.module, candidate) for candidate in renamed)
    for module, candidate in candidates:
        if _rules(release, module, candidate, part) in wanted:
            return _edit(architecture, block, module, candidate)
    return None


def _rules(release: Release, module: str, block: Block, part: Part) -> tuple[RuleName, ...] | None:
    """By which rules a part of a described block is rewritten; None if something of it is left."""
    from patchkit.rewrite.rewriter import rewrite  # imports libcst: needed for a part that drifted, and not before

    owner = owner_of_forward(release, module, block.class_name)
    if not isinstance(owner, Owner):
        return None
    entry = owner.entry
    try:
        # The class alone: parsing the whole file would take most of the time of a trial.
        nested = "." in entry.name
        named = replace(block, class_name=entry.name)
        rewritten = owner.rewrite(block) if nested else rewrite(entry.text, named)
    except RewriteError:
        return None
    if rewritten.skips:
        return None
    return tuple(site.rule for site in rewritten.sites if site.part == part)


def _renamed_classes(release: Release, architecture: Architecture, block: Block) -> Iterator[tuple[str, Block]]:
    """The same class in another module, then classes of near names in the module, then in other modules.

    With its usual names first, then with the attributes that its ``forward`` calls.
    """
    own = architecture.module
    modules = {own: _text(release, module_path(own))}
    declaration = re.compile(rf"^class {re.escape(block.class_name)}\b", re.MULTILINE)
    for path in release.model_files():
        text = _text(release, path)
        module = path.removesuffix(".py").replace("/", ".")
        if declaration.search(text) and is_name(module) and module_path(module) == path:
            modules.setdefault(module, text)
    for module, text in sorted(modules.items(), key=lambda item: (item[0] != own, -_likeness(item[0], own))):
        try:
            table = class_table(text, module_path(module))
        except RewriteError:
            continue
        names = [name for name in table.classes if module == own or name == block.class_name]
        for name in sorted(names, key=lambda name: -_likeness(name, block.class_name)):
            yield module, replace(block, class_name=name)


def _text(release: Release, path: str) -> str:
    """Text of a file in which a class is looked for; empty if there is none."""
    try:
        return release.read(path) or ""
    except RewriteError:
        return ""


def _renamed_attributes(owner: Owner, block: Block) -> Iterator[Block]:
    """The block with other names for the attributes that ``forward`` does not call, the nearest names first."""
    called = _called(owner.entry.text)
    roles = [role for role in _roles(block) if getattr(block, role) not in called]
    if isinstance(block, GatedMLP) and not block.gate_up and {"gate", "up"} <= set(roles):
        rest = [role for role in roles if role not in {"gate", "up"}]
        yield from _combined(replace(block, gate="gate_proj", up="up_proj"), ["gate_up", *rest], called)
    yield from _combined(block, roles, called)


def _combined(block: Block, roles: list[str], called: list[str]) -> Iterator[Block]:
    taken = {getattr(block, role) for role in _roles(block) if role not in roles}
    free = [name for name in called if name not in taken]
    wanted = {role: getattr(block, role) or "gate_up_proj" for role in roles}
    likeness = {(role, name): _likeness(name, wanted[role]) for role in roles for name in called}
    choices = [_nearest(free, old) for old in wanted.values()]
    combinations = (names for names in itertools.product(*choices) if len(set(names)) == len(names))
    for names in sorted(
        combinations, key=lambda names: -sum(likeness[pair] for pair in zip(roles, names, strict=True))
    ):
        if names:
            changes: dict[str, Any] = dict(zip(roles, names, strict=True))
            yield replace(block, **changes)


def _nearest(names: Iterable[str], old: str) -> list[str]:
    return sorted(names, key=lambda name: -_likeness(name, old))[:_NEAR]


def _roles(block: Block) -> tuple[str, ...]:
    """The fields of a block that name what ``forward`` calls, each one attribute."""
    if isinstance(block, SharedInput):
        return ()
    if isinstance(block, Attention):
        return ("q", "k", "v", "o") if block.o else ("q", "k", "v")
    if isinstance(block, LanguageModel):
        return ("head",)
    inputs = ("gate", "up") if isinstance(block, GatedMLP) else ("up",)
    if isinstance(block, GatedMLP) and block.gate_up:
        inputs = ("gate_up",)
    return (*inputs, "down") if block.activation_function else (*inputs, "down", "activation")


def _called(class_source: str) -> list[str]:
    """Attributes of self that a class's methods call, in the order of the text; those of ``forward`` are among them."""
    try:
        tree = ast.Module(parsed_alone(class_source), [])
    except RewriteError:
        return []
    calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    names = (func for func in calls if isinstance(func, ast.Attribute) and isinstance(func.value, ast.Name))
    called = dict.fromkeys(func.attr for func in names if func.value.id == "self")  # type: ignore[attr-defined]
    return list(called)[:_MOST_NAMES]


def _likeness(name: str, old: str) -> float:
    """How near two names are: 1 for the same. The first letter counts double: q of q_proj is q of query."""
    ratio = difflib.SequenceMatcher(None, name.lower()[:_LONGEST_NAME], old.lower(), autojunk=False).ratio()
    return ratio + (0.5 if name[:1].lower() == old[:1].lower() else 0.0)


# ---- the edit as text


def _edit(architecture: Architecture, block: Block, module: str, candidate: Block) -> Edit:
    """The edit from one description to another; of the module's name too if the class has moved."""
    before, after = described(block), described(candidate)
    changes = {before: after} if before != after else {}
    if module != architecture.module:
        changes[f"module={string_literal(architecture.module)}"] = f"module={string_literal(module)}"
    return Edit("\n".join(changes), "\n".join(changes.values()), _file_diff(architecture, block, candidate, module))


def described(block: Block) -> str:
    """A block as an architecture file writes it: only what is not the default."""
    return f"{type(block).__name__}({', '.join(words_of(block))})"


def words_of(block: Block) -> list[str]:
    """The arguments of :func:`described`, one by one."""
    words = [string_literal(block.class_name)]
    for field in fields(block):
        value = getattr(block, field.name)
        if field.name != "class_name" and value != field.default:
            words.append(f"{field.name}={_literal(value)}")
    return words


def _literal(value: str | tuple[Any, ...] | None) -> str:
    """What a word says, as Python."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_literal, value))}{',' if len(value) == 1 else ''})"
    return "None" if value is None else string_literal(value)


def _file_diff(architecture: Architecture, block: Block, candidate: Block, module: str) -> str:
    file = architecture_file(architecture)
    if file is None:
        return ""
    text = file.read_text("utf-8")
    new = text
    for node in ast.walk(ast.parse(text)):
        segment = ast.get_source_segment(text, node) if isinstance(node, ast.Call) else None
        if segment and _is_block(segment, block):
            new = new.replace(segment, described(candidate))
    if module != architecture.module:
        new = new.replace(string_literal(architecture.module), string_literal(module))
    name = f"patchkit/arch/{file.name}"
    lines = difflib.unified_diff(text.splitlines(), new.splitlines(), f"a/{name}", f"b/{name}", n=1, lineterm="")
    return "\n".join(lines)


def _is_block(expression: str, block: Block) -> bool:
    """Whether a call in an architecture file describes this block. Such a file is ours, and data."""
    try:
        call = ast.parse(expression, mode="eval").body
        assert isinstance(call, ast.Call)
        words = {keyword.arg or "": ast.literal_eval(keyword.value) for keyword in call.keywords}
        kind = {block.__name__: block for block in BLOCKS}[getattr(call.func, "id", "")]
        described_block = kind(*(ast.literal_eval(argument) for argument in call.args), **words)
    except (KeyError, ValueError, TypeError):
        return False
    return described_block == block


def architecture_file(architecture: Architecture) -> Path | None:
    """The file of patchkit that describes an architecture; None for a plugin's."""
    for folder in patchkit.arch.__path__:
        for file in sorted(Path(folder).glob("*.py")):
            if re.search(rf'^\s+name="{re.escape(architecture.name)}",', file.read_text("utf-8"), re.MULTILINE):
                return file
    return None
