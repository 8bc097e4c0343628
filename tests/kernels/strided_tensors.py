"""Tensors of any shape, strides and dtype."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""What the kernels take."""

ALL_DTYPES = {**DTYPES, "fp64": torch.float64}


def uniform(*shape: int, seed: int) -> Tensor:
    """fp64, within [-6, 6]: the range in which the activations differ from one another."""
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 12 - 6


def as_dtype(tensor: Tensor, dtype: torch.dtype, device: str = "cpu") -> Tensor:
    """``tensor.to(dtype)`` with the same strides and offset, through the storage: ``.to()`` would make them dense."""
    base = torch.tensor([], dtype=tensor.dtype).set_(tensor.untyped_storage())
    return base.to(device=device, dtype=dtype).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


@st.composite
def views(draw: st.DrawFn, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """A tensor of :func:`uniform` numbers that is a view: permuted, with steps and offsets, expanded in some axes."""
    order = draw(st.permutations(range(len(shape))))
    steps = [draw(st.integers(1, 3)) for _ in shape]
    starts = [draw(st.integers(0, 2)) for _ in shape]
    expanded = [draw(st.sampled_from([False, False, False, True])) for _ in shape]
    base_shape = [1 if expanded[axis] else starts[axis] + shape[axis] * steps[axis] for axis in order]
    tensor = uniform(*base_shape, seed=seed).permute([order.index(axis) for axis in range(len(shape))])
    for axis in range(len(shape)):
        if not expanded[axis]:
            tensor = tensor.narrow(axis, starts[axis], shape[axis] * steps[axis])
            tensor = tensor[(slice(None),) * axis + (slice(None, None, steps[axis]),)]
    return tensor.expand(shape)


@st.composite
def strided_tensors(draw: st.DrawFn, count: int) -> list[Tensor]:
    """Tensors of one shape and dtype, each a view of its own kind."""
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
    dtype = draw(st.sampled_from(list(ALL_DTYPES.values())))
    return [as_dtype(draw(views(shape, seed)), dtype) for seed in range(count)]
