"""Tiny models of a user's model: each field of a configuration, what of it stays, and whose instances they hold."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP

from patchkit.arch.registry import find
from patchkit.check.numeric import tiny_instances as tiny
from patchkit.check.numeric.tiny_instances import CannotBuildError, HiddenStates, shrunk_config
from patchkit.testing.tiny_models import VOCAB_SIZE


class Config(SimpleNamespace):
    """A configuration as upstream's are: attributes, more of them than are known here."""

    def __init__(self, **fields: object) -> None:
        usual = {
            "num_hidden_layers": 30,
            "num_attention_heads": 32,
            "hidden_size": 4096,
            "_attn_implementation": "sdpa",
        }
        super().__init__(**usual | fields)


# ---- what stays, and what gets small


IMPLEMENTATIONS = {
    "eager": "eager", "sdpa": "sdpa", "flash_attention_2": "eager", "flash_attention_3": "eager", "flex_attention": "eager",
    "kernels-community/flash-attn": "eager", None: "eager",
}  # fmt: skip


@pytest.mark.parametrize("chosen", IMPLEMENTATIONS)
def test_each_attention_implementation(chosen: str | None) -> None:
    """One that needs a GPU or a package is not what the proof is about."""
    assert shrunk_config(Config(_attn_implementation=chosen))._attn_implementation == IMPLEMENTATIONS[chosen]


HEADS = {
    # heads and key/value heads: what becomes of them
    (32, 8): (4, 2), (32, 32): (2, 2), (32, 1): (2, 1), (32, 16): (4, 2), (8, 1): (2, 1), (8, 4): (4, 2), (4, 2): (4, 2),
    (2, 2): (2, 2), (2, 1): (2, 1), (1, 1): (1, 1), (3, 3): (2, 2), (9, 3): (4, 2), (32, None): (2, 2), (1, None): (1, None),
}  # fmt: skip


@pytest.mark.parametrize(("heads", "groups"), HEADS)
def test_heads_stay_grouped_if_they_were(heads: int, groups: int | None) -> None:
    """None: the configuration has no such field, or nothing in it."""
    few_heads, few = HEADS[heads, groups]
    small = shrunk_config(Config(num_attention_heads=heads, num_key_value_heads=groups))
    assert (small.num_attention_heads, small.num_key_value_heads) == (few_heads, few or 1)
    assert small.hidden_size == few_heads * 16
    without = Config(num_attention_heads=heads)
    assert not hasattr(shrunk_config(without), "num_key_value_heads")


