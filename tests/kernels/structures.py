"""Every structure that a fused function takes, beside the same formula in upstream's operations, with named tensors."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from embedding_cases import IDS
from embedding_cases import make as make_table
from embedding_cases import plain as plain_embedding
from projection_cases import Extra, make, plain, plain_mlp, plain_ungated_mlp, seeded

from patchkit_kernels.lora.embedding import lora_embedding
from patchkit_kernels.lora.gated_mlp import lora_gated_mlp
from patchkit_kernels.lora.linear import lora_projections
from patchkit_kernels.lora.memory import Memory
from patchkit_kernels.lora.mlp import lora_mlp
from patchkit_kernels.lora.projection import Precision, Projection
from patchkit_kernels.ops.dora_norm import dora_weight_norm

LORA, BIASED, DROPPED = Extra(), Extra(bias=True), Extra(dropout=0.4)
DORA, DORA_DROPPED, ALL = Extra(dora=True), Extra(dora=True, dropout=0.4), Extra(dora=True, bias=True, dropout=0.4)


class Structure(NamedTuple):
    """One fused call.

    Attributes:
        tensors: by name, ``x`` among them where there is one; leaves, whose ``requires_grad`` a test chooses.
        fused: the fused function's outputs. An argument stands in the place of x, or of the embedding's first A.
        upstream: those of upstream's operations, likewise.
        drops: whether dropout makes a copy of x.
    """

    tensors: dict[str, torch.Tensor]
    fused: Callable[..., tuple[torch.Tensor, ...]]
    upstream: Callable[..., tuple[torch.Tensor, ...]]
    drops: bool


def named_tensors(projections: list[Projection], names: list[str]) -> dict[str, torch.Tensor]:
    found = {}
    for name, projection in zip(names, projections, strict=True):
        found |= {f"{name} W": projection.weight, f"{name} b": projection.bias}
        for j, adapter in enumerate(projection.adapters):
            parts = zip("ABcm", (adapter.lora_a, adapter.lora_b, adapter.bias, adapter.magnitude), strict=True)
            found |= {f"{name} {letter}{j}": tensor for letter, tensor in parts}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def projections(*extras: tuple[Extra, ...], dtype: torch.dtype = torch.float64, device: str = "cpu") -> Structure:
    x = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(device, dtype)
    options: dict[str, Any] = {"bias": True, "dtype": dtype, "device": device}
    made = [make(5, 4 + i, 2, extras=extra, seed=i, **options) for i, extra in enumerate(extras)]
    return Structure(
        {"x": x, **named_tensors(made, list("qkv")[: len(made)])},
        seeded(lambda x=x: lora_projections(x, made, Precision(*[dtype] * 4))),
        seeded(lambda x=x: tuple(plain(x, p) for p in made)),
        any(extra.dropout for part in extras for extra in part),
    )


def mlp(
    *extras: tuple[Extra, ...],
    activation: Any = "silu",
    gate_first: bool = True,
    dropout: float = 0.0,
    dtype: torch.dtype = torch.float64,
    tokens: tuple[int, ...] = (2, 3),
    memory: Memory | None = None,
    device: str = "cpu",
) -> Structure:
    x = torch.randn(*tokens, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(device, dtype)
    sizes = [(5, 12), (6, 5)] if len(extras) == 2 else [(5, 6), (5, 6), (6, 5)]
    *inputs, down = made = [
        make(*size, 2, bias=True, extras=extra, dtype=dtype, seed=i, device=device)
        for i, (size, extra) in enumerate(zip(sizes, extras, strict=True))
    ]
    options = {"gate_first": gate_first, "dropout": dropout}
    names = ["gate_up", "down"] if len(extras) == 2 else ["gate", "up", "down"]

    def fused(x: torch.Tensor) -> torch.Tensor:
        return lora_gated_mlp(x, inputs, down, activation, Precision(*[dtype] * 4), **options, memory=memory)

    return Structure(
        {"x": x, **named_tensors(made, names)},
        seeded(lambda x=x: (fused(x),)),
        seeded(lambda x=x: (plain_mlp(x, inputs, down, activation, **options),)),
        any(extra.dropout for part in extras for extra in part),
    )


def ungated_mlp(
    first: tuple[Extra, ...],
    last: tuple[Extra, ...],
    *,
    activation: Any,
    dropout: float = 0.0,
    dtype: torch.dtype = torch.float64,
    tokens: tuple[int, ...] = (2, 3),
    memory: Memory | None = None,
    device: str = "cpu",
) -> Structure:
    x = torch.randn(*tokens, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(device, dtype)
    options: dict[str, Any] = {"bias": True, "dtype": dtype, "device": device}
    up, down = make(5, 6, 2, extras=first, seed=1, **options), make(6, 5, 2, extras=last, seed=2, **options)

    def fused(x: torch.Tensor) -> torch.Tensor:
        return lora_mlp(x, up, down, activation, Precision(*[dtype] * 4), dropout=dropout, memory=memory)

    return Structure(
        {"x": x, **named_tensors([up, down], ["up", "down"])},
        seeded(lambda x=x: (fused(x),)),
        seeded(lambda x=x: (plain_ungated_mlp(x, up, down, activation, dropout),)),
        any(extra.dropout for extra in (*first, *last)),
    )


def embedding(ranks: tuple[int, ...] = (2,), *, dtype: torch.dtype = torch.float64, **options: Any) -> Structure:
    table, _ = make_table(ranks, train_weight=True, dtype=dtype, **options)
    tensors = {"W": table.weight, "m": table.magnitude}
    for j, adapter in enumerate(table.adapters):
        tensors |= {f"A{j}": adapter.lora_a, f"B{j}": adapter.lora_b}

    def call(function: Callable[..., torch.Tensor], lora_a: torch.Tensor = table.adapters[0].lora_a) -> Any:
        first, *others = table.adapters
        used = table._replace(adapters=(first._replace(lora_a=lora_a), *others))
        norm = None if table.magnitude is None else dora_weight_norm(table.weight.t(), *used.adapters[0])
        return (function(IDS.to(table.weight.device), used, dtype, norm),)

    return Structure(
        {name: tensor for name, tensor in tensors.items() if tensor is not None},
        lambda *given: call(lora_embedding, *given),
        lambda *given: call(plain_embedding, *given),
        False,
    )


STRUCTURES: dict[str, Callable[..., Structure]] = {
    "lora": lambda **o: projections((LORA,), **o),
    "lora_bias": lambda **o: projections((BIASED,), **o),
    "dropout": lambda **o: projections((DROPPED,), **o),
    "dora": lambda **o: projections((DORA,), **o),
    "dora dropout": lambda **o: projections((DORA_DROPPED,), **o),
    "all": lambda **o: projections((ALL,), **o),
    "two": lambda **o: projections((LORA, BIASED), **o),
    "dora after lora": lambda **o: projections((LORA, DORA), **o),
    "qkv": lambda **o: projections((LORA,), (BIASED,), (LORA,), **o),
    "qkv mixed": lambda **o: projections((DORA,), (), (DROPPED,), **o),
    "mlp": lambda **o: mlp((LORA,), (LORA,), (LORA,), **o),
    "mlp gelu": lambda **o: mlp((BIASED,), (LORA,), (BIASED,), activation="gelu_erf", **o),
    "mlp mixed": lambda **o: mlp((DORA,), (DROPPED,), (ALL,), activation="gelu_tanh", **o),
    "mlp joint": lambda **o: mlp((LORA,), (DORA,), gate_first=False, **o),
    "mlp down alone": lambda **o: mlp((), (), (LORA,), **o),
    "mlp dropout": lambda **o: mlp((LORA,), (BIASED,), (LORA,), dropout=0.4, **o),
    "mlp joint dropout": lambda **o: mlp((DROPPED,), (DORA,), activation="relu", gate_first=False, dropout=0.3, **o),
    "ungated mlp": lambda **o: ungated_mlp((LORA,), (LORA,), activation="gelu_tanh", **o),
    "ungated mlp mixed": lambda **o: ungated_mlp((DROPPED, DORA), (ALL,), activation="relu2", **o),
    "ungated mlp down alone": lambda **o: ungated_mlp((), (BIASED,), activation="relu", **o),
    "ungated mlp dropout": lambda **o: ungated_mlp((LORA,), (DROPPED,), activation="gelu_erf", dropout=0.4, **o),
    "ungated mlp down alone, dropout": lambda **o: ungated_mlp((), (LORA,), activation="relu", dropout=0.4, **o),
    "embedding": lambda **o: embedding(**o),
    "embedding padded": lambda **o: embedding(padding_idx=3, scaled=True, **o),
    "embedding two": lambda **o: embedding((1, 3), **o),
    "embedding dora": lambda **o: embedding(dora=True, scaled=True, padding_idx=3, **o),
}


def factors_of(structure: Structure) -> set[str]:
    """Names of every A and B: what people train."""
    return {name for name in structure.tensors if name.rpartition(" ")[2][0] in "AB"}


def assert_own_memory(grads: dict[str, torch.Tensor]) -> None:
    """A gradient keeps alive its own memory, all of it, and nothing else.

    Every A of one input may be rows of one tensor, as autograd leaves gradients of what ``torch.cat`` has read.
    """
    together: dict[int, list[tuple[str, torch.Tensor]]] = {}
    for name, grad in grads.items():
        together.setdefault(grad.untyped_storage().data_ptr(), []).append((name, grad))
    for group in together.values():
        names, found = zip(*sorted(group, key=lambda item: item[1].storage_offset()), strict=True)
        assert len(found) == 1 or {name.rpartition(" ")[2] for name in names} == {"A0"}, names
        assert len(found) == 1 or "down A0" not in names
        ends = itertools.accumulate(grad.numel() for grad in found)
        assert [grad.storage_offset() for grad in found] == [0, *ends][: len(found)]
        assert len(found) == 1 or all(grad.is_contiguous() for grad in found)
        assert found[0].untyped_storage().nbytes() == sum(grad.nbytes for grad in found)


def training_sets(structure: Structure) -> Iterator[set[str]]:
    """Names of trained tensors: all, all A and B, each alone, all but each; x with and without a gradient."""
    names = [name for name in structure.tensors if name != "x"]
    parameters = [
        set(names),
        factors_of(structure),
        *[{name} for name in names],
        *[set(names) - {name} for name in names],
    ]
    for chosen in parameters:
        yield chosen
        if "x" in structure.tensors:
            yield chosen | {"x"}
    if "x" in structure.tensors:
        yield {"x"}


def train(structure: Structure, trained: set[str]) -> None:
    """Let these tensors, and no others, require a gradient; drop all gradients."""
    for name, tensor in structure.tensors.items():
        tensor.requires_grad_(name in trained)
        tensor.grad = None


def cotangents(outputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    return [
        torch.randn(y.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64).to(y)
        for i, y in enumerate(outputs)
    ]


def backward(outputs: tuple[torch.Tensor, ...]) -> None:
    """Through every output that requires a gradient."""
    live = [(y, g) for y, g in zip(outputs, cotangents(outputs), strict=True) if y.requires_grad]
    torch.autograd.backward(*zip(*live, strict=True))


def first_order(structure: Structure, function: Callable[[], tuple[torch.Tensor, ...]]) -> dict[str, Any]:
    """The outputs, and the gradient of every tensor, None included, as ``backward`` leaves it."""
    for tensor in structure.tensors.values():
        tensor.grad = None
    outputs = function()
    backward(outputs)
    found = {name: tensor.grad for name, tensor in structure.tensors.items()}
    return found | {f"output {i}": y.detach() for i, y in enumerate(outputs)}


def assert_equal(expected: dict[str, Any], found: dict[str, Any], where: object, tolerance: float = 1e-10) -> None:
    """The same names, the same Nones, and the same numbers up to rounding."""
    assert expected.keys() == found.keys()
    for name, wanted in expected.items():
        got = found[name]
        assert (wanted is None) == (got is None), (where, name)
        if wanted is not None:
            assert (wanted.shape, wanted.dtype) == (got.shape, got.dtype), (where, name)
            assert (wanted - got).norm() <= tolerance * wanted.norm() + 1e-14, (where, name)
