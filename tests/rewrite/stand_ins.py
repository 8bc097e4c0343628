"""Numbers in place of tensors and modules: enough to run a method before and after it is rewritten, and to compare.

Every projection draws a random number (as one with LoRA dropout does), so that results depend on the order of draws.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from patchkit.rewrite.sites import Rewritten, Site

PRIME = 1_000_003


class Tensor:
    """A few integers in memory that views share."""

    def __init__(self, memory: list[int], where: tuple[int, ...] | None = None) -> None:
        self.memory = memory
        self.where = tuple(range(len(memory))) if where is None else where

    @property
    def values(self) -> list[int]:
        return [self.memory[i] for i in self.where]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.where),)

    def size(self) -> tuple[int, ...]:
        return self.shape

    def new(self, function: Callable[[int], int]) -> Tensor:
        return Tensor([function(value) % PRIME for value in self.values])

    def view(self, *_: object) -> Tensor:
        return Tensor(self.memory, self.where)

    reshape = transpose = view

    def __getitem__(self, _: object) -> Tensor:
        return self.view()

    def chunk(self, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
        assert (chunks, dim) == (2, -1)
        half = len(self.where) // 2
        return Tensor(self.memory, self.where[:half]), Tensor(self.memory, self.where[half:])

    def _with(self, other: Tensor | int, function: Callable[[int, int], int]) -> list[int]:
        values = other.values if isinstance(other, Tensor) else [other]
        return [function(value, values[i % len(values)]) % PRIME for i, value in enumerate(self.values)]

    def __add__(self, other: Tensor | int) -> Tensor:
        return Tensor(self._with(other, lambda a, b: a + 3 * b))

    def __mul__(self, other: Tensor | int) -> Tensor:
        return Tensor(self._with(other, lambda a, b: a * b))

    __rmul__ = __mul__

    def add_(self, other: Tensor | int) -> Tensor:
        for i, value in zip(self.where, self._with(other, lambda a, b: a + 3 * b), strict=True):
            self.memory[i] = value
        return self

    __iadd__ = add_

    def __imul__(self, other: Tensor | int) -> Tensor:
        for i, value in zip(self.where, self._with(other, lambda a, b: a * b), strict=True):
            self.memory[i] = value
        return self


class Random:
    """A generator of random numbers that keeps a log of who drew."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def draw(self, who: str) -> int:
        self.log.append(who)
        return pow(7, len(self.log) + 5, PRIME)

    def dropout(self, x: Tensor, p: object = None, training: object = None) -> Tensor:
        number = self.draw("dropout" if p is training is None else f"dropout {getattr(p, 'values', p)} {training}")
        return x.new(lambda value: value * number)

    def silu(self, x: Tensor) -> Tensor:
        number = self.draw("silu")
        return x.new(lambda value: value * value + 3 * number)


class Block:
    """Stands for the module: projections, and what rewritten code calls in place of them."""

    projections = (
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "other_proj", "fc1", "fc2",
    )  # fmt: skip
    scale = 5
    activation_dropout, training = 0.3, True
    fc1: Callable[[Tensor], Tensor]
    fc2: Callable[[Tensor], Tensor]

    def __init__(self, random: Random, sites: tuple[Site, ...]) -> None:
        self.random, self.sites, self.dropout = random, sites, random.dropout
        for factor, name in enumerate(self.projections, start=11):
            setattr(self, name, self._projection(name, factor))

    def _projection(self, name: str, factor: int) -> Callable[[Tensor], Tensor]:
        def project(x: Tensor) -> Tensor:
            number = self.random.draw(name)
            return x.new(lambda value: factor * value + number)

        return project

    def gate_up_proj(self, x: Tensor) -> Tensor:
        number = self.random.draw("gate_up_proj")
        return Tensor([(factor * value + number) % PRIME for factor in (31, 37) for value in x.values])

    def norm(self, x: Tensor) -> Tensor:
        return x.new(lambda value: 5 * value + 1)

    q_norm = norm

    def act_fn(self, x: Tensor) -> Tensor:
        number = self.random.draw("act_fn")
        return x.new(lambda value: value * value + number)

    activation_fn = act_fn

    def _site(self, *rules: str) -> Site:
        return next(site for site in self.sites if site.rule in rules)

    def apply_qkv(self, x: Tensor) -> list[Tensor]:
        results = {name: getattr(self, name)(x) for name in self._site("qkv-together").calls}
        return [results[name] for name in ("q_proj", "k_proj", "v_proj")]

    def apply_shared(self, x: Tensor, *projections: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        return tuple([projection(x) for projection in projections])

    def apply_o(self, x: Tensor) -> Tensor:
        return getattr(self, "o_proj")(x)  # noqa: B009

    def apply_linear(self, projection: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return projection(x)

    def apply_mlp(
        self, x: Tensor, function: Callable[[Tensor], Tensor] | None = None, *, dropout: Any = None, **how: object
    ) -> Tensor:
        def drop(hidden: Tensor) -> Tensor:
            return hidden if dropout is None else dropout(hidden, **how)

        site = self._site("gated-mlp", "ungated-mlp")
        if site.rule == "ungated-mlp":
            return self.fc2(drop((function or self.activation_fn)(self.fc1(x))))
        results: dict[str, Tensor] = {}
        for name in site.calls:
            if name == "gate_up_proj":
                halves = self.gate_up_proj(x).chunk(2, dim=-1)
                results["gate_proj"], results["up_proj"] = halves if site.gate_first else halves[::-1]
            elif name in ("act_fn", "F.silu"):
                results["act_fn"] = (function or self.act_fn)(results["gate_proj"])
            elif name == "down_proj":
                results[name] = getattr(self, name)(drop(results["act_fn"] * results["up_proj"]))
            else:
                results[name] = getattr(self, name)(x)
        return results["down_proj"]


def _snapshot(value: object) -> object:
    if isinstance(value, (tuple, list)):
        return [_snapshot(item) for item in value]
    return value.values if isinstance(value, Tensor) else value


@contextlib.contextmanager
def _context() -> Iterator[None]:
    yield


def run(source: str, sites: tuple[Site, ...] = (), flag: bool = True) -> dict[str, Any]:
    """Run ``forward(self, x, y, flag)`` of class ``Block`` in a text; everything about it that can be observed."""
    random = Random()

    def randn_like(x: Tensor) -> Tensor:
        return x.new(lambda _: random.draw("randn_like"))

    def mutate(x: Tensor) -> Tensor:
        return x.add_(7)

    class Torch:
        chunk = staticmethod(Tensor.chunk)

    Torch.randn_like = staticmethod(randn_like)  # type: ignore[attr-defined]
    namespace: dict[str, Any] = {
        "torch": Torch, "F": random, "mutate": mutate, "rotate": lambda x: x.new(lambda value: value + 9), "s": 1,
        "context": _context,
    }  # fmt: skip
    exec(compile(source, "<generated>", "exec"), namespace)
    x, y = Tensor([2, 3, 5, 7]), Tensor([11, 13, 17, 19])
    seen: dict[str, Any] = {"result": None, "error": None}
    try:
        result = namespace["Block"].forward(Block(random, sites), x, y, flag)
    except Exception as error:
        seen["error"] = type(error)
    else:
        seen["result"] = _snapshot(result)
    return {**seen, "x": x.values, "y": y.values, "draws": random.log}


def assert_same_behaviour(source: str, rewritten: Rewritten) -> None:
    """Both texts give the same results, leave the same in their inputs, and draw in the same order."""
    for flag in (True, False):
        assert run(rewritten.source, rewritten.sites, flag) == run(source, (), flag)
