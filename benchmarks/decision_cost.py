"""How long the choice of a part's level takes, per call of the part: ``python benchmarks/decision_cost.py``.

The choice is made anew at every call, in Python, before anything is computed. On a GPU that time can hide behind
kernels that are still running; on a CPU it cannot. A tiny llama is enough: the cost depends on how many things are
looked at and not on the size of a tensor.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP

from patchkit.runtime.choice import choose_mlp, choose_shared
from patchkit.runtime.levels import input_of
from patchkit.runtime.methods import submodule
from patchkit.testing import add_lora, tiny_model

TARGET = 15.0
"""Microseconds that the choice for one part may take on a CPU core."""

# A batch takes a few hundred microseconds: long against the clock's resolution, and short against the scheduler's time
# slice, so that most batches are undisturbed even on a busy machine.
CALLS, BATCHES = 10, 2000


class Cost(NamedTuple):
    """One line of the result.

    Attributes:
        part: ``qkv``, ``o`` or ``mlp``.
        state: what the model's adapters are.
        level: the level that is chosen.
        microseconds: median time of one choice.
        fastest: of the fastest batch, which disturbances can only raise.
    """

    part: str
    state: str
    level: str
    microseconds: float
    fastest: float


STATES: dict[str, dict[str, Any]] = {
    "LoRA everywhere": {},
    "LoRA on q and v": {"target_modules": ["q_proj", "v_proj"]},
    "dropout": {"lora_dropout": 0.1},
    "DoRA": {"use_dora": True},
}


def choices(model: nn.Module) -> dict[str, Callable[[], Any]]:
    """For each part, what one call of it does before it computes, on the model's first block that holds it."""
    attention = next(module for module in model.modules() if isinstance(module, LlamaAttention))
    mlp = next(module for module in model.modules() if isinstance(module, LlamaMLP))
    x = torch.randn(2, 3, 64, requires_grad=True)

    def shared(*names: str) -> Callable[[], Any]:
        def choose() -> Any:
            modules = tuple([submodule(attention, name) for name in names])
            return choose_shared(modules, input_of(x))

        return choose

    def gated() -> Any:
        inputs = (submodule(mlp, "gate_proj"), submodule(mlp, "up_proj"))
        down, activation = submodule(mlp, "down_proj"), submodule(mlp, "act_fn")
        return choose_mlp(inputs, down, activation, x, input_of(x))

    return {"qkv": shared("q_proj", "k_proj", "v_proj"), "o": shared("o_proj"), "mlp": gated}


def measure(choose: Callable[[], Any]) -> tuple[float, float]:
    """Median and fastest microseconds of one call."""
    times = []
    for _ in range(BATCHES):
        start = time.perf_counter()
        for _ in range(CALLS):
            choose()
        times.append((time.perf_counter() - start) / CALLS * 1e6)
    return statistics.median(times), min(times)


def costs() -> list[Cost]:
    """Every part in every state."""
    found = []
    for state, config in STATES.items():
        model = add_lora(tiny_model("llama"), **config).train()
        for part, choose in choices(model).items():
            for _ in range(20 * CALLS):
                choose()  # fills the interpreter's inline caches
            gc.disable()  # a collection in the middle is no part of the choice
            found.append(Cost(part, state, choose().level, *measure(choose)))
            gc.enable()
    return found


def main() -> None:
    """Print a table and, with ``--json``, write the figures."""
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file as well")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = costs()
    title = f"microseconds per part and call, median (target: {TARGET:g}); Python {platform.python_version()}"
    table = Table(title=title, title_justify="left")
    for heading in ("part", "adapters", "level"):
        table.add_column(heading)
    for heading in ("µs", "fastest"):
        table.add_column(heading, justify="right")
    for cost in found:
        colour = "green" if cost.microseconds <= TARGET else "red"
        table.add_row(*cost[:3], f"[{colour}]{cost.microseconds:.1f}[/]", f"{cost.fastest:.1f}")
    Console().print(table)
    if options.json:
        settings = {"python": platform.python_version(), "torch": torch.__version__, "machine": platform.machine()}
        # The files that exist call a part "block".
        written = [{"block": cost.part, **dict(zip(Cost._fields[1:], cost[1:], strict=True))} for cost in found]
        options.json.write_text(json.dumps({**settings, "costs": written}, indent=1) + "\n")


if __name__ == "__main__":
    main()