FIELDS = {
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "hidden_size": 64,
    "intermediate_size": 96, "vocab_size": VOCAB_SIZE, "pad_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize("left_out", [None, "head_dim", "intermediate_size", "vocab_size", "pad_token_id"])
def test_each_size(left_out: str | None) -> None:
    """A field that a configuration lacks it does not get: its class would not know it."""
    given = {name: 1000 for name in FIELDS if name != left_out}
    given |= {"num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 30}
    config = Config(**given, hidden_act="gelu", attention_bias=True, sliding_window=7)
    before = copy.deepcopy(vars(config))
    small = shrunk_config(config)
    assert {name: getattr(small, name, None) for name in FIELDS} == FIELDS | ({left_out: None} if left_out else {})
    assert (small.hidden_act, small.attention_bias, small.sliding_window) == ("gelu", True, 7)
    assert vars(config) == before, "it is the user's"


@pytest.mark.parametrize("layers", [1, 2, 3, 30])
def test_what_there_is_of_each_layer(layers: int) -> None:
    """A list with one entry for each; other lists, of whatever else, stay."""
    config = Config(
        num_hidden_layers=layers,
        layer_types=list(range(layers)),
        no_rope_layers=tuple(range(layers)),
        others=list(range(layers + 1)),
        name="x" * layers,
        sizes={number: number for number in range(layers)},
    )
    small = shrunk_config(config)
    few = min(layers, 2)
    assert small.num_hidden_layers == few
    assert list(small.layer_types) == list(small.no_rope_layers) == list(range(few))
    assert small.others == list(range(layers + 1))
    assert (small.name, len(small.sizes)) == ("x" * layers, layers)


ROTARY = {
    "none": ({}, False),
    "nothing in it": ({"rope_scaling": None, "rope_parameters": None}, False),
    "numbers": ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, False),
    "a list of sizes": ({"rope_scaling": {"mrope_section": [16, 24, 24]}}, True),
    "factors in a tuple": ({"rope_scaling": {"long_factor": (1.0, 2.0)}}, True),
    "under its new name": ({"rope_parameters": {"factor": 1.0, "short_factor": [1.0]}}, True),
    "in one of both": ({"rope_scaling": {"factor": 2.0}, "rope_parameters": {"mrope_section": [1]}}, True),
    "no mapping": ({"rope_scaling": [1, 2]}, False),
    "elsewhere": ({"other_scaling": {"sizes": [1, 2]}}, False),
}


@pytest.mark.parametrize("head_dim", [128, 96, None], ids=str)
@pytest.mark.parametrize("case", ROTARY)
def test_sizes_of_parts_of_a_head_fix_its_dimension(case: str, head_dim: int | None) -> None:
    """Which is the configuration's, or what its heads are wide."""
    fields, divides = ROTARY[case]
    small = shrunk_config(Config(**fields, head_dim=head_dim, num_key_value_heads=8))
    expected = (head_dim or 4096 // 32) if divides else 16
    assert (small.head_dim, small.hidden_size) == (expected, 4 * expected)


# ---- inputs and loss


def test_inputs_are_whole_sentences_of_known_words() -> None:
    """The same each time, with no mask, and without the first three words, which are special ones."""
    first, second = tiny._token_inputs(), tiny._token_inputs()
    assert all(torch.equal(first[name], second[name]) for name in first)
    ids = first["input_ids"]
    assert ids.shape == (2, 10)
    assert 3 <= ids.min() <= ids.max() < VOCAB_SIZE
    assert len(ids.unique()) > 8
    assert torch.equal(first["labels"], ids)
    assert torch.equal(first["attention_mask"], torch.ones_like(ids))


class Host(nn.Module):
    """Gives prepared hidden states, and keeps what it was asked."""

    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__()
        self.hidden, self.word, self.asked = hidden, "of the host", {}

    def forward(self, **asked: object) -> tuple[torch.Tensor, str]:
        self.asked = asked
        return self.hidden, "something else"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("masked", [0, 3])
def test_the_loss_of_hidden_states(masked: int, dtype: torch.dtype) -> None:
    """Where nothing is masked, and in no lower precision than float32."""
    torch.manual_seed(0)
    hidden = torch.randn(2, 5, 4).to(dtype)
    ids, mask = torch.randint(0, 50, (2, 5)), torch.ones(2, 5, dtype=torch.long)
    mask[1, :masked] = 0
    host = Host(hidden)
    found = HiddenStates(host)(ids, mask, ids, use_cache=False)
    assert found.logits is hidden
    assert host.asked["use_cache"] is False
    assert host.asked["input_ids"] is ids
    assert host.asked["attention_mask"] is mask
    wide = hidden.double() if dtype is torch.float64 else hidden.float()
    expected = F.cross_entropy(torch.cat([wide[0], wide[1, masked:]]), torch.cat([ids[0], ids[1, masked:]]) % 4)
    assert found.loss.dtype == wide.dtype
    torch.testing.assert_close(found.loss, expected)
    assert HiddenStates(host)(ids, mask).loss is None


def test_what_is_asked_of_the_hidden_states_is_asked_of_the_host() -> None:
    host = Host(torch.zeros(1))
    model = HiddenStates(host)
    assert model.word == "of the host"
    assert model.host is host
    for asked in (model, HiddenStates.__new__(HiddenStates)):
        with pytest.raises(AttributeError):
            _ = asked.nothing_of_the_kind


# ---- whose instances


class Around(PreTrainedModel):
    config_class = LlamaConfig

    def __init__(self, config: LlamaConfig, **parts: nn.Module) -> None:
        super().__init__(config)
        for name, part in parts.items():
            setattr(self, name, part)


def test_the_innermost_model_around_a_block() -> None:
    """By whole names: ``layers1`` is not in ``layers``."""
    config = LlamaConfig()
    inner, other = Around(config, mlp=nn.Identity()), Around(config, mlp=nn.Identity())
    outer = Around(config, layers=inner, layers1=other, plain=nn.Identity())
    wrapped = nn.ModuleDict({"model": outer})
    assert tiny._host(wrapped, "model.layers.mlp") is inner
    assert tiny._host(wrapped, "model.layers1.mlp") is other
    assert tiny._host(wrapped, "model.plain") is outer
    assert tiny._host(wrapped, "elsewhere.mlp") is None
    assert tiny._host(outer, "plain") is outer
    assert tiny._host(nn.Identity(), "mlp") is None


class Given(LlamaMLP):
    """Given to the modules of a finished model: adds nothing that a constructor makes."""


class Constructed(LlamaMLP):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.more = nn.Identity()


@pytest.mark.parametrize(("cls", "held"), [
    (LlamaMLP, True), (Given, True), (Constructed, False), (LlamaAttention, False), (nn.Bilinear, False),
])  # fmt: skip
def test_whose_instances_a_model_holds(cls: type[nn.Module], held: bool) -> None:
    config = LlamaConfig(hidden_size=8, intermediate_size=8, num_attention_heads=2, num_key_value_heads=1)
    model = nn.Sequential(LlamaMLP(config), nn.Identity(), LlamaMLP(config))
    if held:
        tiny._hold(model, cls)
        assert [type(module) for module in model] == [cls, nn.Identity, cls]
    else:
        with pytest.raises(CannotBuildError, match=f"Sequential of its configuration has no {cls.__name__}"):
            tiny._hold(model, cls)
        assert [type(module) for module in model] == [LlamaMLP, nn.Identity, LlamaMLP]


def test_a_tiny_model_has_adapters_that_contribute_on_every_projection() -> None:
    """Of a scaling that is no power of two; and it trains, as what it stands for does."""
    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, vocab_size=9
    )  # fmt: skip
    model = tiny._adapted(LlamaForCausalLM(config), find("llama"))
    layers = {name.rpartition(".")[2]: part for name, part in model.named_modules() if isinstance(part, LoraLayer)}
    assert set(layers) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    for layer in layers.values():
        assert (layer.r["default"], layer.scaling["default"]) == (4, 11 / 4)
        assert layer.lora_B["default"].weight.abs().max() > 0
    assert all(module.training for module in model.modules())
