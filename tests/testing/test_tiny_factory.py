"""Tiny models of any configuration: what is built, what it is given, and what is said where nothing can be."""

from __future__ import annotations

import copy
import random
import re

import pytest
import torch
from torch import nn
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from patchkit.errors import NoModelError, TinyModelError
from patchkit.testing import add_lora, relative_error, tiny_inputs_for, tiny_model_from
from patchkit.testing.random_state import seeded
from patchkit.testing.tiny.outcome import first_tensor, require_a_step

SAMPLE = {
    # model type and head: the inputs beside tokens that it must get
    ("afmoe", "causal"): (),
    ("bamba", "causal"): (),
    ("bloom", "causal"): (),
    ("cohere2", "causal"): (),
    ("deepseek_v3", "causal"): (),
    ("falcon", "causal"): (),
    ("gemma3_text", "causal"): (),
    ("gpt2", "causal"): (),
    ("gpt_neox", "causal"): (),
    ("gpt_oss", "causal"): (),
    ("jamba", "causal"): (),
    ("llama", "causal"): (),
    ("mixtral", "causal"): (),
    ("mpt", "causal"): (),
    ("olmo2", "causal"): (),
    ("opt", "causal"): (),
    ("phi3", "causal"): (),
    ("qwen3_next", "causal"): (),
    ("bert", "encoder"): (),
    ("modernbert", "encoder"): (),
    ("t5", "seq2seq"): (),
    ("bart", "seq2seq"): (),
    ("gemma3", "image-text"): ("pixel_values",),
    ("llava_next", "image-text"): ("pixel_values", "image_sizes"),
    ("qwen2_vl", "image-text"): ("pixel_values", "image_grid_thw"),
    ("vit", "vision"): ("pixel_values",),
    ("wav2vec2", "ctc"): ("input_values",),
    ("whisper", "speech-seq2seq"): ("input_features",),
}


@pytest.mark.parametrize(("model_type", "head"), SAMPLE, ids=map("-".join, SAMPLE))
def test_a_model_of_each_family(model_type: str, head: str) -> None:
    """Small, with a loss, with inputs of all its towers, the same for the same seed, and random state is left alone."""
    torch.manual_seed(5)
    random.seed(5)
    before = torch.get_rng_state(), random.getstate()
    model = tiny_model_from(model_type, head=head)
    inputs = tiny_inputs_for(model)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert model.training
    assert sum(parameter.numel() for parameter in model.parameters()) < 3_000_000
    assert {*SAMPLE[model_type, head], "labels"} <= set(inputs)
    require_a_step(model, inputs)
    again = tiny_model_from(model_type, head=head)
    assert _differing(model, again) == []
    assert _differing(model, tiny_model_from(model_type, head=head, seed=1))
    same = tiny_inputs_for(again)
    assert inputs.keys() == same.keys()
    assert all(torch.equal(inputs[name], same[name]) for name in inputs)
    with seeded(0), torch.no_grad():
        assert model(**inputs).loss.isfinite()


def _differing(model: nn.Module, other: nn.Module) -> list[str]:
    pairs = zip(model.named_parameters(), other.parameters(), strict=True)
    return [name for (name, one), two in pairs if not torch.equal(one, two)]


WITH_TOWERS = [pair for pair, given in SAMPLE.items() if given]


@pytest.mark.parametrize(("model_type", "head"), WITH_TOWERS, ids=map("-".join, WITH_TOWERS))
def test_what_a_tower_is_given_changes_the_output(model_type: str, head: str) -> None:
    model = tiny_model_from(model_type, head=head).eval()
    inputs = tiny_inputs_for(model)
    name = SAMPLE[model_type, head][0]
    with torch.no_grad():
        one = first_tensor(model(**inputs))
        other = first_tensor(model(**inputs | {name: torch.randn_like(inputs[name])}))
    assert relative_error(other, one) > 1e-3


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("siglip_text_model", "SiglipTextModel"),
        ("blip_text_model", "BlipTextLMHeadModel"),
        ("musicgen_decoder", "MusicgenModel"),
    ],
)
def test_a_part_is_the_class_that_takes_its_configuration(model_type: str, name: str) -> None:
    assert type(tiny_model_from(model_type, head="part")).__name__ == name


