"""Kernels in Triton's interpreter: a program that runs a table of cases, and what it needs around it.

``TRITON_INTERPRET`` is read when a kernel is defined, so the cases run in a subprocess, one for each table. A table's
file, run as a program, calls :func:`print_complaints`; a test calls :func:`complaints_of` on that file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

MARGIN = 2048
"""Elements before and behind a result that a kernel must leave alone."""


def run_device_kernel(op: Any, arguments: Iterable[Any], **keywords: Any) -> Any:
    """What the dispatcher calls for a CUDA tensor, called whatever the tensors' device."""
    return op.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA), *arguments, **keywords)


def complaints_of(program: str) -> dict[str, str | None]:
    """Run a file beside this one in the interpreter: its complaint about each case, by the case's id; None is good."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    path = Path(__file__).with_name(program)
    run = subprocess.run([sys.executable, path], env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    result: dict[str, str | None] = json.loads(run.stdout)
    return result


def print_complaints(cases: Iterable[Any], complaint: Callable[[Any], str | None]) -> None:
    """Print ``complaint(case)``, or the error it raised, for every case as JSON by the case's ``id``."""
    import numpy
    import triton

    assert triton.knobs.runtime.interpret, "set TRITON_INTERPRET=1"
    _repair_bf16()
    numpy.seterr(all="ignore")  # infinities are part of the tests
    torch.set_num_threads(1)
    complaints: dict[str, str | None] = {}
    for case in cases:
        assert case.id not in complaints, f"two cases are called {case.id}"
        try:
            complaints[case.id] = complaint(case)
        except Exception as error:
            complaints[case.id] = f"{type(error).__name__}: {error}"
    json.dump(complaints, sys.stdout)


@contextmanager
def results_in_margins() -> Iterator[None]:
    """Have new tensors lie in the middle of larger buffers, and see that nothing is written beside them."""
    buffers = []

    def in_margins(size: int, dtype: torch.dtype) -> Tensor:
        buffers.append(torch.full((size + 2 * MARGIN,), 123, dtype=dtype))
        return buffers[-1][MARGIN : MARGIN + size]

    def empty_like(tensor: Tensor, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        return in_margins(tensor.numel(), dtype or tensor.dtype).view(tensor.shape)

    def empty(*shape: int, dtype: torch.dtype, **_: Any) -> Tensor:
        return in_margins(torch.Size(shape).numel(), dtype).view(shape)

    with mock.patch("torch.empty_like", empty_like), mock.patch("torch.empty", empty):
        yield
    for buffer in buffers:
        assert (buffer[:MARGIN] == 123).all(), "written before the result"
        assert (buffer[-MARGIN:] == 123).all(), "written behind the result"


def _repair_bf16() -> None:
    """Have Triton 3.9's interpreter do with bf16 what every compiler target does.

    It cuts fp32 off where the targets round to nearest (that the compiled kernels do round is a test of the
    ahead-of-time compiled code), and multiplies matrices of bf16 as if their bits were integers.
    """
    from triton import language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    original_cast, original_dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot

    def cast_impl(self: Any, source: Any, target: Any) -> Any:
        if source.dtype.scalar == tl.float32 and target.scalar == tl.bfloat16:
            rounded = torch.from_numpy(source.data).to(torch.bfloat16)
            return TensorHandle(rounded.view(torch.uint16).numpy(), tl.bfloat16)
        return original_cast(self, source, target)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        a, b = (original_cast(self, x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return original_dot(self, a, b, *rest)

    InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot = cast_impl, create_dot
