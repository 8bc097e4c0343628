"""``patchkit new-arch``: a plugin package for an architecture, ready to run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from patchkit.cli.console import output_console
from patchkit.escaping import one_line


def new_arch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call the architecture.")],
    from_model_type: Annotated[
        str | None,
        typer.Option("--from-model-type", metavar="TYPE", help="Describe a model type of the installed transformers."),
    ] = None,
    from_file: Annotated[
        Path | None,
        typer.Option(
            "--from-file",
            metavar="FILE",
            help="Describe the classes of a file. One that is not installed is copied into the package, "
            "with the files beside it that it imports.",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Where to put the package's folder.", show_default="here")
    ] = Path(),
) -> None:
    """Write a plugin package: the architecture as its source says, a test, and what pip needs to install it.

    Without --from-model-type or --from-file, NAME is the model type. No file that exists is overwritten.
    """
    from patchkit.check.static.drift import described
    from patchkit.scaffolding.description import describe
    from patchkit.scaffolding.package import TINY, names_for, package_of, to_fill_in, write_package
    from patchkit.scaffolding.source import of_file, of_model_type

    if from_file is not None and from_model_type is not None:
        raise typer.BadParameter("say one of --from-model-type and --from-file", param_hint="--from-file")
    names = names_for(name)
    source = of_file(from_file, names.package) if from_file is not None else of_model_type(from_model_type or name)
    found = describe(source)
    folder = out / names.distribution
    files = package_of(names, source, found)
    write_package(folder, files)
    console = output_console()
    console.print(f"{folder}: the architecture {names.architecture}, from the source of {one_line(source.shown)}")
    for block in found.blocks:
        console.print(one_line(f"  {described(block)}: {found.rules[block.class_name]}"))
    for note in found.left_out:
        console.print(one_line(f"  {note}"))
    console.print("written:")
    for path in sorted(files):
        console.print(f"  {folder / path}")
    console.print("next:")
    console.print(f"  cd {folder}")
    console.print('  pip install -e ".[test]"', markup=False)
    if to_fill_in(source):
        console.print(f"  fill in the sizes and the inputs in src/{names.package}/{TINY}.py")
    console.print(f"  patchkit check --arch {names.architecture}")
    console.print("  python -m pytest tests")
