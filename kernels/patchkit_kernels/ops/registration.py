"""Registering an op of this package: its schema, torch reference, shape-only implementation and Triton kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from patchkit_kernels.ops.triton_support import TRITON_AVAILABLE, TRITON_DISPATCH_KEYS, TRITON_DTYPES

# A fragment, because several files of this package add their ops to the same namespace.
LIBRARY: Any = torch.library.Library("patchkit", "FRAGMENT")  # type: ignore[no-untyped-call]

dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
"""How many dispatch modes are entered: FakeTensor, selective checkpointing, counters. These have to see the ops."""

_TRITON_DEVICES = frozenset(key.lower() for key in TRITON_DISPATCH_KEYS)

_FAKE = "torch._subclasses.fake_tensor"
_HOLD_NOTHING = (_FAKE, "patchkit.estimation.", "patchkit.testing.")


def results_are_held() -> bool:
    """Whether a dispatch mode may hold results of operations and refuse to see them change.

    Selective checkpointing does, and nobody knows what a stranger's mode does. FakeTensor and patchkit's counters hold
    none: under them the same is computed and allocated as without any mode.
    """
    if not dispatch_modes():
        return False
    return any(not type(mode).__module__.startswith(_HOLD_NOTHING) for mode in _get_current_dispatch_mode_stack())


def runs_kernel(tensor: Tensor) -> bool | None:
    """Whether the kernels run on a tensor of this kind, or the reference; None where the dispatcher is to decide.

    For code that calls one or the other itself, which spares a small tensor three quarters of an op's time. An op has
    to be seen in a dispatch mode, and by ``torch.compile``, for which this is not.
    """
    if dispatch_modes():
        return None
    if tensor.is_cpu:
        return False
    if type(tensor).__module__.startswith(_FAKE):  # outside of its mode it is none that a kernel could be launched for
        return None
    return TRITON_AVAILABLE and tensor.device.type in _TRITON_DEVICES and tensor.dtype in TRITON_DTYPES


def register_op(
    schema: str, reference: Callable[..., Any], fake: Callable[..., Any], kernel: Callable[..., Any] | None = None
) -> Any:
    """Register ``patchkit::<name>`` with the dispatcher and return it.

    Args:
        schema: name, arguments and results, as in ``scale(Tensor x, float factor) -> Tensor``.
        reference: runs on every device that has no kernel.
        fake: results of the right shape, dtype and device without values, for FakeTensor and torch.compile.
        kernel: runs on the devices of :data:`TRITON_DISPATCH_KEYS` where Triton is installed.
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"patchkit::{name}", fake, lib=LIBRARY)
    if TRITON_AVAILABLE and kernel is not None:
        for key in TRITON_DISPATCH_KEYS:
            LIBRARY.impl(name, kernel, key)
    return getattr(torch.ops.patchkit, name).default
