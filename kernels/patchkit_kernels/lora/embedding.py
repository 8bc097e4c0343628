"""A token embedding with LoRA or DoRA adapters as one autograd function that keeps the token ids for backward.

For ids ``[tokens]``, the table W ``[vocab, hidden]``, gemma's constant e (1 elsewhere) and every adapter j (Hu et al.,
2021, "LoRA", section 4.1; PEFT's ``lora.Embedding``)::

    t_j = A_j[:, ids]^T                       [tokens, rank]
    z   = e W[ids] + e sum_j s_j t_j B_j^T    [tokens, hidden]
    y   = z, or for DoRA (one adapter) (m / n) z

DoRA (Liu et al., 2024, https://arxiv.org/abs/2402.09353, section 4.3) takes n, the norm of each column of W + s (BA)^T
over the vocabulary, as a constant. With c = m / n, or 1 without DoRA, and the gradient dy::

    dt_j = s_j e (c dy) B_j      scattered by id into dA_j
    dB_j = s_j c e (dy^T t_j)
    dc   = sum over tokens of dy z
    dW   = e c dy                scattered by id

c is made before the function by ordinary operations, so that autograd takes its gradient to m by itself. It is
multiplied into B and into the ``[hidden, rank]`` product, so that backward makes nothing of ``[tokens, hidden]`` unless
m or W is trained. As in :mod:`patchkit_kernels.lora.saving`, nothing is kept that upstream does not keep: the ids for
dA and dW, e t for dB, B for dA, z for dc; W, A and m never. Rows of ``padding_idx`` get no gradient from a scatter, as
in ``torch.nn.functional.embedding``; B and m do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from patchkit_kernels.lora.differentiable import differentiable_backward, wants_ordinary_operations, without_autocast
from patchkit_kernels.lora.products import scaled_product
from patchkit_kernels.lora.saving import keep, kept
from patchkit_kernels.lora.shapes import as_rows, with_leading
from patchkit_kernels.lora.stand_in import substitute


class EmbeddingAdapter(NamedTuple):
    """A LoRA adapter of an embedding.

    Attributes:
        lora_a: A, ``[rank, vocab]``.
        lora_b: B, ``[hidden, rank]``.
        scaling: s.
    """

    lora_a: Tensor
    lora_b: Tensor
    scaling: float


class EmbeddingTable(NamedTuple):
    """The tensors of an embedding and of its adapters.

    Attributes:
        weight: W, ``[vocab, hidden]``.
        adapters: any number; one if there is a ``magnitude``.
        padding_idx: the id whose row gets no gradient, or None.
        scale: e, a tensor of one element that is not trained, or None.
        magnitude: m of DoRA, ``[hidden]``, or None.
    """

    weight: Tensor
    adapters: tuple[EmbeddingAdapter, ...] = ()
    padding_idx: int | None = None
    scale: Tensor | None = None
    magnitude: Tensor | None = None


class _Lookup(NamedTuple):
    """What a lookup takes beside the tensors that may be trained.

    Attributes:
        ids: ``[tokens]``.
        scale: e, or None.
        scalings: s of every adapter.
        padding_idx: as in :class:`EmbeddingTable`.
        lora: dtype of the products with B.
    """

    ids: Tensor
    scale: Tensor | None
    scalings: tuple[float, ...]
    padding_idx: int | None
    lora: torch.dtype

    def scaled(self, tensor: Tensor) -> Tensor:
        """e times a new tensor that nobody else holds, with e in the tensor's dtype, as upstream casts it."""
        return tensor if self.scale is None else tensor.mul_(self.scale.to(tensor.dtype))

    def rows(self, weight: Tensor) -> Tensor:
        """e W[ids], ``[tokens, hidden]`` in W's dtype."""
        return self.scaled(F.embedding(self.ids, weight, self.padding_idx))

    def reduced(self, lora_a: Tensor) -> Tensor:
        """e t, ``[tokens, rank]`` in the adapters' precision: e is multiplied in where there is least to multiply."""
        t = F.embedding(self.ids, lora_a.t(), self.padding_idx)
        return self.scaled(t).to(self.lora)

    def scattered(self, rows: Tensor, vocab: int) -> Tensor:
        """``[vocab, width]``: the sum of the rows of each id, none for padding; what ``F.embedding`` does backward."""
        padding = -1 if self.padding_idx is None else self.padding_idx
        return torch.ops.aten.embedding_dense_backward(rows, self.ids, vocab, padding, False)  # type: ignore[no-any-return]


