"""``patchkit bench``: errors, bytes kept, FLOPs, operations and times, patched against plain PEFT."""

from __future__ import annotations

import contextlib
import fnmatch
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from patchkit.cli.check import progress_of
from patchkit.cli.console import error_console, output_console
from patchkit.cli.devices import processor_name, require_device
from patchkit.cli.fitting import fitted
from patchkit.escaping import indented

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from patchkit.testing.comparison import Comparison

_Item = TypeVar("_Item")

HEADINGS = (
    "architecture",
    "q/k/v",
    "o",
    "MLP",
    "output error",
    "gradient error",
    "bytes kept",
    "ratio",
    "matmul FLOPs",
    "ratio",
    "ATen ops",
    "ratio",
)


def bench(
    arch: Annotated[
        list[str] | None,
        typer.Option(
            "--arch", "-a", help="A tiny model, a plugin's architecture, or a glob; repeatable. Default: all."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Device to run on: cpu, cuda, xpu.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    steps: Annotated[int, typer.Option(help="Also time this many steps of each; 0: none.", min=0)] = 0,
    families: Annotated[
        bool, typer.Option("--families", help="Also one model of each family of transformers (minutes).")
    ] = False,
    host: Annotated[
        bool, typer.Option("--host", help="Measure only the host's time, of each block of a layer and of small steps.")
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the results as JSON.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the table as Markdown.")] = None,
    contenders: Annotated[
        bool, typer.Option("--contenders", help="Run ways to train side by side. The options below are for this.")
    ] = False,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            help="tiny, llama-8b, llama-70b, qwen-0.5b, gemma-1b, gemma-4b; one or several, as with what follows."
        ),
    ] = None,
    tokens: Annotated[list[int] | None, typer.Option(help="Tokens of the one sequence.", min=1)] = None,
    rank: Annotated[list[int] | None, typer.Option(help="Rank of every adapter.", min=1)] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(help="A: bfloat16 base, float32 adapters; B: under autocast; C: all bfloat16; or float32."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Contenders: floor, peft, peft-compiled, liger, cast, patchkit, patchkit-fast, ..."),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Samples of every contender; 0: only count.", min=0)] = 5,
    layers: Annotated[
        int, typer.Option(help="A stack of whole decoder layers; 0: q/k/v, o and MLP of one layer.", min=0)
    ] = 0,
    dropout: Annotated[float, typer.Option(help="Dropout of the adapters.", min=0.0, max=0.99)] = 0.0,
    dora: Annotated[bool, typer.Option("--dora", help="Use DoRA.")] = False,
    nf4: Annotated[bool, typer.Option("--nf4", help="Base weights in four bits (bitsandbytes).")] = False,
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Use gradient checkpointing.")] = False,
    rates: Annotated[
        str,
        typer.Option(
            help="Rates for modelled times: h200, or bf16=770,float32=45,pointwise=4.1,skinny=3.4 (TFLOP/s, TB/s)."
        ),
    ] = "",
    budget: Annotated[
        float | None, typer.Option(help="Stop after so many seconds; the rest is listed as not run.", min=0.0)
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a picture (needs matplotlib).")] = None,
) -> None:
    """Compare small random models, patched against plain PEFT; or ways to train side by side (--contenders).

    Counts (bytes, FLOPs, operations) are the same on every machine. Times are medians of steps taken in turn.
    """
    if contenders:
        from patchkit.cli.bench_contenders import Wanted, bench_contenders

        require_device(device)
        lists = {"shapes": shape, "tokens": tokens, "ranks": rank, "precisions": precision, "only": only}
        bench_contenders(
            Wanted(
                **{name: value or [] for name, value in lists.items()},  # type: ignore[arg-type]
                device=device,
                rounds=rounds,
                dropout=dropout,
                dora=dora,
                nf4=nf4,
                checkpointing=checkpointing,
                layers=layers,
                host=host,
                rates=rates,
                budget=budget,
                json_file=json_file,
                plot=plot,
            )
        )
        return
    import torch

    from patchkit.arch.registry import architectures, is_built_in
    from patchkit.errors import TinyModelError
    from patchkit.testing import TINY_MODELS

    if host:
        _host(steps or 100, json_file)
        return
    known = [*TINY_MODELS, *(name for name in architectures() if not is_built_in(name))]
    names = [name for name in known if not arch or any(fnmatch.fnmatchcase(name, pattern) for pattern in arch)]
    if not names:
        error_console().print(
            f"patchkit: error: no tiny model matches {', '.join(arch or ())}. Known: {', '.join(known)}."
        )
        raise typer.Exit(2)
    torch_dtype = getattr(torch, dtype, None)
    if not isinstance(torch_dtype, torch.dtype) or not torch_dtype.is_floating_point:
        error_console().print(f"patchkit: error: {dtype!r} is not a floating dtype of torch")
        raise typer.Exit(2)
    require_device(device)
    torch.set_num_threads(1)  # small products are slower on many threads, and the ratios noisier
    found: list[Comparison] = []
    failed = False
    for name in _shown(names, "comparing"):
        try:
            found += _compared(name, device=device, dtype=torch_dtype, steps=steps)
        except TinyModelError as error:  # of a plugin, which is no reason to leave out the others
            error_console().print(f"patchkit: error: {name}: {indented(str(error))}")
            failed = True
    _print(found)
    settings = _settings(device, dtype)
    results = {"settings": settings, "results": [asdict(one) for one in found]}
    text = _markdown(found, settings)
    if families:
        from patchkit.check.numeric.families import FAMILIES, compare_family
        from patchkit.cli.family_table import markdown_of_families, print_families

        compared = [compare_family(one) for one in _shown(FAMILIES, "families")]
        print_families(compared)
        results["families"] = [asdict(one) for one in compared]
        text += markdown_of_families(compared)
    if json_file:
        json_file.write_text(json.dumps(results, indent=1) + "\n")
    if markdown:
        markdown.write_text(text)
    if failed:
        raise typer.Exit(2)


def _shown(items: Sequence[_Item], text: str) -> Iterator[_Item]:
    """Items one after the other; standard error shows how far it is."""
    with progress_of(text) as advance:
        for done, item in enumerate(items):
            advance(done, len(items), f"{text} {item if isinstance(item, str) else ''}".rstrip())
            yield item


def _host(steps: int, json_file: Path | None) -> None:
    """The tables of :mod:`patchkit.cli.host_table`, on one thread: nothing in them is large enough for more."""
    import torch

    from patchkit.cli.host_table import print_host_times, print_step_times
    from patchkit.testing.block_costs import BLOCK_PRECISIONS, TIMED_PARTS, host_times
    from patchkit.testing.freed_memory import keep_freed_memory
    from patchkit.testing.step_times import SIZES, step_times

    torch.set_num_threads(1)
    kept = keep_freed_memory()
    rows = 2 * len(BLOCK_PRECISIONS)
    found, whole = [], []
    with progress_of("timing") as advance:
        for done, one in enumerate(host_times(steps)):
            advance(done, rows * (len(TIMED_PARTS) + len(SIZES)), f"timing {one.part}, {one.precision}")
            found.append(one)
        for done, step in enumerate(step_times(steps), start=rows * len(TIMED_PARTS)):
            advance(done, rows * (len(TIMED_PARTS) + len(SIZES)), f"timing steps, {step.hidden} wide, {step.precision}")
            whole.append(step)
    print_host_times(found)
    print_step_times(whole)
    if json_file:
        times = {"host": [one._asdict() for one in found], "steps": [step._asdict() for step in whole]}
        settings = {**_versions(), "device": processor_name(), "threads": 1, "freed_memory_kept": kept}
        json_file.write_text(json.dumps({"settings": settings, **times}, indent=1) + "\n")


def _compared(name: str, **settings: Any) -> Iterator[Comparison]:
    """The comparison of a tiny model of patchkit's, or those of a plugin's architecture.

    Raises:
        TinyModelError: there is no tiny model of that architecture, or it has none of its blocks.
    """
    from patchkit.arch.registry import find
    from patchkit.check.numeric.tiny_instances import comparable
    from patchkit.check.numeric.worker import with_adapters
    from patchkit.errors import TinyModelError
    from patchkit.testing import TINY_MODELS
    from patchkit.testing.comparison import ALPHA, BATCH, LENGTH, RANK, SMALL, compare_architecture, compare_patched
    from patchkit.testing.tiny.architectures import tiny_names, tiny_of

    if name in TINY_MODELS:
        yield compare_architecture(name, **settings)
        return
    architecture = find(name)
    for one in tiny_names(architecture) or ("",):
        tiny = tiny_of(architecture, one, batch=BATCH, length=LENGTH)
        sizes = {field: size for field, size in SMALL.items() if hasattr(getattr(tiny.model, "config", None), field)}
        with contextlib.suppress(TinyModelError):  # sizes that do not go together: then smaller ones are compared
            tiny = tiny_of(architecture, one, batch=BATCH, length=LENGTH, **sizes)
        model, inputs = comparable(*tiny)
        adapted = with_adapters(model, r=RANK, lora_alpha=ALPHA)
        if adapted is None:
            raise TinyModelError(f"the tiny model {one} has none of the blocks of {name}")
        shown = name if len(tiny_names(architecture)) == 1 else f"{name} ({one})"
        yield compare_patched(shown, adapted, inputs, **settings)


def _versions() -> dict[str, str]:
    import platform

    import peft
    import torch
    import transformers

    from patchkit.version import __version__

    return {
        "patchkit": __version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "torch": torch.__version__.split("+")[0],
        "python": platform.python_version(),
    }


def _settings(device: str, dtype: str) -> dict[str, Any]:
    import torch

    from patchkit.testing.comparison import ALPHA, BATCH, LENGTH, RANK, SMALL

    name = torch.cuda.get_device_name() if device.startswith("cuda") else device
    return {
        **_versions(),
        "device": name,
        "dtype": dtype,
        "model": {**SMALL, "num_hidden_layers": 2},
        "lora_rank": RANK,
        "lora_alpha": ALPHA,
        "batch": BATCH,
        "length": LENGTH,
    }


def _cells(one: Comparison) -> list[str]:
    plain, patched = one.plain, one.patched
    cells = [one.name, one.levels["qkv"], one.levels["o"], one.levels["mlp"]]
    cells += [f"{one.output_error:.1e}", f"{one.gradient_error:.1e}"]
    for before, after in ((plain.bytes_kept, patched.bytes_kept), (plain.flops, patched.flops)):
        cells += [f"{before / 1e6:.2f} → {after / 1e6:.2f} M", f"{after / before:.3f}"]
    return [*cells, f"{plain.compute_ops} → {patched.compute_ops}", f"{patched.compute_ops / plain.compute_ops:.3f}"]


def _print(found: list[Comparison]) -> None:
    """The ratios alone, so that the table fits a terminal; the Markdown and JSON files have everything."""
    from rich.table import Table

    timed = any(one.seconds for one in found)
    table = Table(title="patched against plain PEFT (ratios are patched / plain)", title_justify="left")
    table.add_column("architecture", no_wrap=True)
    headings = ["qkv, o, mlp", "output error", "gradient error", "bytes kept", "FLOPs", "ops"]
    for heading in (*headings, *(("ms per step", "time") if timed else ())):
        table.add_column(heading, justify="right")
    for one in found:
        there = [level for level in one.levels.values() if level]
        levels = ", ".join(there) if len(set(there)) > 1 else "".join(there[:1])
        plain, patched, seconds = one.plain, one.patched, one.seconds
        pairs = (
            (plain.bytes_kept, patched.bytes_kept),
            (plain.flops, patched.flops),
            (plain.compute_ops, patched.compute_ops),
        )
        cells = [one.name, levels, f"{one.output_error:.1e}", f"{one.gradient_error:.1e}"]
        cells += [f"{after / before:.3f}" for before, after in pairs]
        if seconds:
            cells += [f"{seconds[0] * 1e3:.1f} → {seconds[1] * 1e3:.1f}", f"{seconds[1] / seconds[0]:.3f}"]
        table.add_row(*cells)
    console = output_console()
    if not console.is_terminal:
        console.width = 120  # a file has no width of its own
    console.print(fitted(table, console))


def _markdown(found: list[Comparison], settings: dict[str, Any]) -> str:
    """The table with what it was measured on. Times are left out: they are no property of the library alone."""
    model = ", ".join(f"{key} {value}" for key, value in settings["model"].items())
    lines = [
        "<!-- Generated by `make counts` (patchkit bench --markdown benchmarks/README.md); do not edit. -->",
        "# What each architecture costs",
        "",
        f"transformers {settings['transformers']}, PEFT {settings['peft']}, torch {settings['torch']}, "
        f"patchkit {settings['patchkit']}, {settings['device']}, {settings['dtype']}.",
        "",
        "Each row is one forward and backward of a small random model of the architecture, with LoRA on every text "
        "projection. `a → b` is plain PEFT → patched, and a ratio is patched / plain. The columns:",
        "",
        "* **q/k/v, o, MLP**: *fused* means that the whole part is one autograd function.",
        "* **errors**: the largest relative error ‖a−b‖/‖b‖ of any output, and of any gradient.",
        "* **bytes kept**: tensors that the whole model holds between forward and backward. Attention scores, norms "
        "and the loss are included, parameters are not.",
        "* **ATen ops**: operations that read or write data. Views are not counted.",
        "",
        f"The models have {model}; rank {settings['lora_rank']}, alpha {settings['lora_alpha']}, {settings['batch']} × "
        f"{settings['length']} tokens. The rank-sized product x·Aᵀ is kept if one adapter is trained on each "
        "projection. Otherwise backward computes it again.",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "|---|" + ":-:|" * 3 + "--:|" * (len(HEADINGS) - 4),
    ]
    lines += ["| " + " | ".join(_cells(one)) + " |" for one in found]
    return "\n".join(lines) + "\n"