def test_a_part_that_no_class_takes_is_said() -> None:
    with pytest.raises(
        NoModelError, match="no class takes SamMaskDecoderConfig, which describes a part of other models"
    ):
        tiny_model_from("sam_mask_decoder", head="part")


def test_tokens_stand_below_a_short_vocabulary() -> None:
    model = tiny_model_from("llama", head="causal", vocab_size=40)
    ids = tiny_inputs_for(model, batch=8)["input_ids"]
    assert 30 < int(ids.max()) < 40
    assert int(tiny_inputs_for(tiny_model_from("llama"), batch=8)["input_ids"].max()) > 80


def test_a_model_that_no_rule_makes_small_keeps_its_own_sizes() -> None:
    """If it is no large one."""
    model = tiny_model_from("mobilenet_v1", head="vision")
    assert 3_000_000 < sum(parameter.numel() for parameter in model.parameters()) < 100_000_000


def test_labels_of_another_kind_are_left_out() -> None:
    inputs = tiny_inputs_for(tiny_model_from("vitpose", head="task"))
    assert set(inputs) == {"pixel_values"}


def test_what_a_step_leaves_in_a_model_is_not_left() -> None:
    """It could not be copied: its states would be of a graph."""
    copy.deepcopy(tiny_model_from("recurrent_gemma", head="causal"))


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "mixtral", "deepseek_v3"])
def test_adapters_on_every_linear_layer_train(model_type: str) -> None:
    model = tiny_model_from(model_type, head="causal")
    inputs = tiny_inputs_for(model)
    adapted = add_lora(model, target_modules="all-linear").train()
    require_a_step(adapted, inputs)
    found = tiny_inputs_for(adapted)
    assert all(torch.equal(inputs[name], found[name]) for name in inputs), "the model within is asked"


def test_widths_differ_where_they_may() -> None:
    """A swapped dimension would be a wrong shape."""
    config = tiny_model_from("llama").config
    attention = config.num_attention_heads * config.head_dim
    shared = config.num_key_value_heads * config.head_dim
    sizes = [config.hidden_size, config.intermediate_size, attention, shared, config.vocab_size]
    assert len(set(sizes)) == len(sizes)
    assert bin(config.intermediate_size).count("1") > 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_parameters_have_the_dtype_and_buffers_their_own(dtype: torch.dtype) -> None:
    model, usual = tiny_model_from("llama", dtype=dtype), tiny_model_from("llama")
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert [buffer.dtype for buffer in model.buffers()] == [buffer.dtype for buffer in usual.buffers()]


def test_a_given_configuration_is_left_as_it_was() -> None:
    """What the sizes do not decide stays in the model's."""
    config = LlamaConfig(hidden_act="gelu", attention_bias=True, attention_dropout=0.25, attn_implementation="eager")
    before = copy.deepcopy(config.to_dict())
    small = tiny_model_from(config).config
    assert config.to_dict() == before
    assert (small.hidden_act, small.attention_bias, small.attention_dropout) == ("gelu", True, 0.25)
    assert small.hidden_size < config.hidden_size


def test_overrides_come_after_the_sizes() -> None:
    model = tiny_model_from("llama", head="causal", intermediate_size=96, hidden_act="gelu")
    assert model.config.intermediate_size == 96
    assert model.config.hidden_act == "gelu"
    nested = tiny_model_from("llava_next", head="image-text", text_config={"intermediate_size": 72})
    assert nested.config.text_config.intermediate_size == 72


@pytest.mark.parametrize(
    "given", ["llama", LlamaConfig, LlamaConfig(), LlamaForCausalLM], ids=lambda given: type(given).__name__
)
def test_each_way_to_name_a_model(given: object) -> None:
    assert type(tiny_model_from(given)) is LlamaForCausalLM


# ---- what is not of transformers


class OddConfig(PretrainedConfig):
    model_type = "odd_for_a_test"

    def __init__(self, breadth: int = 1536, tall: int = 2560, words: int = 32000, **kwargs: object) -> None:
        self.breadth, self.tall, self.words = breadth, tall, words
        super().__init__(**kwargs)


