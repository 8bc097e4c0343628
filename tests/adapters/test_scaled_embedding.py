"""Which classes multiply what they look up by ``embed_scale`` and do nothing else: read from their source, word by word."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from patchkit.adapters import scaled_embedding
from patchkit.adapters.scaled_embedding import is_scaled_embedding


class Scaled(nn.Embedding):
    def __init__(self):
        super().__init__(3, 2)
        self.register_buffer("embed_scale", torch.tensor(2.0), persistent=False)


class Exact(nn.Embedding):
    def forward(self, input_ids):
        return super().forward(input_ids) * self.embed_scale.to(self.weight.dtype)


class Documented(nn.Embedding):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scaled."""
        return super().forward(x) * self.embed_scale.to(self.weight.dtype)


class Waits(nn.Embedding):
    async def forward(self, ids):
        return super().forward(ids) * self.embed_scale.to(self.weight.dtype)


class Adds(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids) + self.embed_scale.to(self.weight.dtype)


class InFloat32(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids) * self.embed_scale


class Reversed(nn.Embedding):
    def forward(self, ids):
        return self.embed_scale.to(self.weight.dtype) * super().forward(ids)


class AnotherScale(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids) * self.scale.to(self.weight.dtype)


class Shifted(nn.Embedding):
    def forward(self, ids):
        ids = ids + 1
        return super().forward(ids) * self.embed_scale.to(self.weight.dtype)


class Another(nn.Embedding):
    def forward(self, ids, other):
        return super().forward(ids) * self.embed_scale.to(self.weight.dtype)


class OfAnother(nn.Embedding):
    def forward(module, ids):  # noqa: N805
        return super().forward(ids) * module.embed_scale.to(module.weight.dtype)


class Keeps(nn.Embedding):
    def forward(self, ids):
        self.kept = super().forward(ids) * self.embed_scale.to(self.weight.dtype)


class GivesNothing(nn.Embedding):
    def forward(self, ids):
        return


class Text(nn.Embedding):
    def forward(self, ids):
        """Nothing else."""


def same(function):
    @functools.wraps(function)
    def inner(*args):
        return function(*args)

    return inner


class Decorated(nn.Embedding):
    @same
    def forward(self, ids):
        return super().forward(ids) * self.embed_scale.to(self.weight.dtype)


class Mixin:
    pass


class Mixed(Mixin, nn.Embedding):
    def forward(self, ids):
        return super().forward(ids) * self.embed_scale.to(self.weight.dtype)


class Inherits(Exact):
    pass


class Below(Exact):
    def forward(self, ids):
        return super().forward(ids) * self.embed_scale.to(self.weight.dtype)


YES = (Exact, Documented, Gemma3TextScaledWordEmbedding)
NO = (
    Waits, Adds, InFloat32, Reversed, AnotherScale, Shifted, Another, OfAnother, Keeps, GivesNothing, Text, Decorated,
    Mixed, Inherits, Below, Scaled, nn.Embedding,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _read_anew(monkeypatch):
    monkeypatch.setattr(scaled_embedding, "_proven", {})


@pytest.mark.parametrize("cls", [*YES, *NO])
def test_which_classes_are_read(cls):
    for _ in range(2):
        assert is_scaled_embedding(cls) is (cls in YES)


def test_another_forward_of_a_class_that_was_read(monkeypatch):
    """It is no such class then, and is one again afterwards; nobody reads its source again."""
    assert is_scaled_embedding(Exact)
    monkeypatch.setattr(scaled_embedding, "_reads_as_expected", lambda cls: pytest.fail("read again"))
    with monkeypatch.context() as patch:
        patch.setattr(Exact, "forward", Adds.forward)
        assert not is_scaled_embedding(Exact)
    assert is_scaled_embedding(Exact)


def test_nothing_is_read_while_a_graph_is_made(monkeypatch):
    assert is_scaled_embedding(Exact)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert is_scaled_embedding(Exact)
    assert not is_scaled_embedding(Documented)
    monkeypatch.undo()
    monkeypatch.setattr(scaled_embedding, "_proven", {})
    assert is_scaled_embedding(Documented)
