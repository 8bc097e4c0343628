"""Stand-ins that note what a launcher or a compiler was asked to do."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode


def launches(
    module: Any, kernel: str, launch: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> list[tuple[str, Any]]:
    """What ``launch()`` does with the kernel of that name in ``module``: the guard and the grid, in order.

    It runs on tensors without values, so that anything that would wait for the device to tell one raises.
    """
    events: list[tuple[str, Any]] = []

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *args, **kwargs: events.append(("launch", grid))

    @contextlib.contextmanager
    def guard(tensor: Tensor) -> Iterator[None]:
        events.append(("guard", tensor.device.index))
        yield
        events.append(("end of guard", tensor.device.index))

    monkeypatch.setattr(module, "device_guard", guard)
    monkeypatch.setattr(module, kernel, Kernel())
    with FakeTensorMode():
        launch()
    return events


class LargestResult(TorchDispatchMode):
    """Notes the greatest number of elements that any operation under it returned anew."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not func.is_view:
            self.elements = max(self.elements, result.numel())
        return result


def compiled_with_names(function: Callable[..., Any], dynamic: bool | None = None) -> tuple[Any, list[str]]:
    """``torch.compile(function, fullgraph=True)`` by AOTAutograd, and the names of the ops in its graphs."""
    torch.compiler.reset()
    names: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        names.extend(str(node.target) for node in graph.graph.nodes)
        compiled: Callable[..., Any] = torch._dynamo.lookup_backend("aot_eager")(graph, inputs)
        return compiled

    return torch.compile(function, fullgraph=True, dynamic=dynamic, backend=backend), names
