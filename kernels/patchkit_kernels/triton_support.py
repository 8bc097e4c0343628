"""Triton where it is installed, and modules that still import where it is not.

Triton publishes wheels for Linux only. The kernels' files hold their ``@jit`` functions next to the torch reference, so
importing one must work without Triton too: there :func:`jit` hands the plain function back, nothing ever calls it, and
every device runs the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import triton
    import triton.language as tl
else:
    try:
        import triton
        import triton.language as tl
    except ImportError:
        triton = tl = None

__all__ = ["TRITON_AVAILABLE", "jit", "tl"]

TRITON_AVAILABLE: bool = triton is not None


def jit(function: Callable[..., Any]) -> Any:
    """``triton.jit``, or ``function`` itself where Triton is missing.

    A file that uses it starts with ``from __future__ import annotations``: an evaluated ``tl.constexpr`` needs Triton.
    """
    return triton.jit(function) if TRITON_AVAILABLE else function