class OddModel(PreTrainedModel):
    """Sizes by names that nobody uses, and a loss."""

    config_class = OddConfig

    def __init__(self, config: OddConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.words, config.breadth)
        self.up = nn.Linear(config.breadth, config.tall)
        self.down = nn.Linear(config.tall, config.breadth)
        self.head = nn.Linear(config.breadth, config.words)
        self.post_init()

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> CausalLMOutput:
        hidden = self.embed(input_ids % self.config.words)
        logits = self.head(hidden + self.down(torch.nn.functional.silu(self.up(hidden))))
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten() % self.config.words)
        return CausalLMOutput(loss=loss, logits=logits)


@pytest.mark.parametrize(
    "ways", [(OddModel, None), (OddConfig, OddModel), (OddConfig(), OddModel)], ids=["model", "class", "config"]
)
def test_a_plugins_own_configuration(ways: tuple[object, type[OddModel] | None]) -> None:
    """Sizes that are known by no name are found in the parameters that are too large."""
    model = tiny_model_from(ways[0], head=ways[1])
    assert type(model) is OddModel
    assert sum(parameter.numel() for parameter in model.parameters()) < 3_000_000
    require_a_step(model, tiny_inputs_for(model))


class Raising(OddModel):
    def __init__(self, config: OddConfig) -> None:
        raise RuntimeError("no such thing as a small one")


class Constant(OddModel):
    def forward(self, input_ids: torch.Tensor) -> CausalLMOutput:
        return CausalLMOutput(logits=0.0 * self.embed(input_ids % self.config.words))


class NotFinite(OddModel):
    def forward(self, input_ids: torch.Tensor) -> CausalLMOutput:
        return CausalLMOutput(logits=self.embed(input_ids % self.config.words) / 0.0)


class Detached(OddModel):
    def forward(self, input_ids: torch.Tensor) -> CausalLMOutput:
        return CausalLMOutput(logits=self.embed(input_ids % self.config.words).detach())


class Wordless(OddModel):
    def forward(self, something_else: torch.Tensor) -> None:
        raise AssertionError(something_else)


class Forwardless(PreTrainedModel):
    config_class = OddConfig


class ContraryConfig(OddConfig):
    def __init__(self, **kwargs: object) -> None:
        raise ValueError("say how long")


class Contrary(OddModel):
    config_class = ContraryConfig


SMALL = OddConfig(breadth=24, tall=40, words=50)
ERRORS = {
    "a constructor that raises": (SMALL, Raising, "usual sizes: RuntimeError: no such thing as a small one"),
    "outputs that are alike": (SMALL, Constant, "its outputs are all alike"),
    "outputs that are not finite": (SMALL, NotFinite, "its outputs are not finite"),
    "no gradient": (SMALL, Detached, "does not require grad"),
    "a forward of unknown arguments": (
        SMALL,
        Wordless,
        "usual sizes: no tokens, images, sounds or states are among the arguments of its forward: something_else",
    ),
    "no forward": (SMALL, Forwardless, "Forwardless has no forward: it generates, and its parts are trained"),
    "a configuration that wants arguments": (Contrary, None, "ContraryConfig cannot be made: ValueError: say how long"),
    "no configuration": (7, None, "no configuration: 7; pass a model type"),
    "no configuration class": (int, None, "no configuration: <class 'int'>"),
    "an unknown model type": ("no_such_type", None, "transformers has no model type 'no_such_type'"),
    "an unknown head": (LlamaConfig, "tail", "unknown head 'tail'; known: causal, image-text"),
    "a head that it has not": (LlamaConfig, "image-text", "LlamaConfig has no model with head 'image-text'"),
    "a configuration without a model": (OddConfig, None, "OddConfig has no model in any mapping; pass the model class"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_what_cannot_be_built_is_said(case: str) -> None:
    source, head, message = ERRORS[case]
    state = torch.get_rng_state()
    with pytest.raises(TinyModelError, match=re.escape(message)):
        tiny_model_from(source, head=head)
    assert torch.equal(state, torch.get_rng_state())


def test_inputs_that_a_model_does_not_take_are_an_error() -> None:
    with pytest.raises(TinyModelError, match="no inputs for Wordless"):
        tiny_inputs_for(Wordless(SMALL))


def test_an_auto_configuration_of_a_type_is_as_good_as_its_name() -> None:
    assert type(tiny_model_from(AutoConfig.for_model("llama"))) is LlamaForCausalLM
