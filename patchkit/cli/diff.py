"""``patchkit diff``: what patchkit changes in the source of transformers, as a unified diff.

Reads the installed source without importing it, so neither torch nor transformers is loaded.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.util
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from patchkit.arch.registry import find, select
from patchkit.arch.spec import Architecture, Block
from patchkit.errors import PatchkitError, SourceNotFoundError
from patchkit.escaping import indented, one_line
from patchkit.upstream.text import failures_of, split_lines

if TYPE_CHECKING:
    from patchkit.arch.spec import Part
    from patchkit.rewrite.sites import Rewritten


class PartChoice(str, Enum):
    """The parts of a model, as an option (:data:`patchkit.arch.spec.Part`)."""

    qkv = "qkv"
    o = "o"
    mlp = "mlp"
    linear = "linear"
    loss = "loss"


BY_DEFAULT = (PartChoice.qkv, PartChoice.o, PartChoice.mlp, PartChoice.linear)
"""What is shown if no part is named: what ``patchkit.apply`` patches if nothing is said."""


def diff(
    arch: Annotated[
        list[str], typer.Option("--arch", "-a", metavar="NAME", help="An architecture or a glob; may be repeated.")
    ],
    part: Annotated[
        list[PartChoice] | None,
        typer.Option("--part", help="Only this part of the model; may be repeated. By default all but the loss."),
    ] = None,
    context: Annotated[int, typer.Option("--context", "-U", min=0, help="Unchanged lines around each change.")] = 3,
    no_color: Annotated[bool, typer.Option("--no-color", help="Print plain text, also on a terminal.")] = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page instead, both sources side by side.")
    ] = None,
) -> None:
    """Show what patchkit changes in the installed transformers source of an architecture.

    Prints a unified diff per class, each against the source as it is installed. A line that starts with '#' says
    which places were rewritten by which rule, and what was left alone and why.
    """
    from patchkit.cli.console import error_console, output_console

    console = output_console(colour=not no_color)
    only: frozenset[Part] = frozenset(choice.value for choice in part or BY_DEFAULT)
    failed = False
    selected = select(arch)
    found: list[str] = []
    for architecture in selected:
        try:
            for line in diff_lines(architecture, only, context, shown=selected):
                found.append(line)
                if html is None:
                    console.print(one_line(line), style=style_of(line))
        except PatchkitError as error:
            error_console().print(f"patchkit: error: {indented(str(error))}")
            failed = True
    if html is not None:
        from patchkit.cli.diff_html import page

        html.write_text(page(found, ", ".join(one.name for one in selected)), encoding="utf-8")
        console.print(f"written: {html}")
    if failed:
        raise typer.Exit(2)


@dataclass(frozen=True)
class InstalledSource:
    """The source file of a module of an installed package.

    Attributes:
        distribution: name and version, such as ``transformers-5.23.0``.
        path: the file relative to where packages are installed, with forward slashes.
        text: its content.
    """

    distribution: str
    path: str
    text: str


def read_source(module: str) -> InstalledSource:
    """Find and read the source of a module without importing it or its package.

    Raises:
        SourceNotFoundError: if its package is not installed, or the installed release has no such file.
        RewriteError: if the file is not UTF-8.
    """
    package = module.partition(".")[0]
    spec = importlib.util.find_spec(package)  # of a top-level package: locates it and runs none of it
    if spec is None or not (spec.submodule_search_locations or spec.has_location):
        raise SourceNotFoundError(f"{package} is not installed, so there is no source to compare with")
    try:
        distribution = f"{package}-{importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:  # on the path, but not installed under this name
        distribution = package
    path = f"{module.replace('.', '/')}.py"
    for location in spec.submodule_search_locations or [spec.origin or ""]:  # what has no folder is one file
        if (file := Path(location).parent / path).is_file():
            with failures_of(path, "the source cannot be read"):
                return InstalledSource(distribution, path, file.read_text("utf-8"))
    inner = path.removeprefix(f"{package}/")
    raise SourceNotFoundError(f"{distribution} has no {inner}: this release does not have that model")


def diff_lines(
    architecture: Architecture,
    only: frozenset[Part],
    context: int,
    shown: Collection[Architecture] = (),
) -> Iterator[str]:
    """The lines to print for one architecture: its headers and diffs.

    Args:
        architecture: without blocks of its own, its default text model is shown instead.
        only: the parts of the model to rewrite.
        context: unchanged lines around each change.
        shown: architectures that are shown anyway, so a text model among them is only named.

    Raises:
        SourceNotFoundError: see :func:`read_source`.
        RewriteError: if the source has no such class or cannot be parsed.
    """
    own, blocks = "loss" in only, only - {"loss"}
    if not architecture.blocks and blocks:
        yield from _text_model_lines(architecture, blocks, context, shown)
    if not architecture.blocks and not own:
        return
    source = read_source(architecture.module)
    if architecture.blocks or not blocks:
        yield f"# {architecture.name}"
    for block in architecture.blocks:
        if wanted := blocks.intersection(block.parts):
            yield from _block_lines(source, block, wanted, context)
    if own:
        from patchkit.derivation.language_model import language_models_in

        for model in language_models_in(source.text, source.path):
            yield from _block_lines(source, model, frozenset(model.parts), context)


def _text_model_lines(
    architecture: Architecture, only: frozenset[Part], context: int, shown: Collection[Architecture]
) -> Iterator[str]:
    yield f"# {architecture.name}"
    if not architecture.text_models:
        yield f"# {architecture.name} has no blocks that patchkit rewrites"
        return
    default = find(architecture.text_models[0])
    yield (
        f"# {architecture.name} has no blocks of its own: its text tower is the model that text_config names "
        f"(commonly {', '.join(architecture.text_models)})"
    )
    if default in shown:
        yield f"# {default.name} is shown under its own name"
    else:
        yield f"# the default, {default.name}:"
        yield from diff_lines(default, only, context)


def _block_lines(source: InstalledSource, block: Block, only: frozenset[Part], context: int) -> Iterator[str]:
    from patchkit.rewrite.rewriter import rewrite  # imports libcst, which --help need not wait for

    rewritten = rewrite(source.text, block, only=only, filename=source.path)
    yield f"# {source.path}: {rewritten.class_name}.{rewritten.method}"
    yield from _outcome(rewritten)
    lines = difflib.unified_diff(
        [line.rstrip("\r\n") for line in split_lines(source.text)],
        [line.rstrip("\r\n") for line in split_lines(rewritten.source)],
        fromfile=f"{source.distribution}/{source.path}",
        tofile=f"patchkit/{source.path}",
        n=context,
        lineterm="",
    )
    yield from lines


def _outcome(rewritten: Rewritten) -> Iterator[str]:
    """What was rewritten and what was not, a line each."""
    for site in rewritten.sites:
        yield f"#   rewrote {site.part} (line {site.line}): {', '.join(site.calls)}, rule {site.rule}"
    for skip in rewritten.skips:
        where = f" (line {skip.line})" if skip.line else ""
        yield f"#   skipped {skip.part}{where}: {skip.reason}"
    if not rewritten.sites and not rewritten.skips:
        yield "#   nothing to rewrite"


def style_of(line: str) -> str:
    """How a line of a diff, or a heading between diffs, is shown."""
    if line.startswith(("---", "+++", "#")):
        return "bold"
    return {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")