class LoraEmbedding(torch.autograd.Function):
    """See this file's docstring for the formulas."""

    @staticmethod
    def forward(
        ctx: Any,
        ids: Tensor,
        scale: Tensor | None,
        constants: tuple[Any, ...],
        *tensors: Any,
    ) -> Tensor:
        """``[..., hidden]``; saves what this file's docstring says.

        The tensors are W, c (or None), and A and B of every adapter. They are not named: torch.compile leaves the
        context out where a call has as many arguments as forward has parameters, ``*tensors`` counted as one.
        """
        weight, ratio, *factors = tensors
        ctx.constants = constants
        need_weight, need_ratio, *needed = ctx.needs_input_grad[3:]
        y, reduced, z = _embed(_Lookup(ids.reshape(-1), scale, *constants), weight, ratio, factors)
        scatters = need_weight or any(needed[::2])
        ctx.tokens = ids.shape
        read = [None, ratio]
        for need_a, lora_b in zip(needed[::2], factors[1::2], strict=True):
            read += [None, lora_b if need_a else None]
        ctx.save_for_backward(
            ids if scatters else None,
            scale if need_weight or any(needed) else None,
            z if need_ratio else None,
            *[t if need_b else None for t, need_b in zip(reduced, needed[1::2], strict=True)],
            *keep(ctx, (weight, ratio, *factors), read),
        )
        return with_leading(y, ids.unsqueeze(-1))

    @staticmethod
    @without_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """The gradients of W, c and every A and B that needs one."""
        ids, scale, z, *saved = ctx.saved_tensors
        count = len(ctx.constants[0])
        reduced, (weight, ratio, *factors) = saved[:count], kept(ctx, saved[count:])
        if ids is None:  # only its shape matters
            ids = torch.zeros((), dtype=torch.int64, device=weight.device).expand(ctx.tokens)
        lookup, needed = _Lookup(ids.reshape(-1), scale, *ctx.constants), ctx.needs_input_grad[3:]
        found: Sequence[Tensor | None]
        if wants_ordinary_operations([grad]):

            def again(weight: Tensor, ratio: Tensor | None, *factors: Tensor) -> list[Tensor]:
                return [with_leading(_embed(lookup, weight, ratio, factors, reduced, z)[0], ids.unsqueeze(-1))]

            found = differentiable_backward(again, (weight, ratio, *factors), needed, [grad])
        else:
            rows = as_rows(grad)
            d_factors = _factor_gradients(lookup, ratio, factors, reduced, needed[2:], rows)
            d_weight = _d_weight(lookup, weight, ratio, rows) if needed[0] else None
            found = d_weight, (rows.to(z.dtype) * z).sum(0).to(ratio.dtype) if needed[1] else None, *d_factors
        return None, None, None, *found


