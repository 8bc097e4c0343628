"""``patchkit``: the entry point, which knows the commands and turns errors into exit codes.

Exit codes: 0 for success, 1 where ``check`` or ``watch`` found a fault, 2 for wrong usage or a wrong environment.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from patchkit.cli.archs import archs
from patchkit.cli.bench import bench
from patchkit.cli.cache import cache
from patchkit.cli.check import check
from patchkit.cli.console import error_console, own_output
from patchkit.cli.diff import diff
from patchkit.cli.env import env
from patchkit.cli.matrix import matrix
from patchkit.cli.watch import watch
from patchkit.errors import PatchkitError
from patchkit.version import __version__


class PatchkitGroup(TyperGroup):
    """Shows an error of patchkit, or an interruption, as one line and exit code 2, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except PatchkitError as error:
            error_console().print(f"patchkit: error: {error}")
            raise typer.Exit(2) from error
        except SystemExit as error:  # of code that was loaded: no command ends so, and none is done by it
            error_console().print(f"patchkit: error: something ended the command ({error!r}) before it was done")
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            error_console().print("patchkit: interrupted; files are as they were")
            raise typer.Exit(2) from error


app = typer.Typer(
    name="patchkit",
    cls=PatchkitGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Exact LoRA fine-tuning kernels for transformers models.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"patchkit {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Declare the options that stand before a command."""


app.command()(diff)
app.command()(env)
app.command()(archs)
app.command()(bench)
app.command()(check)
app.command()(matrix)
app.command()(watch)
app.command()(cache)


def main() -> None:
    """Entry point of the ``patchkit`` script."""
    with own_output():
        app()


if __name__ == "__main__":
    main()
