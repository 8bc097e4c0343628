"""The mask is the one that ``F.dropout`` draws, and leaves the generator where ``F.dropout`` leaves it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from strided_tensors import ALL_DTYPES, as_dtype, strided_tensors
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from patchkit_kernels.ops.dropout import draw_mask

PROBABILITIES = (0.0, 0.05, 0.3, 1.0)


def ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.float64)


LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "contiguous": lambda: ones(2, 3, 40),
    "odd": lambda: ones(7, 33),
    "many": lambda: ones(300, 1001),
    "transposed": lambda: ones(33, 7).mT,
    "permuted": lambda: ones(5, 6, 7).permute(2, 0, 1),
    "sliced": lambda: ones(8, 20)[::2, 3:],
    "expanded": lambda: ones(1, 9, 1).expand(3, 9, 4),
    "last_token": lambda: ones(3, 5, 8)[:, -1:],
    "one": lambda: ones(1, 1),
    "zero_dimensions": lambda: ones(),
    "empty": lambda: ones(0, 4),
}


def seeded(function: Callable[..., Tensor], *arguments: Any) -> tuple[Tensor, Tensor]:
    """The result after a fixed seed, and the random numbers that come next."""
    torch.manual_seed(0)
    return function(*arguments), torch.rand(3)


def kept(x: Tensor, p: float) -> Tensor:
    """Upstream's mask: of an x without zeros, what ``F.dropout`` keeps."""
    return F.dropout(x, p, training=True) != 0


@pytest.mark.parametrize("p", PROBABILITIES)
@pytest.mark.parametrize("dtype", ALL_DTYPES.values(), ids=ALL_DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_is_the_mask_of_torch(layout: str, dtype: torch.dtype, p: float) -> None:
    x = as_dtype(LAYOUTS[layout](), dtype)
    (mask, after), (expected, expected_after) = seeded(draw_mask, x, p), seeded(kept, x, p)
    assert torch.equal(mask, expected)
    assert torch.equal(after, expected_after)
    assert (mask.dtype, mask.stride()) == (torch.bool, torch.empty_like(x).stride())


@pytest.mark.parametrize("p", PROBABILITIES)
def test_several_draws_in_a_row(p: float) -> None:
    """q, k and v take one after the other from the same stream."""

    def draws(draw: Callable[..., Tensor]) -> Tensor:
        return torch.cat([draw(x, p).flatten() for x in (torch.ones(3, 5), torch.ones(3, 5), torch.ones(3, 7))])

    assert all(map(torch.equal, seeded(draws, draw_mask), seeded(draws, kept)))


@settings(max_examples=100, deadline=None)
@given(tensors=strided_tensors(1), p=st.floats(0, 1))
def test_any_shape_stride_dtype_and_probability(tensors: list[Tensor], p: float) -> None:
    x = torch.ones_like(tensors[0])
    x = torch.as_strided(x, x.shape, x.stride())
    assert all(map(torch.equal, seeded(draw_mask, x, p), seeded(kept, x, p)))


def test_a_recomputation_that_restores_the_generator_gets_the_same_mask() -> None:
    state = torch.get_rng_state()
    mask = draw_mask(torch.ones(9, 9), 0.5)
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(state)
        assert torch.equal(draw_mask(torch.ones(9, 9), 0.5), mask)
    assert not torch.equal(draw_mask(torch.ones(9, 9), 0.5), mask)


@pytest.mark.parametrize(
    ("backend", "layout", "p"),
    [
        *(
            ("aot_eager", layout, p)
            for layout in ("contiguous", "transposed", "expanded", "empty")
            for p in PROBABILITIES
        ),
        ("inductor", "transposed", 0.3),
    ],
)
def test_compiled_it_is_the_mask_of_torch_compiled(backend: str, layout: str, p: float) -> None:
    """Compiled, ``F.dropout`` draws other numbers than in eager mode; patched and unpatched models agree all the same."""
    torch.compiler.reset()
    x = LAYOUTS[layout]().float()
    ours, theirs = (
        torch.compile(lambda x, draw=draw: draw(x, p), fullgraph=True, backend=backend) for draw in (draw_mask, kept)
    )
    (mask, after), (expected, expected_after) = seeded(ours, x), seeded(theirs, x)
    assert torch.equal(mask, expected)
    assert torch.equal(after, expected_after)
    assert mask.dtype == torch.bool


class Draws(TorchDispatchMode):
    """Notes the operations that draw."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("device", "p", "names"),
    [
        ("cuda", 0.3, ["aten.native_dropout.default"]),
        ("xpu", 0.3, ["aten.native_dropout.default"]),
        ("cpu", 0.3, ["aten.bernoulli_.float"]),
        *((device, p, []) for device in ("cuda", "xpu", "cpu") for p in (0.0, 1.0)),
    ],
)
def test_draws_by_the_operation_that_torch_draws_by(device: str, p: float, names: list[str]) -> None:
    """And so the same on devices that this machine lacks: the fused dropout draws by the tensor's dtype and layout."""
    with FakeTensorMode():
        x = torch.empty(3, 5, 4, dtype=torch.bfloat16, device=device).transpose(0, 1)
        with Draws() as ours:
            mask = draw_mask(x, p)
        with Draws() as theirs:
            F.dropout(x, p, training=True)
    assert ours.names == theirs.names == names
    assert (mask.shape, mask.dtype, mask.device.type) == (x.shape, torch.bool, device)
    assert mask.stride() == x.stride()


def test_devices_without_a_case_of_their_own_draw_through_dropout() -> None:
    mask = draw_mask(torch.empty(3, 5, device="meta"), 0.3)
    assert (mask.shape, mask.dtype, mask.device.type) == ((3, 5), torch.bool, "meta")


@pytest.mark.parametrize("p", [-0.1, 1.5, float("nan")])
def test_no_probability(p: float) -> None:
    with pytest.raises(ValueError, match=r"must be within \[0, 1\], but is"):
        draw_mask(torch.ones(3), p)
