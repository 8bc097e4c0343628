"""No attempt at a tiny model takes more memory than a tiny model, and none that has failed stays."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from patchkit.errors import TinyModelError
from patchkit.testing import tiny_model_from
from patchkit.testing.tiny.limits import few_parameters, require_few_parameters


class Stack(nn.Module):
    """Three linear layers of 25, 100 and 30 parameters, without biases."""

    def __init__(self, config: Any = None) -> None:
        super().__init__()
        self.small = nn.Linear(5, 5, bias=False)
        self.inner = nn.Sequential(nn.Linear(10, 10, bias=False))
        self.last = nn.Linear(5, 6, bias=False)


@pytest.mark.parametrize("most", [154, 130, 124, 99, 24])
def test_a_model_is_stopped_by_the_parameter_that_is_too_many(most: int) -> None:
    shape = r"Linear\.weight of shape \[(10, 10|5, 5)\] is not tiny"
    with pytest.raises(TinyModelError, match=shape), few_parameters(most):
        Stack()
    with pytest.raises(TinyModelError, match=r"inner\.0\.weight of shape \[10, 10\] is not tiny"):
        require_few_parameters(None, Stack, most)


def test_a_model_that_is_small_enough_is_made() -> None:
    with few_parameters(155):
        model = Stack()
    require_few_parameters(None, Stack, 155)
    assert sum(parameter.numel() for parameter in model.parameters()) == 155
    Stack()  # and afterwards nobody watches
    with few_parameters(1), pytest.raises(TinyModelError):
        Stack()
    Stack()


def test_other_threads_are_not_watched() -> None:
    made: list[nn.Module] = []
    with few_parameters(1):
        thread = threading.Thread(target=lambda: made.append(Stack()))
        thread.start()
        thread.join()
    assert len(made) == 1


class OddConfig(PretrainedConfig):
    model_type = "odd_limits"

    def __init__(self, odd: int = 12_000, **kwargs: Any) -> None:
        self.odd, self.hidden_size, self.vocab_size, self.head_dim = odd, 256, 512, 128
        self.num_hidden_layers, self.num_attention_heads, self.num_key_value_heads = 4, 8, 2
        self.use_cache, self.is_decoder = True, False
        super().__init__(**kwargs)


class Odd(PreTrainedModel):
    """A model that computes with numbers when it is made, and whose forward fails otherwise each time."""

    config_class = OddConfig
    alive: ClassVar[Any] = weakref.WeakSet()
    most_alive: ClassVar[int] = 0
    made: ClassVar[list[int]] = []

    def __init__(self, config: OddConfig) -> None:
        super().__init__(config)
        float(torch.zeros(1))  # meta tensors have no values
        self.wide = nn.Linear(config.odd, config.odd)
        self.made.append(config.odd)
        self.alive.add(self)
        type(self).most_alive = max(type(self).most_alive, len(self.alive))
        self.post_init()

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any) -> Any:
        raise ValueError("failure " + "i" * len(self.made))


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> type[Odd]:
    monkeypatch.setattr(Odd, "made", [])
    monkeypatch.setattr(Odd, "most_alive", 0)
    gc.collect()
    return Odd


def test_what_cannot_be_measured_before_is_measured_while_it_is_made(odd: type[Odd]) -> None:
    with pytest.raises(TinyModelError, match=r"Linear\.weight of shape \[12000, 12000\] is not tiny"):
        tiny_model_from(odd)
    assert max(odd.made, default=0) <= 64, "the one that was made has another size, as the error told"


def test_a_size_that_only_some_attempts_have_is_seen_in_each(odd: type[Odd], monkeypatch: pytest.MonkeyPatch) -> None:
    """That the first attempt is small says nothing of the second."""
    sizes = iter((4, *(12_000,) * 1000))
    monkeypatch.setattr(OddConfig, "odd", property(lambda self: next(sizes), lambda self, value: None), raising=False)
    with pytest.raises(TinyModelError, match="is not tiny"):
        tiny_model_from(odd)
    assert len(odd.made) <= 1


def test_models_of_attempts_that_failed_die(odd: type[Odd]) -> None:
    gc.disable()  # no cycle keeps them either
    try:
        with pytest.raises(TinyModelError, match="failure"):
            tiny_model_from(OddConfig(odd=4), head=odd)
    finally:
        gc.enable()
    assert len(odd.made) > 5
    assert odd.most_alive <= 2, "the errors of the ladder hold the models that raised them"
