"""What may be asked of an estimate, what it answers, and what it refuses."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import nn

import patchkit
from patchkit.errors import EstimateError, NotAModelError, UnknownOptionError
from patchkit.estimation import estimate as module
from patchkit.estimation.configuration import Adapters, configuration_of, model_of
from patchkit.estimation.counter import Counter, Training
from patchkit.estimation.longest import longest_context
from patchkit.estimation.optimizers import optimizer_bytes
from patchkit.estimation.shapes import SHAPES
from patchkit.estimation.sizes import bytes_of, shown
from patchkit.testing import add_lora, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def model():
    return add_lora(tiny_model("llama", num_hidden_layers=4))


@pytest.fixture(scope="module")
def found(model):
    return patchkit.estimate(model, tokens=16, loss=True)


def test_every_way_to_train_is_there(found):
    ways = ["", ", checkpointed"]
    names = [f"{name}{way}" for name in ("plain", "patched, loss=True") for way in ways]
    assert [one.name for one in found.variants] == [
        *names,
        "patched, loss=True, offloaded",
        "patched, loss=True, checkpointed, offloaded",
    ]
    assert [one.options for one in found.variants] == [None, None, *[{"loss": True}] * 4]
    assert found.variant("plain, checkpointed").checkpointing
    with pytest.raises(KeyError, match="there are plain"):
        found.variant("fast")


def test_numbers_go_together(found):
    for one in found.variants:
        assert one.bytes_kept == sum(one.kept.values())
        assert one.peak == found.parameters + found.optimizers["adamw"] + one.step_peak
        assert one.step_peak >= max(one.bytes_kept, found.gradients)
        assert bool(one.host) == one.offload
        assert not one.unfused
    assert found.variant("patched, loss=True").bytes_kept < found.variant("plain").bytes_kept


def test_the_longest_context_fits_and_one_more_grain_does_not(model):
    room = 3 * 2**20
    with Counter(model, 1).prepared(Training("plain", None)) as (run, _):
        longest = longest_context(lambda tokens: run(tokens).peak, room, 64)
        assert longest >= 64
        assert run(longest).peak <= room < run(longest + 64).peak


def test_a_card_holds_parameters_and_states_too(model, monkeypatch):
    rooms = []
    monkeypatch.setattr(module, "longest_context", lambda peak_of, room, start: rooms.append(room) or start + 1)
    found = patchkit.estimate(model, tokens=16, card="2MiB", loss=True)
    assert found.card == 2**21
    assert set(rooms) == {2**21 - found.parameters - found.optimizers["adamw"]}
    assert {one.longest for one in found.variants} == {17}
    assert "longest context" in str(found)


def test_it_is_shown(found):
    text = str(found)
    assert "LlamaForCausalLM, 1 × 16 tokens" in text
    assert all(heading in text for heading in ("attention", "MLP", "head and loss", "Assumed:"))
    assert repr(found).startswith("<patchkit.Estimate LlamaForCausalLM, 1 x 16 tokens: ")
    assert json.loads(json.dumps(found.as_dict()))["variants"][0]["bytes_kept"] == found.variants[0].bytes_kept


def test_the_model_is_left_as_it_is_and_may_be_patched(model, found):
    patched = copy.deepcopy(model)
    patchkit.apply(patched)
    patched.gradient_checkpointing_enable()
    before = [(name, id(one), one.requires_grad) for name, one in patched.named_parameters()], patchkit.report(patched)
    again = patchkit.estimate(patched, tokens=16, loss=True)
    for name in ("plain, checkpointed", "patched, loss=True, checkpointed"):
        assert again.variant(name) == found.variant(name)
    assert (
        [(name, id(one), one.requires_grad) for name, one in patched.named_parameters()],
        patchkit.report(patched),
    ) == before
    assert all(one.grad is None for one in patched.parameters())


def test_nothing_of_its_size_is_needed():
    model = model_of(configuration_of("llama-8b"), torch.bfloat16, Adapters(rank=8))
    found = patchkit.estimate(model, tokens=32768, loss=True)
    assert all(one.is_meta for one in model.parameters())
    assert found.parameters == pytest.approx(8.03e9 * 2, rel=0.02)
    # What checkpointing keeps of a layer is its input in bfloat16.
    assert found.variants[1].kept["residual stream"] == 31 * 32768 * 4096 * 2


@pytest.mark.parametrize("length", [512, 4096])
def test_flash_attention_needs_no_mask_of_a_window(length):
    values = {**SHAPES["gemma-3-1b"][1], "vocab_size": 512, "num_hidden_layers": 6, "sliding_window": 1024}
    kept = {}
    for attention in ("sdpa", "flash_attention_2"):
        config = transformers.Gemma3TextConfig(**values)
        counter = Counter(model_of(config, torch.bfloat16, Adapters(), attention=attention), 1)
        with counter.prepared(Training("plain", None)) as (run, _):
            kept[attention] = run(length).kept
    # Of a mask, which is one for all layers, each of the five with a window keeps a copy in numbers of bfloat16.
    mask = length**2 if length > 1024 else 0
    assert kept["sdpa"]["attention"] - kept["flash_attention_2"]["attention"] == 5 * 2 * mask


@pytest.mark.parametrize(
    ("asked", "error", "text"),
    [
        ({"tokens": 0}, EstimateError, "tokens must be a whole number of at least 1, found 0"),
        ({"tokens": -4}, EstimateError, "found -4"),
        ({"tokens": 1.5}, EstimateError, "found 1.5"),
        ({"tokens": True}, EstimateError, "found True"),
        ({"tokens": 8, "batch": 0}, EstimateError, "batch must be"),
        ({"tokens": 8, "card": "80 bananas"}, EstimateError, "'80 bananas' is no size of memory; write it as 80GiB"),
        ({"tokens": 8, "card": 0}, EstimateError, "is no size"),
        ({"tokens": 8, "optimizer": "adam"}, EstimateError, "unknown optimizer 'adam'. There are adamw"),
        ({"tokens": 8, "los": True}, UnknownOptionError, "did you mean 'loss'"),
        ({"tokens": 8, "loss": 1}, UnknownOptionError, "takes True or False"),
    ],
)
def test_nonsense_is_refused(model, asked, error, text):
    with pytest.raises(error, match=text):
        patchkit.estimate(model, **asked)


def test_models_that_cannot_be_estimated(model, tmp_path):
    with pytest.raises(EstimateError, match="LlamaForCausalLM has no layer with a LoRA adapter: add adapters first"):
        patchkit.estimate(tiny_model("llama"), tokens=8)
    with pytest.raises(EstimateError, match="adapters, of which none is trained"):
        patchkit.estimate(copy.deepcopy(model).requires_grad_(False), tokens=8)
    with pytest.raises(NotAModelError, match="found a str"):
        patchkit.estimate("llama", tokens=8)
    plain = get_peft_model(nn.Sequential(nn.Linear(4, 4)), LoraConfig(target_modules=["0"]))
    with pytest.raises(EstimateError, match=r"cannot be run on input_ids and labels of \[1, 8\]"):
        patchkit.estimate(plain, tokens=8)
    with pytest.raises(EstimateError, match=r"(?s)no configuration is found at '.*nowhere'.*llama-8b"):
        configuration_of(tmp_path / "nowhere")
    with pytest.raises(EstimateError, match="no model with adapters can be made of a LlamaConfig"):
        model_of(configuration_of("llama-8b"), torch.bfloat16, Adapters(targets=("no_such_layer",)))


def test_a_model_that_counts_its_layers_is_run_with_all(monkeypatch):
    model = add_lora(tiny_model("llama", num_hidden_layers=5))
    expected = patchkit.estimate(model, tokens=8).variants[0].bytes_kept
    inner = model.base_model.model.model
    forward = type(inner).forward

    def counting(self, *args, **kwargs):
        if len(self.layers) != 5:
            raise IndexError("layer 5 is missing")
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(inner), "forward", counting)
    assert patchkit.estimate(model, tokens=8).variants[0].bytes_kept == expected


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("adamw", lambda parameters: torch.optim.AdamW(parameters)),
        ("momentum", lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9)),
        ("sgd", lambda parameters: torch.optim.SGD(parameters, lr=0.1)),
        ("adafactor", lambda parameters: transformers.Adafactor(parameters)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_are_those_of_the_optimizer(name, make, dtype):
    parameters = [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in ((8, 3), (5,), (2, 3, 4))]
    optimizer = make(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values()]
    kept = sum(value.nbytes for value in states if isinstance(value, torch.Tensor))
    if name == "adafactor":  # a number for the root mean square of each parameter
        kept -= sum(value["RMS"].nbytes for value in optimizer.state.values() if torch.is_tensor(value.get("RMS")))
    assert optimizer_bytes(parameters)[name] == kept


@pytest.mark.parametrize(
    ("text", "size"), [("80GiB", 80 * 2**30), ("24 GB", 24 * 10**9), ("1.5MiB", 3 * 2**19), ("17", 17), (99, 99)]
)
def test_sizes(text, size):
    assert bytes_of(text) == size


def test_sizes_are_shown_with_three_digits():
    assert [shown(size) for size in (2**30 * 80, 2**30 * 1.5, 2**20 * 33.3, 0)] == [
        "80.0 GiB",
        "1.50 GiB",
        "33.3 MiB",
        "0.00 MiB",
    ]


@pytest.mark.parametrize("peak_of", [lambda n: 1000 * n, lambda n: n * n, lambda n: 10**6 + 300 * n + n * n // 7])
@pytest.mark.parametrize("room", [1, 900, 10**5, 10**6, 10**8, 10**10])
@pytest.mark.parametrize("start", [1, 4096])
def test_the_longest_context_is_found_in_few_steps(peak_of, room, start):
    asked = []

    def counted(tokens):
        asked.append(tokens)
        return peak_of(tokens)

    found = longest_context(counted, room, start)
    assert not found or peak_of(found) <= room
    assert peak_of(found + (64 if found >= 64 else 1)) > room
    assert len(asked) <= 30
