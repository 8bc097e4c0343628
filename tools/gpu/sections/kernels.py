"""Kernels against their references and float64, and the fused functions against upstream's operations, on the device.

The tables of cases are those of ``tests/kernels``: odd sizes, strides, empty and extreme tensors, in float32, bfloat16
and float16. What is demanded of each is said there.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from tools.gpu.cells import Cell, NotRun, Setting, Wrong
from tools.gpu.places import ROOT

FOLDER = ROOT / "tests" / "kernels"
_FIRST = ("swiglu", "geglu_tanh", "geglu_erf", "silu")
_TABLES = ("bf16_pieces", "dropout", "cross_entropy", "dora_norm", "gated_low_rank", "low_rank_backward")
_ON_DEVICE_ALONE = ("activations", "cross_entropy", "dropout", "dora_norm", "gated_low_rank", "low_rank_backward")
_TOGETHER = 16
"""Cases of one cell, where they have no kind of their own."""

Judge = Callable[[Any, str], "str | None"]


def cells(setting: Setting) -> Sequence[Cell]:
    """Fused functions, then the kernels that everything uses, then the others."""
    for folder in (FOLDER, FOLDER / "ops"):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    made = [*_structures(setting), *_activations(setting, _FIRST)]
    for table in _TABLES:
        made += _table(setting, table)
    made += _activations(setting, None)
    return made + [_on_device_alone(setting, name) for name in _ON_DEVICE_ALONE]


def _structures(setting: Setting) -> Iterator[Cell]:
    try:
        table = importlib.import_module("structure_cases")
    except ImportError as error:  # patchkit.testing needs transformers and PEFT; kernels do not
        yield Cell("fused functions", partial(_cannot, str(error)))
        return
    chosen = [one for one in table.CASES if one.structure in ("qkv", "mlp dropout")] if setting.tiny else table.CASES
    for case in chosen:
        yield Cell(f"fused {case.id}", partial(judge, [case], table.complaint, setting.device))
    for base, lora in table.MIXTURES[:1] if setting.tiny else table.MIXTURES:
        name = f"rounding of a gated MLP, {base} with {lora} adapters".replace("torch.", "")
        yield Cell(name, partial(_rounding, table.rounding_failures, base, lora, setting.device))


def _activations(setting: Setting, names: Sequence[str] | None) -> Iterator[Cell]:
    """Cells for each op, direction and dtype; None for the ops that are not among the first."""
    table = importlib.import_module("activation_cases")
    groups: dict[str, list[Any]] = {}
    for case in table.CASES:
        if (case.activation in _FIRST) == (names is not None):
            groups.setdefault(f"{case.activation} {case.direction} {case.dtype}", []).append(case)

    def complaint(case: Any, device: str) -> str | None:
        found: str | None = table.complaint(case, lambda op, tensors: op(*tensors), device)
        return found

    yield from _cells_of(groups, complaint, setting)


def _table(setting: Setting, name: str) -> Iterator[Cell]:
    table = importlib.import_module(f"{name}_cases")
    only: Callable[..., Any] | None = getattr(table, "OP", None)  # a table of several ops says which at each case

    def run(*call: Any) -> Any:
        return only(*call[0]) if only is not None else call[0](*call[1])

    def complaint(case: Any, device: str) -> str | None:
        found: str | None = table.complaint(case, run, device)
        return found

    groups = {
        f"{name} {start} to {min(start + _TOGETHER, len(table.CASES)) - 1}": table.CASES[start : start + _TOGETHER]
        for start in range(0, len(table.CASES), _TOGETHER)
    }
    yield from _cells_of(groups, complaint, setting)


def _cells_of(groups: Mapping[str, Sequence[Any]], complaint: Judge, setting: Setting) -> Iterator[Cell]:
    # A rehearsal takes one group, in float32: only the kernels round once, and a CPU has the references.
    names = [name for name in groups if not name.endswith(("bf16", "fp16"))][:1]
    for name in names if setting.tiny else groups:
        chosen = groups[name][:3] if setting.tiny else groups[name]
        yield Cell(name, partial(judge, chosen, complaint, setting.device))


def judge(cases: Sequence[Any], complaint: Judge, device: str) -> dict[str, Any]:
    """Ask every case, whatever the one before did.

    Raises:
        Wrong: some complain; ``figures`` has the complaints by the cases' ids.
    """
    wrong: dict[str, str] = {}
    for case in cases:
        try:
            said = complaint(case, device)
        except Exception as error:  # a kernel that does not compile for one layout may for the next
            said = f"{type(error).__name__}: {str(error)[:500]}"
        if said is not None:
            wrong[case.id] = said
    figures = {"cases": len(cases)}
    if wrong:
        name, said = next(iter(wrong.items()))
        raise Wrong(f"{len(wrong)} of {len(cases)} cases, the first {name}: {said}", figures | {"complaints": wrong})
    return figures


def _rounding(failures: Callable[..., list[str]], base: Any, lora: Any, device: str) -> None:
    if said := failures(base, lora, device):
        raise Wrong(said[0], {"failures": said})


def _cannot(why: str) -> None:
    raise NotRun(f"the tables of fused functions cannot be imported: {why}")


def _on_device_alone(setting: Setting, name: str) -> Cell:
    """Tests of what only a device shows: equal bits, nothing that waits, tensors of more than 2**31 elements."""
    return Cell(f"pytest test_{name}_gpu.py", partial(_pytest, setting, f"tests/kernels/ops/test_{name}_gpu.py"), 150.0)


def _pytest(setting: Setting, path: str) -> dict[str, Any]:
    if setting.on_cpu:
        raise NotRun("these tests need an accelerator")
    if importlib.util.find_spec("pytest") is None:
        raise NotRun("pytest is not installed")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not test_kernel", path]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    last = (found.stdout.strip().splitlines() or [""])[-1]
    counts = {word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|skipped|error)", last)}
    if found.returncode:
        raise Wrong(last or found.stderr[-300:], {**counts, "output": (found.stdout + found.stderr)[-6000:]})
    return counts
