"""Fine-tune a model with LoRA, plain and patched side by side: ``python -m examples.demo``.

The exit code is 1 if the losses of the two runs differ, or if the trained adapter generates another text on an
unpatched model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from examples.demo.console import phase, silence_libraries

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    steps: Annotated[int, typer.Option(min=2, help="Optimizer steps of each run.")] = 12,
    batch: Annotated[int, typer.Option(min=1, help="Sequences in a step.")] = 2,
    length: Annotated[int, typer.Option(min=2, help="Tokens in a sequence.")] = 128,
    rank: Annotated[int, typer.Option(min=1, help="Rank of the adapters.")] = 16,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate.")] = 30,
    output: Annotated[Path, typer.Option(help="Folder for the picture and the adapter.")] = Path("demo-output"),
    small: Annotated[
        bool, typer.Option("--small", help="Use a small random model, even if there are weights.")
    ] = False,
    loss: Annotated[bool, typer.Option("--loss", help="Also compute the loss without logits.")] = False,
    memory: Annotated[
        str | None, typer.Option(help="How MLPs save memory: recompute, tiled, or tiled:N for N tiles.")
    ] = None,
) -> None:
    """LoRA fine-tuning, plain and with patchkit.apply, from the same seed and on the same text."""
    console = Console(highlight=False)
    silence_libraries()
    with phase(console, "importing torch, transformers and peft"):
        from examples.demo.compare import compare
        from patchkit.runtime.memory import memory_of

    try:
        memory_of(memory)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--memory") from None
    problems = compare(
        console,
        steps=steps,
        batch=batch,
        length=length,
        rank=rank,
        new_tokens=new_tokens,
        output=output,
        small=small,
        loss=loss,
        memory=memory,
    )
    for problem in problems:
        console.print(f"[bold red]not equal:[/] {problem}")
    raise typer.Exit(1 if problems else 0)


if __name__ == "__main__":
    app()
