"""``patchkit doctor``: runs a training script up to its first backward, and says what stops its model from being fused.

The script runs in this process, as ``python script.py`` would run it, until something is differentiated. By then the
model is as it trains: with its adapters, quantisation, hooks and wrappers. Nothing is trained and nothing is saved,
unless the script does so before.
"""

from __future__ import annotations

import gc
import os
import runpy
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchkit.cli.console import SafeConsole, error_console, output_console
from patchkit.errors import PatchkitWarning
from patchkit.escaping import indented

if TYPE_CHECKING:
    from torch import nn

    from patchkit.reporting import Report

_OWN = str(Path(__file__).parents[1]) + os.sep


class _FirstBackward(BaseException):  # no Exception: those a trainer may catch
    """The script came to its first backward."""


def doctor(
    script: Annotated[Path, typer.Argument(help="A training script.", exists=True, dir_okay=False)],
    arguments: Annotated[list[str] | None, typer.Argument(help="Arguments of the script; after --.")] = None,
) -> None:
    """Run a training script up to its first backward, and say what stops its model from being fused.

    Every reason comes with what to change; the reason of most parts comes first.

    Exit code 0: everything that has an adapter is fused; 1: something is to be changed; 2: the script fails, or makes
    no model with adapters.
    """
    models, ended = at_first_backward(script, arguments or [])
    if not models:
        error_console().print(
            f"patchkit: error: {script} made no model with adapters before {ended or 'its first backward'}. "
            "It must come to its first training step; give it the arguments that it needs after --."
        )
        raise typer.Exit(2)
    console = output_console()
    if ended:
        console.print(f"The script came to {ended} before a backward.")
    fused = [_examined(console, model) for model in models]
    if not all(fused):
        raise typer.Exit(1)


def at_first_backward(script: Path, arguments: list[str]) -> tuple[list[nn.Module], str]:
    """Run a script as the main program, until its first backward; what it prints goes to standard error.

    Returns:
        The models with adapters that are alive then, and what it came to before a backward; empty if it came to one.
    """
    before = sys.argv, list(sys.path)
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.resolve().parent))
    try:
        with _stopping_at_backward(), redirect_stdout(sys.stderr):
            kept = runpy.run_path(str(script), run_name="__main__")
        models = adapted_models()
        del kept  # its variables, which hold the models
        return models, "its end"
    except _FirstBackward:
        return adapted_models(), ""
    except SystemExit as error:
        return adapted_models(), f"exit code {error.code}" if error.code else "its end"
    except Exception as error:
        return adapted_models(), indented(f"{type(error).__name__}: {error}")
    finally:
        sys.argv, sys.path[:] = before


@contextmanager
def _stopping_at_backward() -> Iterator[None]:
    import torch

    original = torch.autograd.backward

    def stopping(*arguments: Any, **options: Any) -> Any:
        if _is_of_apply(sys._getframe(1)):
            return original(*arguments, **options)
        raise _FirstBackward

    torch.autograd.backward = stopping  # Tensor.backward looks it up there
    try:
        yield
    finally:
        torch.autograd.backward = original


def _is_of_apply(frame: Any) -> bool:
    """Whether patchkit is at work: what ``apply`` verifies on a tiny model is differentiated too."""
    while frame is not None and frame.f_code.co_filename != __file__:
        if frame.f_code.co_filename.startswith(_OWN):
            return True
        frame = frame.f_back
    return False


def adapted_models() -> list[nn.Module]:
    """The models with adapters that are alive: modules that are part of no other one."""
    import torch

    from patchkit.adapters.registry import carries_adapter
    from patchkit.module_tree import children_of, named_modules

    modules = [one for one in gc.get_objects() if issubclass(type(one), torch.nn.Module)]
    parts = {id(child) for module in modules for child in children_of(module).values()}
    roots = [module for module in modules if id(module) not in parts]
    return [root for root in roots if any(carries_adapter(module) for _, module in named_modules(root))]


def _examined(console: SafeConsole, model: nn.Module) -> bool:
    """Print what a model is and what to change; whether everything is fused."""
    import patchkit
    from patchkit.binding.patch import patch_of
    from patchkit.module_tree import named_modules

    patched = any(patch_of(module) is not None for _, module in named_modules(model))
    if patched:
        found = patchkit.report(model)
    else:
        console.print("patchkit.apply was not called on this model. Call it after the adapters are made; then:")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PatchkitWarning)  # it is printed below
            found = patchkit.apply(model)
    console.print(str(found))
    _print_advice(console, found)
    return patched and not found.advice


def _print_advice(console: SafeConsole, found: Report) -> None:
    if not found.advice:
        console.print("Everything that has an adapter runs fused.")
    for number, one in enumerate(found.advice, 1):
        console.print(f"{number}. {one.count} of {len(found.rows)} parts: {one.reason}")
        console.print(f"   {one.text}")
