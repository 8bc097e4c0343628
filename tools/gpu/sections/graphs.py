"""CUDA graphs of patched models, and ``torch.compile(fullgraph=True)`` with the code generator of the device.

A captured step has to give the numbers of the same step run eagerly, at every replay; a compiled one has to be one
graph, and within the contract's tolerance of plain PEFT.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import patchkit
from patchkit.testing import (
    add_lora,
    compare_runs,
    fused_calls,
    on_device,
    relative_error,
    run,
    tiny_inputs,
    tiny_model,
)
from tools.gpu.cells import Cell, NotRun, Setting, Wrong

CAPTURED: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "dropout": {"lora_dropout": 0.1},
    "DoRA": {"use_dora": True},
    'memory="recompute"': {"memory": "recompute"},
}
_OF_APPLY = ("memory",)

Call = Callable[[Tensor], "tuple[Tensor, ...]"]
_REPLAYED = 1e-6


def cells(setting: Setting) -> Sequence[Cell]:
    """Captures, then compilations."""
    made = [
        Cell(f"capture {label}, {dtype}", partial(_capture, setting, options, getattr(torch, dtype)))
        for dtype in ("bfloat16", "float32")
        for label, options in CAPTURED.items()
    ]
    modes = {"inductor": {}, "inductor with CUDA graphs": {"mode": "reduce-overhead"}}
    if setting.on_cpu:
        modes = {"aot_eager": {"backend": "aot_eager"}}
    compiled = [
        Cell(f"compile {model}, {label}, {name}", partial(_compile, setting, model, options, how), 150.0)
        for name, how in modes.items()
        for model, label, options in (
            ("llama", "LoRA", {}),
            ("gemma3", "LoRA", {}),
            ("llama", "dropout", {"lora_dropout": 0.1}),
            ("llama", "DoRA", {"use_dora": True}),
        )
    ]
    return [made[0], compiled[0]] if setting.tiny else [*made, *compiled]


def _pair(setting: Setting, options: dict[str, Any], name: str = "llama") -> tuple[nn.Module, nn.Module, Any, Any]:
    """A plain model, a patched copy, the inputs, and the report."""
    lora = {key: value for key, value in options.items() if key not in _OF_APPLY}
    model = add_lora(tiny_model(name), **lora).train()
    plain, inputs = on_device(model, tiny_inputs(name, model), setting.device)
    patched = copy.deepcopy(plain)
    asked = {key: value for key, value in options.items() if key in _OF_APPLY}
    return plain, patched, inputs, patchkit.apply(patched, trust="always", **asked)


def _capture(setting: Setting, options: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """One MLP and one attention input, forward and backward, captured and replayed on other numbers."""
    if not setting.device.startswith("cuda"):
        raise NotRun(f"{setting.device} has no CUDA graphs")
    _, patched, _, report = _pair(setting, options)
    for parameter in patched.parameters():
        parameter.data = parameter.data.to(dtype)
    layers = [module for name, module in patched.named_modules() if name.endswith("layers.0")]
    block: Any = layers[0]
    width = block.mlp.gate_proj.in_features
    found: dict[str, Any] = {"levels": dict(report.counts)}
    drops = "lora_dropout" in options
    for name, call in calls_of(block).items():
        found[f"{name} error"] = _replayed(call, block, width, dtype, setting.device, masks_differ=drops)
    return found


def calls_of(block: Any) -> dict[str, Call]:
    """The fused calls of a patched decoder layer, by name."""
    return {"qkv": lambda x: tuple(block.self_attn.apply_qkv(x)), "mlp": lambda x: (block.mlp(x),)}


def step(call: Call, x: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Outputs, and the gradients of x and of every parameter that the call uses."""
    outputs = call(x)
    total = [y.float().square().sum() for y in outputs]
    gradients = torch.autograd.grad(total, [x, *parameters], allow_unused=True)
    return [y.detach() for y in outputs] + [one for one in gradients if one is not None]


def _replayed(
    call: Call,
    block: nn.Module,
    width: int,
    dtype: torch.dtype,
    device: str,
    *,
    masks_differ: bool,
) -> float:
    """The largest difference of a replay from an eager run on the same numbers; with dropout, two replays differ."""
    parameters = [parameter for parameter in block.parameters() if parameter.requires_grad]
    x = torch.randn(3, 40, width, device=device, dtype=dtype, requires_grad=True)

    cuda: Any = torch.cuda
    stream = cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(call, x, parameters)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(call, x, parameters)
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    first = [one.clone() for one in captured]
    if masks_differ:
        graph.replay()
        if all(torch.equal(one, other) for one, other in zip(first, captured, strict=True)):
            raise Wrong("two replays drew the same dropout masks")
        return 0.0
    worst = max(relative_error(one, eager) for one, eager in zip(first, step(call, x, parameters), strict=True))
    limit = _REPLAYED if dtype is torch.float32 else 1e-3
    if not worst <= limit:
        raise Wrong(f"a replay differs from an eager run by {worst:.3g}", {"error": worst, "limit": limit})
    return worst


def _compile(setting: Setting, name: str, options: dict[str, Any], how: dict[str, Any]) -> dict[str, Any]:
    """Without dropout against plain PEFT; with it the masks of a compiled model are its own, so only that it runs."""
    plain, patched, inputs, report = _pair(setting, options, name)
    torch._dynamo.reset()
    compiled = torch.compile(patched, fullgraph=True, **how)
    with fused_calls() as traced:
        found = run(patched, inputs, forward=compiled)
    figures: dict[str, Any] = {"levels": dict(report.counts), "fused calls in the graph": len(traced)}
    if not traced:
        raise Wrong("no fused function is in the graph", figures)
    if "lora_dropout" in options:
        finite = all(bool(one.isfinite().all()) for one in (*found.outputs.values(), *found.gradients.values()))
        if not finite or set(found.gradients) != set(run(plain, inputs).gradients):
            raise Wrong("results are not finite, or not of the same parameters", figures)
        return figures
    findings = compare_runs(run(plain, inputs), found)
    figures |= {"error": findings.worst.error, "limit": findings.worst.limit} if findings.worst else {}
    if not findings.passed:
        raise Wrong("; ".join(findings.problems) or str(findings.worst), figures)
    return figures
