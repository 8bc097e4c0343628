"""One step of a small module and of its patched copy, compared with all that it draws and every gradient."""

from __future__ import annotations

import torch

_TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-11}


def trained(call, module, *, x_grad=True, shape=(2, 5, 8)):
    """The output, every gradient, and what is drawn next."""
    dtype = next(module.parameters()).dtype
    x = torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(3)).requires_grad_(x_grad)
    torch.manual_seed(1)
    y = call(module, x)
    y.square().sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in module.parameters()), torch.rand(3)]


def assert_equal(reference, module, call=lambda module, x: module(x), **options):
    """What is trained by one call of each is the same, up to the rounding of the dtype."""
    found = [trained(call, one, **options) for one in (reference, module)]
    for expected, actual in zip(*found, strict=True):
        assert (expected is None) == (actual is None)
        assert expected is None or (expected - actual).norm() <= _TOLERANCES[expected.dtype] * expected.norm()
