"""A token embedding with LoRA or DoRA adapters as one autograd function that keeps the token ids for backward.

For ids ``[tokens]``, the table W ``[vocab, hidden]``, gemma's constant e (1 elsewhere) and every adapter j (Hu et al.,
2021, "LoRA", section 4.1; PEFT's ``lora.Embedding``)::

    t_j = A_j[:, ids]^T                       [tokens, rank]
    z   = e W[ids] + e sum_j s_j t_j B_j^T    [tokens, hidden]
    y   = z, or for DoRA (one adapter) (m / n) z

DoRA (Liu et al., 2024, https://arxiv.org/abs/2402.09353, section 4.3) takes n, the norm of each column of W + s (BA)^T
over the vocabulary, as a constant. With c = m / n, or 1 without DoRA, and the gradient dy::

    dt_j = s_j e (c dy) B_j      scattered by id into dA_j
    G_j  = dy^T t_j              dB_j = s_j e c G_j
    dm   = (sum over tokens of dy e W[ids] + e s sum over ranks of G B) / n
    dW   = e c dy                scattered by id

c is multiplied into B and into the ``[hidden, rank]`` product, so that backward makes nothing of ``[tokens, hidden]``
unless m or W is trained, and forward keeps nothing of that size in any case. Rows of ``padding_idx`` get no gradient
from a scatter, as in ``torch.nn.functional.embedding``; B and m do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from patchkit_kernels.differentiable import differentiable_backward, wants_graph


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
        norm: n, ``[hidden]``, or None.
        scalings: s of every adapter.
        padding_idx: as in :class:`EmbeddingTable`.
        lora: dtype of the products with B.
    """

    ids: Tensor
    scale: Tensor | None
    norm: Tensor | None
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

    def ratio(self, magnitude: Tensor | None) -> Tensor | None:
        """c, ``[hidden]``, or None without DoRA."""
        return None if magnitude is None or self.norm is None else magnitude / self.norm


