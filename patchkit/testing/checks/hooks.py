"""Hooks on projections: offloading, gradient capture and sharding are made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from patchkit.arch.registry import blocks_by_class
from patchkit.testing.checks.base import InapplicableError, scenario
from patchkit.testing.parity import Inputs, Run, relative_error, run

_FACTOR = 1.5

Register = Callable[[nn.Module], RemovableHandle]


def _on_output(module: nn.Module) -> RemovableHandle:
    def scale(_module: nn.Module, _arguments: Any, output: Any) -> Any:
        return output * _FACTOR

    return module.register_forward_hook(scale)


def _on_input(module: nn.Module) -> RemovableHandle:
    def scale(_module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (arguments[0] * _FACTOR, *arguments[1:])

    return module.register_forward_pre_hook(scale)


def _on_gradient(module: nn.Module) -> RemovableHandle:
    def scale(_module: nn.Module, gradients: tuple[Any, ...], _outputs: Any) -> tuple[Any, ...]:
        return tuple(None if gradient is None else gradient * _FACTOR for gradient in gradients)

    return module.register_full_backward_hook(scale)


_KINDS: dict[str, Register] = {"forward": _on_output, "forward pre": _on_input, "backward": _on_gradient}


@scenario("hooks", "forward, forward-pre and backward hooks on a projection and inside its adapter, set after patching")
def hooks(model: nn.Module, inputs: Inputs) -> Iterator[tuple[str, Run]]:
    """Each hook scales by 1.5, alone; and after it is removed, upstream's numbers are back."""
    plain = run(model.train(), inputs, input_gradients=True)
    yield "no hook", plain
    for where, module in _projections(model).items():
        for kind, register in _KINDS.items():
            handle = register(module)
            hooked = run(model, inputs, input_gradients=True)
            handle.remove()
            if not _differs(plain, hooked):
                raise InapplicableError(f"a {kind} hook on {where} makes no difference")
            yield f"{kind} hook on {where}", hooked
    yield "hooks removed", run(model, inputs, input_gradients=True)


def _projections(model: nn.Module) -> dict[str, nn.Module]:
    """The first and the last projection of the last block of each class, and the layers of their adapters."""
    known = blocks_by_class()
    found: dict[str, nn.Module] = {}
    for module in model.modules():
        for cls in type(module).__mro__:
            _, block = known.get((cls.__module__, cls.__name__), (None, None))
            if block is None or block.tower != "text":
                continue
            first, *_, last = block.projections()
            found |= {f"{cls.__name__}.{projection}": getattr(module, projection) for projection in (first, last)}
            break
    inner = {
        f"{name}.{path}": child
        for name, projection in found.items()
        for path, child in projection.named_modules()
        if path == "base_layer" or (path.startswith("lora_A.") and path.count(".") == 1)
    }
    if not found:
        raise InapplicableError("no block of a registered architecture")
    return found | inner


def _differs(first: Run, second: Run) -> bool:
    if relative_error(second.outputs["logits"], first.outputs["logits"]) > 0:
        return True
    return any(relative_error(second.gradients[name], tensor) > 0 for name, tensor in first.gradients.items())
