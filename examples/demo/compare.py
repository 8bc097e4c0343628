"""The comparison: train both models, hold one against the other, and take the adapter back to an unpatched model."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from peft import PeftModel
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

import patchkit
from examples.demo import plot
from examples.demo.console import phase
from examples.demo.tables import loss_table, show_training, summary_table
from examples.demo.text import batches
from examples.demo.training import SEED, Run, add_lora, generate, relative_differences, train_in_turns
from examples.demo.weights import BaseModel, WeightsUnavailableError, cache_folder, gemma, small_random
from patchkit.testing.measure import saved_bytes

LOSS_TOLERANCE = 1e-4
"""The parity contract for training in float32: relative difference of the losses."""

PROMPT = "The with statement is used to"


def compare(
    console: Console,
    *,
    steps: int,
    batch: int,
    length: int,
    rank: int,
    new_tokens: int,
    output: Path,
    small: bool,
    loss: bool,
    memory: str | None,
) -> list[str]:
    """Run the demo.

    Args:
        console: where to print.
        steps: optimizer steps of each run.
        batch: sequences in a step.
        length: tokens in a sequence.
        rank: rank of the adapters.
        new_tokens: tokens to generate with the trained adapter.
        output: folder for the picture and the adapter; made if it is not there.
        small: take the small random model without looking for the real weights.
        loss: compute the loss of the patched model without logits.
        memory: how the MLPs of the patched model save memory.

    Returns:
        What was not equal and should have been; empty if all is well.
    """
    base = _choose(console, small)
    with phase(console, "tokenizing the training text (Python's reference manual)"):
        tokens = batches(base.tokenizer, steps=steps, batch=batch, length=length, seed=SEED)
    plain, patched = _prepare(console, base, rank, loss=loss, memory=memory)
    tokens = tokens.to(patched.model.device)
    with phase(console, "measuring what one step keeps for its backward pass"):
        for run in (plain, patched):
            run.saved_bytes = saved_bytes(partial(run.loss, tokens[0]), exclude=[run.model, tokens])
            run.layers_saved_bytes = saved_bytes(partial(run.layers, tokens[0]), exclude=[run.model, tokens])

    show_training(console, (plain, patched), train_in_turns((plain, patched), tokens), steps)
    console.print(loss_table(plain, patched), summary_table(plain, patched))
    problems = _different_losses(plain, patched)
    output.mkdir(parents=True, exist_ok=True)
    picture = output / "loss_and_memory.png"
    plot.draw(plain, patched, f"LoRA on {base.name}: rank {rank}, {batch} x {length} tokens per step", picture)
    problems += _take_adapter_back(console, base, patched, output / "adapter", new_tokens)
    console.print(f"picture  {picture}\nadapter  {output / 'adapter'}", soft_wrap=True)
    return problems


def _choose(console: Console, small: bool) -> BaseModel:
    if not small:
        try:
            with phase(console, "preparing Gemma 3 270M (about a minute the first time)"):
                base = gemma()
        except WeightsUnavailableError as error:
            console.print(f"[yellow]no Gemma 3 270M:[/] {error}. The demo goes on with a small random model.")
        else:
            console.print(f"      converted weights are kept in {cache_folder()}", style="dim", soft_wrap=True)
            return base
    return small_random()


def _prepare(console: Console, base: BaseModel, rank: int, *, loss: bool, memory: str | None) -> tuple[Run, Run]:
    """The two runs: the same weights and adapters, one model patched."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with phase(console, f"loading {base.name} twice, with LoRA of rank {rank} on every linear layer"):
        plain, patched = (
            Run(name, add_lora(base.load(), rank).to(device), base.learning_rate) for name in ("plain", "patched")
        )
    chosen = f"{', loss=True' if loss else ''}{f', memory={memory!r}' if memory else ''}"
    with phase(console, f"patchkit.apply(model{chosen})"):
        report = patchkit.apply(patched.model, loss=loss, memory=memory)
    console.print(Padding(report, (0, 0, 1, 6)))
    return plain, patched


def _different_losses(plain: Run, patched: Run) -> list[str]:
    differences = relative_differences(plain.losses, patched.losses)
    if all(difference <= LOSS_TOLERANCE for difference in differences):  # false for a NaN too
        return []
    shown = ", ".join(f"{difference:.1e}" for difference in differences)
    return [f"relative differences of the losses exceed {LOSS_TOLERANCE:.0e}: {shown}"]


def _take_adapter_back(console: Console, base: BaseModel, patched: Run, folder: Path, new_tokens: int) -> list[str]:
    """Save the adapter of the patched model, load it into an unpatched one, and let both continue a text."""
    with phase(console, "saving the adapter, loading it into a fresh, unpatched model, and generating with both"):
        patched.model.save_pretrained(folder, save_embedding_layers=False)
        fresh = PeftModel.from_pretrained(base.load(), folder).to(patched.model.device)
        texts = [generate(model, base.tokenizer, PROMPT, new_tokens) for model in (patched.model, fresh)]
        with fresh.disable_adapter():
            untrained = generate(fresh, base.tokenizer, PROMPT, new_tokens)
    table = Table(title="greedy continuation", show_lines=True)
    table.add_column("model", no_wrap=True)
    table.add_column("text")
    titles = ("trained, patched", "trained, unpatched", "not trained")
    for title, text in zip(titles, (*texts, untrained), strict=True):
        table.add_row(title, Text(repr(text)))
    console.print(table)
    return [] if texts[0] == texts[1] else ["the adapter gives other text on an unpatched model"]