class LoraEmbedding(torch.autograd.Function):
    """See this file's docstring for the formulas."""

    @staticmethod
    def forward(
        ctx: Any,
        ids: Tensor,
        scale: Tensor | None,
        norm: Tensor | None,
        constants: tuple[Any, ...],
        weight: Tensor,
        magnitude: Tensor | None,
        *factors: Tensor,
    ) -> Tensor:
        """``[tokens, hidden]``; saves ids ``[tokens]``, the norm ``[hidden]`` and the parameters."""
        ctx.constants = constants
        ctx.save_for_backward(ids, scale, norm, weight, magnitude, *factors)
        return _embed(_lookup(ids, scale, norm, constants), weight, magnitude, factors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """The gradients of W, m and every A and B that needs one."""
        ids, scale, norm, weight, magnitude, *factors = ctx.saved_tensors
        lookup, needed = _lookup(ids, scale, norm, ctx.constants), ctx.needs_input_grad[4:]
        found: Sequence[Tensor | None]
        if wants_graph():

            def again(weight: Tensor, magnitude: Tensor | None, *factors: Tensor) -> list[Tensor]:
                return [_embed(lookup, weight, magnitude, factors)]

            found = differentiable_backward(again, (weight, magnitude, *factors), needed, [grad])
        else:
            d_factors, d_ratio = _factor_gradients(lookup, magnitude, factors, needed[1:], grad)
            d_weight = _d_weight(lookup, weight, magnitude, grad) if needed[0] else None
            d_magnitude = _d_magnitude(lookup, weight, magnitude, d_ratio, grad) if needed[1] else None
            found = d_weight, d_magnitude, *d_factors
        return None, None, None, None, *found


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
    y: Tensor = LoraEmbedding.apply(  # type: ignore[no-untyped-call]
        ids.reshape(-1), table.scale, norm, constants, table.weight, table.magnitude, *factors
    )
    # Reshaped out here: a view made inside the function could not be modified in place by what follows.
    return y.view(*ids.shape, y.shape[-1])


def _lookup(ids: Tensor, scale: Tensor | None, norm: Tensor | None, constants: tuple[Any, ...]) -> _Lookup:
    return _Lookup(ids, scale, norm, *constants)


def _embed(lookup: _Lookup, weight: Tensor, magnitude: Tensor | None, factors: Sequence[Tensor]) -> Tensor:
    """y in the table's dtype, by ordinary differentiable operations into one buffer."""
    lora = lookup.lora
    y = lookup.rows(weight)
    wide = torch.promote_types(weight.dtype, lora)
    y = y.to(wide if magnitude is None else torch.promote_types(wide, magnitude.dtype))
    for lora_a, lora_b, scaling in zip(factors[::2], factors[1::2], lookup.scalings, strict=True):
        t, right = lookup.reduced(lora_a), lora_b.to(lora).t()
        y = y.addmm_(t, right, alpha=scaling) if y.dtype == lora else y.add_(t @ right, alpha=scaling)
    ratio = lookup.ratio(magnitude)
    return (y if ratio is None else y.mul_(ratio)).to(weight.dtype)


def _factor_gradients(
    lookup: _Lookup, magnitude: Tensor | None, factors: Sequence[Tensor], needed: Sequence[bool], grad: Tensor
) -> tuple[list[Tensor | None], Tensor | None]:
    """dA and dB of every adapter, and the adapters' part of dc ``[hidden]`` if m needs a gradient.

    Args:
        lookup: as in forward, likewise ``magnitude`` and ``factors``.
        needed: whether m, and then each of ``factors``, needs a gradient.
        grad: dy, ``[tokens, hidden]``.
    """
    lora, ratio = lookup.lora, lookup.ratio(magnitude)
    grad = grad.to(lora)
    found: list[Tensor | None] = []
    d_ratio: Tensor | None = None
    for i, scaling in enumerate(lookup.scalings):
        lora_a, lora_b = factors[2 * i], factors[2 * i + 1]
        d_a = d_b = None
        if needed[1 + 2 * i]:
            d_t = _scaled_product(grad, _by_rows(lora_b, ratio).to(lora), scaling)
            d_a = lookup.scattered(lookup.scaled(d_t.to(lora_a.dtype)), lora_a.shape[1]).t()
        if needed[0] or needed[2 + 2 * i]:
            product = _scaled_product(grad.t(), lookup.reduced(lora_a), scaling).to(lora_b.dtype)
            d_b = _by_rows(product, ratio).to(lora_b.dtype) if needed[2 + 2 * i] else None
            if ratio is not None:
                d_ratio = (product.to(ratio.dtype) * lora_b).sum(1)
        found += [d_a, d_b]
    return found, d_ratio


def _by_rows(matrix: Tensor, ratio: Tensor | None) -> Tensor:
    """Row h of a matrix ``[hidden, rank]`` times c_h."""
    return matrix if ratio is None else matrix * ratio.unsqueeze(1)


def _scaled_product(left: Tensor, right: Tensor, scaling: float) -> Tensor:
    """s * left @ right, scaled before it is rounded: beta=0 means that the addend is not read."""
    return torch.addmm(left.new_empty(()), left, right, beta=0, alpha=scaling)


def _d_weight(lookup: _Lookup, weight: Tensor, magnitude: Tensor | None, grad: Tensor) -> Tensor:
    ratio = lookup.ratio(magnitude)
    scaled = grad.clone() if ratio is None else (grad * ratio).to(weight.dtype)
    return lookup.scattered(lookup.scaled(scaled), weight.shape[0])


def _d_magnitude(
    lookup: _Lookup, weight: Tensor, magnitude: Tensor | None, d_ratio: Tensor | None, grad: Tensor
) -> Tensor:
    assert magnitude is not None  # narrows the types: m needs a gradient, so it is there with n and an adapter
    assert lookup.norm is not None
    assert d_ratio is not None
    base = (grad * lookup.rows(weight).to(d_ratio.dtype)).sum(0)
    return ((d_ratio + base) / lookup.norm).to(magnitude.dtype)
