"""The gradients of projections' tensors as sums over tiles of tokens, where dy and x are known a tile at a time.

The formulas: :mod:`patchkit_kernels.lora.backward`. Each is a sum over tokens, added up in float32 at least and rounded
once. Where all tokens are one tile there is nothing to add up, and the gradients are those of that module.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from patchkit_kernels.lora.backward import parameter_backward
from patchkit_kernels.lora.bf16x3 import bf16x3
from patchkit_kernels.lora.call import AdapterFlow, AdapterGrads, AdapterNeeds, Flow, Grads, Needs, ProjectionFlow
from patchkit_kernels.lora.low_rank import drop, dropped_d_lora_a, one_d_lora_b
from patchkit_kernels.lora.projection import Adapter, Precision, Projection, present
from patchkit_kernels.lora.wide_sums import WideSum, wide_column_sum, wide_product


class TileSums:
    """What is gathered of the projections of one call.

    Args:
        projections: as they were given; gradients have the dtypes of their tensors.
        alone: whether there is one tile only.
    """

    def __init__(self, projections: Sequence[Projection], *, alone: bool) -> None:
        self._projections, self._alone = projections, alone
        self._found: list[Grads | None] = [None] * len(projections)
        self._sums = [_ProjectionSums(projection) for projection in projections]

    def add(self, flow: Flow, x: Tensor | None) -> None:
        """Add one tile.

        Args:
            flow: what flows back through every projection.
            x: their input, ``[tile, in]``; may be None if no W and no A needs a gradient.
        """
        if self._alone:
            self._found = parameter_backward(flow, x)
            return
        for sums, one in zip(self._sums, flow.projections, strict=True):
            sums.add(_present(one), x, flow.precision)

    def result(self) -> list[Grads | None]:
        """The gradients of each projection; None for all of one where nothing was added."""
        return self._found if self._alone else [sums.result() for sums in self._sums]


def _present(flow: ProjectionFlow | None) -> ProjectionFlow:
    assert flow is not None  # narrows the type: something flows back through all projections of an MLP, or none
    return flow


class _ProjectionSums:
    def __init__(self, projection: Projection) -> None:
        self._projection = projection
        self._needs: Needs | None = None
        self._weight, self._bias = WideSum(), WideSum()
        self._adapters = [_AdapterSums() for _ in projection.adapters]

    def add(self, flow: ProjectionFlow, x: Tensor | None, precision: Precision) -> None:
        self._needs = flow.needs
        if flow.needs.weight:
            self._weight.add(wide_product(flow.base.to(precision.base).t(), present(x).to(precision.base)))
        if flow.needs.bias:
            self._bias.add(wide_column_sum(flow.output))
        # From the last adapter to the first.
        for one, sums in zip(flow.adapters, reversed(self._adapters), strict=True):
            of_weight = flow.needs.weight and one.term.dropped_product is not None
            in_pieces = not of_weight and x is not None and bf16x3(x, precision)
            read = _input_of(one, x, precision) if not in_pieces and (one.needs.lora_a or of_weight) else None
            sums.add(one, x if in_pieces else read, precision)
            if of_weight:
                self._weight.add(wide_product(present(one.term.dropped_product).to(precision.lora).t(), present(read)))

    def result(self) -> Grads | None:
        if self._needs is None:
            return None
        weight, bias, adapters = self._projection
        found = zip(self._adapters, adapters, self._needs.adapters, strict=True)
        return Grads(
            self._weight.rounded(weight) if self._needs.weight and isinstance(weight, Tensor) else None,
            self._bias.rounded(present(bias)) if self._needs.bias else None,
            [sums.result(adapter, needs) for sums, adapter, needs in found],
        )


class _AdapterSums:
    def __init__(self) -> None:
        self._lora_a, self._lora_b, self._bias, self._factor = WideSum(), WideSum(), WideSum(), WideSum()

    def add(self, flow: AdapterFlow, read: Tensor | None, precision: Precision) -> None:
        """Add one tile, of which this adapter read d(x); x itself in its place for a product in pieces."""
        adapter, needs, kept, term, reduced = flow
        if needs.lora_a and present(read).dtype == present(reduced).dtype:
            self._lora_a.add(wide_product(present(reduced).t(), present(read)))
        elif needs.lora_a:
            self._lora_a.add(dropped_d_lora_a(present(reduced), present(read), kept.mask, adapter))
        if needs.lora_b and bf16x3(term.low_rank, precision):
            self._lora_b.add(one_d_lora_b(term.low_rank, present(kept.reduced), adapter, precision))
        elif needs.lora_b:
            product = wide_product(term.low_rank.to(precision.lora).t(), present(kept.reduced))
            self._lora_b.add(product.mul_(adapter.scaling))
        if needs.bias:
            self._bias.add(wide_column_sum(term.low_rank).mul_(adapter.scaling))
        if needs.factor:
            self._factor.add(present(term.factor))

    def result(self, adapter: Adapter, needs: AdapterNeeds) -> AdapterGrads:
        return AdapterGrads(
            self._lora_a.rounded(adapter.lora_a) if needs.lora_a else None,
            self._lora_b.rounded(adapter.lora_b) if needs.lora_b else None,
            self._bias.rounded(present(adapter.bias)) if needs.bias else None,
            self._factor.rounded(present(adapter.factor)) if needs.factor else None,
        )


def _input_of(flow: AdapterFlow, x: Tensor | None, precision: Precision) -> Tensor:
    """d(x) in the dtype of the adapter's products."""
    rows = present(x).to(precision.lora)
    return rows if not flow.adapter.dropout else drop(rows, present(flow.kept.mask), flow.adapter)
