"""``patchkit``: the entry point, which knows the commands and turns errors into exit codes.

Exit codes: 0 for success, 1 where ``check`` or ``watch`` found a fault, 2 for wrong usage, a wrong environment or a
fault of patchkit itself, 130 after Ctrl-C.
"""

from __future__ import annotations

import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from patchkit.cli.adopt import adopt
from patchkit.cli.archs import archs
from patchkit.cli.bench import bench
from patchkit.cli.cache import cache
from patchkit.cli.check import check
from patchkit.cli.console import error_console, own_output
from patchkit.cli.diff import diff
from patchkit.cli.doctor import doctor
from patchkit.cli.env import env
from patchkit.cli.estimate import estimate
from patchkit.cli.matrix import matrix
from patchkit.cli.new_arch import new_arch
from patchkit.cli.scan import scan
from patchkit.cli.several_values import SeveralValues
from patchkit.cli.tune import tune
from patchkit.cli.watch import watch
from patchkit.errors import PatchkitError
from patchkit.escaping import indented
from patchkit.version import __version__

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 and the number of the signal, as shells count."""


class PatchkitGroup(TyperGroup):
    """Shows an error of patchkit, or an interruption, as one line and an exit code, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except PatchkitError as error:
            error_console().print(f"patchkit: error: {indented(str(error))}")
            raise typer.Exit(2) from error
        except SystemExit as error:  # of code that was loaded: no command ends so, and none is done by it
            error_console().print(f"patchkit: error: something ended the command ({error!r}) before it was done")
            raise typer.Exit(2) from error
        except KeyboardInterrupt as error:
            error_console().print("patchkit: interrupted; files are as they were")
            raise typer.Exit(INTERRUPTED) from error


app = typer.Typer(
    name="patchkit",
    cls=PatchkitGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="LoRA fine-tuning of transformers models in less memory, with the numbers of plain PEFT.",
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
app.command()(doctor)
app.command()(env)
app.command()(archs)
app.command(cls=SeveralValues)(bench)
app.command()(estimate)
app.command()(tune)
app.command()(check)
app.command()(scan)
app.command()(matrix)
app.command()(watch)
app.command()(adopt)
app.command()(cache)
app.command()(new_arch)


def main() -> None:
    """Entry point of the ``patchkit`` script.

    Python's own exit code for an unexpected exception is 1, which would read as a fault that ``check`` found.
    """
    try:
        with own_output():
            app()
    except KeyboardInterrupt:  # before a command began, or after it
        sys.exit(INTERRUPTED)
    except Exception:
        traceback.print_exc()
        sys.exit(2)


if __name__ == "__main__":
    main()
