"""The norm that DoRA divides by: of every row of ``W + s (B A + c 1^T)``, without making that sum.

Liu et al. 2024, DoRA (https://arxiv.org/abs/2402.09353), equation 5: the adapted weight is split into a magnitude and
a direction, and the direction is the sum divided by its norm. Section 4.3 treats the norm as a constant, so nothing
here has a derivative. PEFT (``peft/tuners/lora/dora.py``, ``get_lora_weight``) gets B A by pushing the identity
through both adapters, which adds a bias c of B to every column; W and B A are ``[out, in]`` there, each as large as
the layer's weight.

The squares of the sum are added up as they are. Expanding them, ``|W|^2 + 2 s W.BA + s^2 |BA|^2``, would save the
product, but cancels where the adapter turns against the weight.
"""

from __future__ import annotations

import torch
from torch import Tensor

from patchkit_kernels.operators import LIBRARY, register_op

CHUNK = 2**18
"""Elements of the sum that the reference holds at once: 1 MiB in fp32, which stays in a core's second-level cache."""


def dora_weight_norm_reference(
    weight: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float, lora_bias: Tensor | None = None
) -> Tensor:
    """:func:`dora_weight_norm` in torch, on as many rows at a time as fit :data:`CHUNK`."""
    dtype = _result_dtype(weight, lora_a, lora_b, lora_bias)
    columns = weight.shape[1]
    norm = torch.empty(weight.shape[0], dtype=dtype, device=weight.device)
    rows = max(1, CHUNK // max(1, columns))
    lora_a = lora_a.to(dtype)
    for start in range(0, weight.shape[0], rows):
        chunk = slice(start, start + rows)
        total = torch.addmm(weight[chunk].to(dtype), lora_b[chunk].to(dtype), lora_a, alpha=scaling)
        if lora_bias is not None:
            total.add_(lora_bias[chunk, None], alpha=scaling)
        torch.linalg.vector_norm(total, dim=1, out=norm[chunk])
    return norm


def _result_dtype(*tensors: Tensor | None) -> torch.dtype:
    wide = any(tensor is not None and tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if wide else torch.float32


def _check(weight: Tensor, lora_a: Tensor, lora_b: Tensor, lora_bias: Tensor | None) -> None:
    """Raise ValueError unless the shapes and devices fit each other."""
    tensors = {"weight": weight, "lora_a": lora_a, "lora_b": lora_b}
    if lora_bias is not None:
        tensors["lora_bias"] = lora_bias
    fits = (
        weight.ndim == lora_a.ndim == lora_b.ndim == 2
        and lora_a.shape == (lora_b.shape[1], weight.shape[1])
        and lora_b.shape[0] == weight.shape[0]
        and (lora_bias is None or lora_bias.shape == weight.shape[:1])
        and len({tensor.device for tensor in tensors.values()}) == 1
    )
    if not fits:
        found = ", ".join(f"{name}: {list(tensor.shape)} on {tensor.device}" for name, tensor in tensors.items())
        raise ValueError(
            "patchkit::dora_weight_norm takes weight [out, in], lora_a [r, in], lora_b [out, r] and lora_bias [out] "
            f"on one device, but got {found}"
        )


@torch.no_grad()
def _reference(
    weight: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float, lora_bias: Tensor | None = None
) -> Tensor:
    _check(weight, lora_a, lora_b, lora_bias)
    with torch.autocast(weight.device.type, enabled=False):  # it would make the product in bf16
        return dora_weight_norm_reference(weight, lora_a, lora_b, scaling, lora_bias)


def _fake(weight: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float, lora_bias: Tensor | None = None) -> Tensor:
    _check(weight, lora_a, lora_b, lora_bias)
    return weight.new_empty(weight.shape[0], dtype=_result_dtype(weight, lora_a, lora_b, lora_bias))


_op = register_op(
    "dora_weight_norm(Tensor weight, Tensor lora_a, Tensor lora_b, float scaling, Tensor? lora_bias=None) -> Tensor",
    _reference,
    _fake,
)
# A constant: autograd passes over it, and the result does not require a gradient whatever the arguments do.
LIBRARY.impl("dora_weight_norm", torch.library.fallthrough_kernel, "Autograd")


def dora_weight_norm(
    weight: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float, lora_bias: Tensor | None = None
) -> Tensor:
    """The L2 norm of each row of ``W + s (B A + c 1^T)``, a constant: the op ``patchkit::dora_weight_norm``.

    Every row is on its own, so a quantised weight can be given in pieces: any range of rows, dequantised, with the
    same rows of ``lora_b`` and ``lora_bias``.

    Args:
        weight: W, ``[out, in]``, any strides; any mixture of floating dtypes here and below.
        lora_a: A, ``[r, in]``.
        lora_b: B, ``[out, r]``.
        scaling: s.
        lora_bias: c, ``[out]``: the bias of B (PEFT's ``lora_bias=True``), or None.

    Returns:
        ``[out]``, float64 if any argument is, else float32. It never requires a gradient.

    Raises:
        ValueError: the shapes do not fit, or the devices differ.
    """
    result: Tensor = _op(weight, lora_a, lora_b, scaling, lora_bias)
    return result
