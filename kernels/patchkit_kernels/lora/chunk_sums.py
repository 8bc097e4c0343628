"""The gradients of a projection's tensors as sums over chunks of tokens, where dy is known a chunk at a time.

The formulas: :mod:`patchkit_kernels.lora.backward`. Sums over tokens (dW, db, dB, dc, dg) are added up in float32 at
least and rounded once, at the end. What has a row for each token is put together: dx, and dt of every adapter, from
which the low-rank part of dx and dA are one product each, as where there are no chunks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from patchkit_kernels.lora.backward import through_terms
from patchkit_kernels.lora.bf16x3 import bf16x3, low_rank_operands
from patchkit_kernels.lora.call import AdapterFlow, AdapterGrads, AdapterNeeds, Grads, Kept, Needs
from patchkit_kernels.lora.low_rank import dropped_d_lora_a, one_d_lora_b
from patchkit_kernels.lora.projection import Adapter, Precision, Projection, dropout_scale, present
from patchkit_kernels.lora.wide_sums import WideSum, wide_column_sum, wide_product
from patchkit_kernels.ops.dropout import masked_


class _AdapterSums:
    """What is gathered of one adapter."""

    def __init__(self) -> None:
        self.lora_b, self.bias, self.factor = WideSum(), WideSum(), WideSum()
        self.reduced: list[Tensor] = []
        """dt of each chunk."""

    def add(self, flow: AdapterFlow, t: Tensor, precision: Precision) -> None:
        """Add what flows back through the adapter in one chunk."""
        if flow.reduced is not None:
            self.reduced.append(flow.reduced)
        if flow.needs.lora_b:
            self.lora_b.add(one_d_lora_b(flow.term.low_rank, t, flow.adapter, precision))
        if flow.needs.bias:
            self.bias.add(wide_column_sum(flow.term.low_rank).mul_(flow.adapter.scaling))
        if flow.needs.factor:
            self.factor.add(present(flow.term.factor))


class ChunkSums:
    """What is gathered of one projection.

    Args:
        projection: with W and every B in the dtypes of their products.
        needs: which of its tensors need a gradient.
        precision: see :class:`~patchkit_kernels.lora.projection.Precision`.
        flat: x, ``[tokens, in]``.
        x_needed: whether it needs a gradient.
    """

    def __init__(
        self, projection: Projection, needs: Needs, precision: Precision, flat: Tensor, *, x_needed: bool
    ) -> None:
        self._projection, self._needs, self._precision, self._flat = projection, needs, precision, flat
        self._d_x = torch.empty_like(flat, memory_format=torch.contiguous_format) if x_needed else None
        self._weight, self._bias = WideSum(), WideSum()
        self._adapters = [_AdapterSums() for _ in projection.adapters]

    def add(self, part: slice, grad: Tensor, made: Sequence[Kept]) -> None:
        """Add one chunk.

        Args:
            part: its tokens.
            grad: dy of these, ``[chunk, out]``.
            made: of each adapter t, and the direction of DoRA.
        """
        precision, needs = self._precision, self._needs
        flow = through_terms(grad, self._projection, needs, made, precision, x_needed=self._d_x is not None)
        base = flow.base.to(precision.base)
        if self._d_x is not None:
            weight = self._projection.weight
            assert isinstance(weight, Tensor)  # narrows the type: a quantised weight is not computed here
            self._d_x[part] = base @ weight
        if needs.weight:
            self._weight.add(wide_product(base.t(), self._flat[part].to(precision.base)))
        if needs.bias:
            self._bias.add(wide_column_sum(grad))
        # From the last adapter to the first.
        for one, sums, kept in zip(flow.adapters, self._adapters[::-1], made[::-1], strict=True):
            sums.add(one, present(kept.reduced), precision)

    def result(self, projection: Projection, masks: Sequence[Tensor | None]) -> tuple[Tensor | None, Grads]:
        """dx ``[tokens, in]``, or None if it is not needed, and the gradients of the projection's tensors.

        Args:
            projection: with its tensors as they were given, whose dtypes the gradients have.
            masks: of dropout, packed, for each adapter; None where nothing is dropped.
        """
        adapters = [
            self._adapter_grads(*one)
            for one in zip(projection.adapters, self._needs.adapters, self._adapters, masks, strict=True)
        ]
        weight, bias = projection.weight, projection.bias
        assert isinstance(weight, Tensor)  # narrows the type, as above
        d_weight = self._weight.rounded(weight) if self._needs.weight else None
        d_bias = self._bias.rounded(present(bias)) if self._needs.bias else None
        return self._d_x, Grads(d_weight, d_bias, adapters)

    def _adapter_grads(
        self, adapter: Adapter, needs: AdapterNeeds, sums: _AdapterSums, mask: Tensor | None
    ) -> AdapterGrads:
        d_a = None
        if sums.reduced:
            d_t = torch.cat(sums.reduced)
            if needs.lora_a:
                in_pieces = bf16x3(self._flat, self._precision)
                lora_x = self._flat if in_pieces else self._flat.to(self._precision.lora)
                d_a = dropped_d_lora_a(d_t, lora_x, mask, adapter).to(adapter.lora_a.dtype)
            if self._d_x is not None:
                self._add_low_rank(d_t, adapter, mask)
        return AdapterGrads(
            d_a,
            sums.lora_b.rounded(adapter.lora_b) if needs.lora_b else None,
            sums.bias.rounded(present(adapter.bias)) if needs.bias else None,
            sums.factor.rounded(present(adapter.factor)) if needs.factor else None,
        )

    def _add_low_rank(self, d_t: Tensor, adapter: Adapter, mask: Tensor | None) -> None:
        """``dx += dt A``, through the mask if there is one."""
        d_x, lora_a = present(self._d_x), adapter.lora_a.to(self._precision.lora)
        if mask is not None:
            d_x.add_(masked_(d_t @ lora_a, mask, dropout_scale(adapter.dropout)))
        elif bf16x3(self._flat, self._precision):
            d_x.addmm_(*low_rank_operands(d_t, lora_a))
        elif d_x.dtype == d_t.dtype:
            d_x.addmm_(d_t, lora_a)
        else:
            d_x.add_(d_t @ lora_a)
