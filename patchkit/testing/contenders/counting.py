"""What a contender's step keeps, moves and computes: counted on tensors without data, the same on every machine."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from patchkit.estimation.fake import without_data
from patchkit.estimation.live import LiveBytes, Roles
from patchkit.estimation.traffic import Traffic, Work
from patchkit.testing.contenders.cell import Cell
from patchkit.testing.contenders.kinds import Contender
from patchkit.testing.contenders.models import build_model
from patchkit.testing.contenders.not_run import NotRunError
from patchkit.testing.contenders.runs import Run, function_of


@dataclass(frozen=True)
class Counts:
    """Of one forward and backward; nothing was run for them.

    Attributes:
        bytes_kept: between forward and backward, outputs included; parameters and inputs are not counted.
        peak_bytes: at most, gradients included; likewise.
        flops: of matrix products.
        operations: that read or write data. An op of patchkit is one.
        bytes_moved: read and written by these.
        work: the same, one kind of operation after the other.
    """

    bytes_kept: int
    peak_bytes: int
    flops: int
    operations: int
    bytes_moved: int
    work: Counter[Work]

    def as_dict(self) -> dict[str, int]:
        """The totals, for JSON."""
        return {
            name: getattr(self, name) for name in ("bytes_kept", "peak_bytes", "flops", "operations", "bytes_moved")
        }


def count(contender: Contender, cell: Cell) -> Counts:
    """Trace one step of a contender.

    Raises:
        NotRunError: it cannot be traced. What a compiler makes of a step is not known before it is compiled, and what
            bitsandbytes or another library's kernel computes needs values.
    """
    if contender.not_traced:
        raise NotRunError(contender.not_traced)
    if cell.nf4:
        raise NotRunError("a weight in four bits has no shape without its values")
    mode = FakeTensorMode()
    model = without_data(build_model(cell, adapters=contender.adapters, device="meta"), mode, cell.device)
    contender.patch(model)
    function, shapes = function_of(model, cell, fused=contender.fused)
    run = Run(model, function, shapes, cell, fake=mode)
    try:
        return _traced(run, model, mode)
    except NotRunError:
        raise
    except Exception as error:
        raise NotRunError(f"it cannot be traced ({type(error).__name__}: {error})") from error


def _traced(run: Run, model: torch.nn.Module, mode: Any) -> Counts:
    with mode:
        run.grads = [torch.empty_like(one) for one in run.forward()]
    existing = [*model.parameters(), *model.buffers(), *run.inputs, *run.grads]
    live, traffic = LiveBytes(existing, Roles({}, {})), Traffic()
    with mode, live, traffic:
        outputs = run.forward()
        kept = sum(live.kept().values())
        run.backward(outputs)
    peak = max(span.peak for span in live.spans.values())
    return Counts(kept, peak, traffic.flops, traffic.operations, traffic.bytes, traffic.work)