def lora_embedding(ids: Tensor, table: EmbeddingTable, lora: torch.dtype, norm: Tensor | None = None) -> Tensor:
    """Look token ids up in an adapted embedding.

    Args:
        ids: integers ``[...]`` in ``[0, vocab)``; any shape, empty included.
        table: the tensors; frozen and trainable ones in any mixture.
        lora: the dtype of the products with B: the adapters', or autocast's. The sum is made in the widest of this,
            W's and m's, and rounded once.
        norm: n, ``[hidden]``, if the table has a magnitude; it gets no gradient.

    Returns:
        ``[..., hidden]`` in W's dtype. Differentiable any number of times.

    Raises:
        IndexError: an id is out of range (on CPU; on a GPU a device-side assertion, as with ``torch.nn.Embedding``).
    """
    constants = (tuple(adapter.scaling for adapter in table.adapters), table.padding_idx, lora)
    factors = [tensor for adapter in table.adapters for tensor in (adapter.lora_a, adapter.lora_b)]
    ratio = None if table.magnitude is None or norm is None else table.magnitude / norm
    y: Tensor = LoraEmbedding.apply(  # type: ignore[no-untyped-call]
        ids, table.scale, constants, table.weight, ratio, *factors
    )
    return y


def _embed(
    lookup: _Lookup,
    weight: Tensor,
    ratio: Tensor | None,
    factors: Sequence[Tensor],
    reduced: Sequence[Tensor | None] = (),
    z: Tensor | None = None,
) -> tuple[Tensor, list[Tensor], Tensor]:
    """y in the table's dtype, every e t and z, by ordinary differentiable operations into one buffer.

    With what an earlier call kept of ``reduced`` and ``z``, these values and the derivatives of this computation.
    """
    lora, parts = lookup.lora, []
    y = lookup.rows(weight)
    wide = torch.promote_types(weight.dtype, lora)
    y = y.to(wide if ratio is None else torch.promote_types(wide, ratio.dtype))
    for i, scaling in enumerate(lookup.scalings):
        t, right = lookup.reduced(factors[2 * i]), factors[2 * i + 1].to(lora).t()
        value = reduced[i] if reduced else None
        t = t if value is None else substitute(value, t)
        y = y.addmm_(t, right, alpha=scaling) if y.dtype == lora else y.add_(t @ right, alpha=scaling)
        parts.append(t)
    y = y if z is None else substitute(z, y)
    return (y if ratio is None else y * ratio).to(weight.dtype), parts, y


def _factor_gradients(
    lookup: _Lookup,
    ratio: Tensor | None,
    factors: Sequence[Tensor],
    reduced: Sequence[Tensor | None],
    needed: Sequence[bool],
    grad: Tensor,
) -> list[Tensor | None]:
    """dA and dB of every adapter.

    Args:
        lookup: as in forward, likewise ``ratio`` and ``factors``.
        reduced: e t of each adapter whose B needs a gradient, ``[tokens, rank]``.
        needed: whether each of ``factors`` needs a gradient.
        grad: dy, ``[tokens, hidden]``.
    """
    grad = grad.to(lookup.lora)
    found: list[Tensor | None] = []
    for i, (scaling, t) in enumerate(zip(lookup.scalings, reduced, strict=True)):
        lora_a, lora_b = factors[2 * i], factors[2 * i + 1]
        d_a = d_b = None
        if needed[2 * i]:
            d_t = scaled_product(grad, _by_rows(lora_b, ratio).to(lookup.lora), scaling)
            d_a = lookup.scattered(lookup.scaled(d_t.to(lora_a.dtype)), lora_a.shape[1]).t()
        if t is not None:
            product = scaled_product(grad.t(), t, scaling).to(lora_b.dtype)
            d_b = _by_rows(product, ratio).to(lora_b.dtype)
        found += [d_a, d_b]
    return found


def _by_rows(matrix: Tensor, ratio: Tensor | None) -> Tensor:
    """Row h of a matrix ``[hidden, rank]`` times c_h."""
    return matrix if ratio is None else matrix * ratio.unsqueeze(1)


def _d_weight(lookup: _Lookup, weight: Tensor, ratio: Tensor | None, grad: Tensor) -> Tensor:
    scaled = grad.clone() if ratio is None else (grad * ratio).to(weight.dtype)
    return lookup.scattered(lookup.scaled(scaled), weight.shape[0])
