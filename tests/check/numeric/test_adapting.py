"""Adapters on a model of any kind: each way of putting them on, when it is tried, and the loss of what has none."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from patchkit.check.numeric import adapting
from patchkit.check.numeric.adapting import AllOutputs, adapted, has_linear_layers, linear_layers
from patchkit.check.numeric.tiny_instances import CannotBuildError


class Odd(nn.Linear):
    """PEFT counts it among the linear layers."""


class Net(nn.Module):
    """Two layers, and more where they are named."""

    config = SimpleNamespace(use_cache=False)
    is_gradient_checkpointing = False  # else PEFT has its inputs require a gradient

    def __init__(self, *more, odd=False):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)
        for name in more:
            setattr(self, name, nn.Linear(4, 4))
        if odd:
            self.odd = Odd(4, 4)

    def get_output_embeddings(self):
        return self.head

    def forward(self, x, labels=None, use_cache=True):
        for name, layer in self.named_children():
            x = layer(x) if name != "head" else x
        logits = self.head(x)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return SimpleNamespace(logits=logits, loss=loss) if loss is not None else {"logits": logits}


X = {"x": torch.randn(5, 4, generator=torch.Generator().manual_seed(0))}


def layers_of(found):
    return sorted(
        {name.split(".lora_A")[0].rpartition(".")[2] for name, _ in found.model.named_parameters() if "lora_A" in name}
    )


def refusing(monkeypatch, refuses):
    """PEFT says no where ``refuses(targets)`` gives a message. Returns what was asked for."""
    asked, real = [], adapting.add_lora

    def add_lora(model, *, target_modules, **config):
        asked.append((target_modules, config))
        message = refuses(target_modules)
        if message:
            raise RuntimeError(message)
        return real(model, target_modules=target_modules, **config)

    monkeypatch.setattr(adapting, "add_lora", add_lora)
    return asked


def test_the_usual_way(monkeypatch):
    asked = refusing(monkeypatch, lambda targets: "")
    model = Net(odd=True).eval()
    found = adapted(model, X)
    assert asked == [("all-linear", {"task_type": None, "r": 4})]
    assert (layers_of(found), found.without) == (["first", "head", "odd"], "")
    assert found.model.training
    assert not model.training
    assert [name for name, _ in model.named_children()] == ["first", "head", "odd"]
    assert type(model.first) is nn.Linear
    assert found.outcome.gradients
    assert set(found.outcome.gradients) == {name for name, one in found.model.named_parameters() if one.requires_grad}


def test_the_adapter_is_as_it_is_asked_for(monkeypatch):
    asked = refusing(monkeypatch, lambda targets: "")
    adapted(Net(), X, r=2, lora_alpha=3)
    assert asked == [("all-linear", {"task_type": None, "r": 2, "lora_alpha": 3})]


@pytest.mark.parametrize("labels", [True, False])
def test_with_labels_the_loss_is_the_models_own(labels):
    inputs = X | ({"labels": torch.tensor([0, 1, 2, 0, 1])} if labels else {})
    found = adapted(Net(), inputs)
    assert isinstance(found.model.get_base_model(), Net if labels else AllOutputs)


@pytest.mark.parametrize("name", ["out_proj", "conv1d"])
def test_the_ways_in_their_order(name):
    """All of them; those that PEFT may take; without names that it takes nowhere. The head has none then."""
    model = Net(name, odd=True)
    whole = AllOutputs(model)
    ways = [(way.targets, way.without, way.inputs_require_grad) for way in adapting._ways(model, whole)]
    assert ways == [
        ("all-linear", "", False),
        ("all-linear", "it wants inputs that require a gradient", True),
        (["host.first", f"host.{name}"], "without adapters on odd", False),
        (["host.first"], f"without adapters on {', '.join(sorted([name, 'odd']))}", False),
    ]


def test_a_way_without_a_layer_is_none():
    class Headless(nn.Module):
        def __init__(self):
            super().__init__()
            self.out_proj = nn.Linear(4, 4)

    targets = [way.targets for way in adapting._ways(Headless(), Headless())]
    assert targets == ["all-linear", "all-linear", ["out_proj"]]


def test_where_all_of_them_fail_layers_are_named_one_by_one(monkeypatch):
    refusing(monkeypatch, lambda targets: "no" if targets == "all-linear" else "")
    found = adapted(Net("second"), X)
    assert layers_of(found) == ["first", "second"]
    assert found.without == "its layers are named one by one: RuntimeError: no"


def test_the_last_way_leaves_what_is_refused(monkeypatch):
    refusing(monkeypatch, lambda targets: "no" if "all-linear" in targets or "host.out_proj" in targets else "")
    found = adapted(Net("out_proj"), X)
    assert layers_of(found) == ["first"]
    assert found.without == "without adapters on out_proj: RuntimeError: no"


class WantsGradient(Net):
    message = "element 0 of tensors does not require grad and does not have a grad_fn"
    enabled = False

    def enable_input_require_grads(self):
        self.enabled = True

    def forward(self, x, **kwargs):
        if not self.enabled:
            raise RuntimeError(self.message)
        return super().forward(x)


def test_inputs_that_require_a_gradient_are_given_where_they_are_wanted():
    found = adapted(WantsGradient(), X)
    assert found.without.startswith("it wants inputs that require a gradient: RuntimeError: element 0")
    assert layers_of(found) == ["first", "head"]


def test_they_are_given_for_no_other_error(monkeypatch):
    monkeypatch.setattr(WantsGradient, "message", "another")
    with pytest.raises(RuntimeError, match="another"):
        adapted(WantsGradient(), X)


def test_where_every_way_fails_the_first_error_is_raised(monkeypatch):
    numbers = iter(range(9))
    asked = refusing(monkeypatch, lambda targets: f"number {next(numbers)}")
    with pytest.raises(RuntimeError, match="number 0"):
        adapted(Net("out_proj"), X)
    assert [targets for targets, _ in asked] == ["all-linear", ["host.first", "host.out_proj"], ["host.first"]]


# ---- layers


def test_what_peft_means_by_linear():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": Conv1D(2, 2), "c": Odd(2, 2), "d": nn.Bilinear(2, 2, 2)})
    assert list(linear_layers(nn.ModuleDict({"in": model}))) == ["in.a", "in.b", "in.c"]
    assert linear_layers(nn.Conv1d(2, 2, 1)) == {}


@pytest.mark.parametrize(("made", "expected"), [(nn.Linear, True), (nn.Bilinear, False), (None, True)])
def test_whether_a_type_has_any(made, expected, monkeypatch):
    """No memory is taken for its weights; where nobody can say, it may have."""
    devices = []

    def build(config):
        if made is None:
            raise ValueError("it wants a number")
        model = made(*config)
        devices.append(model.weight.device.type)
        return model

    source = SimpleNamespace(model_class=build, config_class=lambda: (2, 2, 2))
    monkeypatch.setattr(adapting, "source_of", lambda model_type, head: source)
    assert has_linear_layers("llama", "causal") is expected
    assert devices == (["meta"] if made else [])


@pytest.mark.parametrize("error", [AttributeError, NotImplementedError])
def test_a_model_without_a_head_that_it_names(error):
    def fail():
        raise error

    assert adapting._output_embeddings(SimpleNamespace(get_output_embeddings=fail)) is None
    assert adapting._output_embeddings(object()) is None
    assert adapting._output_embeddings(SimpleNamespace(get_output_embeddings=lambda: 3)) == 3


# ---- the loss


class Gives(nn.Module):
    def __init__(self, outputs, **config):
        super().__init__()
        self.outputs, self.config, self.given = outputs, SimpleNamespace(**config), None

    def forward(self, **inputs):
        self.given = inputs
        return self.outputs


class Knows(Gives):
    def forward(self, use_cache=True, **inputs):
        return super().forward(use_cache=use_cache, **inputs)


@pytest.mark.parametrize(
    ("host", "passed"),
    [(Gives, False), (Knows, True), (lambda outputs: Gives(outputs, use_cache=True), True)],
    ids=["knows none", "takes it", "has it in its configuration"],
)
def test_a_cache_is_switched_off_where_there_may_be_one(host, passed):
    model = host(torch.ones(2, 2, requires_grad=True))
    AllOutputs(model)(use_cache=False, x=1)
    assert model.given == ({"x": 1} | ({"use_cache": False} if passed else {}))


class SaysItself(Gives):
    """It hands on what it is given beside what it says itself of its cache."""

    def forward(self, **inputs):
        return super().forward(use_cache=False, **inputs)


def test_a_cache_that_a_model_speaks_of_itself_is_left_to_it():
    model = SaysItself(torch.ones(2, 2, requires_grad=True), use_cache=True)
    AllOutputs(model)(use_cache=False, x=1)
    assert model.given == {"use_cache": False, "x": 1}


def test_another_argument_that_is_given_twice_is_an_error():
    class Twice(Gives):
        def forward(self, **inputs):
            return super().forward(x=1, **inputs)

    with pytest.raises(TypeError, match="multiple values for keyword argument 'x'"):
        AllOutputs(Twice(torch.ones(2, 2), use_cache=True))(use_cache=False, x=2)


def test_every_output_that_can_be_trained_counts():
    one, other = torch.randn(2, 3, requires_grad=True), torch.randn(4, requires_grad=True)
    constant, single, whole = torch.randn(2, 3), torch.ones(1, requires_grad=True), torch.arange(3)
    found = AllOutputs(Gives([constant, one, [other, single], whole]))()
    assert found.logits is constant
    expected = F.cross_entropy(one, torch.tensor([0, 1])) + F.cross_entropy(other[None], torch.tensor([0]))
    torch.testing.assert_close(found.loss, expected)


def test_where_none_can_be_trained_the_loss_is_their_sum():
    single = torch.full((1,), 3.0, requires_grad=True)
    found = AllOutputs(Gives([single]))()
    assert (found.logits is single, found.loss.item()) == (True, 3.0)


def test_without_a_tensor_there_is_no_loss():
    with pytest.raises(CannotBuildError, match="Gives gives no tensor"):
        AllOutputs(Gives(["text", torch.arange(3)]))()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(2, 3), (5, 3), (2, 3, 4), (6,), (6, 1), (2, 3, 1)], ids=str)
def test_classes_are_counted_through(shape, dtype):
    """Row i is of class i, again from 0 after the last; of single entries all are one row."""
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    loss = adapting._cross_entropy(tensor)
    precise = torch.float64 if dtype is torch.float64 else torch.float32
    rows = tensor.to(precise).reshape(-1, shape[-1] if shape[-1] > 1 else tensor.numel())
    expected = torch.stack([row.logsumexp(0) - row[i % len(row)] for i, row in enumerate(rows)]).mean()
    assert loss.dtype is precise
    torch.testing.assert_close(loss, expected)


def test_what_is_ruled_out_gives_a_finite_loss():
    tensor = torch.tensor([[-torch.inf, 0.0], [1.0, -2e4]])
    expected = (1e4 + 1.0 + 1e4) / 2
    torch.testing.assert_close(adapting._cross_entropy(tensor), torch.tensor(expected))
