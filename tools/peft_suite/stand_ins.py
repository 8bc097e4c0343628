"""Tiny models under the names that PEFT's tests load, for machines that cannot reach the Hugging Face hub.

They are written into a folder with the layout of the hub's cache, so nothing of transformers, PEFT or huggingface_hub
is intercepted: these find a repository that was downloaded before. Weights are random, and so are the results of the
few tests that know a number of the real model: those fail, plain and patched alike. Sizes are those of the field's tiny
test models, with a vocabulary of 1024 to be quick.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VOCAB_SIZE = 1024
PAD, BOS, EOS, UNKNOWN = range(4)

_TOKENS = {"vocab_size": VOCAB_SIZE, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
# Those that patchkit knows. 0.25 = 1 / sqrt(16): what a projection yields is of the order of what it reads. With the
# default of 0.02, a layer adds so little to the residual stream that PEFT's tolerances would not see a wrong one.
_DECODER = _TOKENS | {
    "hidden_size": 16,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.25,
}
_GROUPED = {"hidden_size": 32, "intermediate_size": 37, "num_key_value_heads": 2}
_GPT = _TOKENS | {"n_embd": 32, "n_layer": 5, "n_head": 4, "n_positions": 512}
_OPT = _TOKENS | {
    "hidden_size": 16,
    "word_embed_proj_dim": 16,
    "ffn_dim": 64,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
# Some tests know the hidden size of this one.
_OPT_125M = _OPT | {"hidden_size": 768, "word_embed_proj_dim": 768, "num_attention_heads": 12}
_BERT = _TOKENS | {
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
_T5 = {"vocab_size": VOCAB_SIZE, "d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 5, "num_heads": 4}
_T5 |= {"pad_token_id": PAD, "eos_token_id": EOS, "decoder_start_token_id": PAD}
# Grouped products of experts want rows of a multiple of 16 bytes.
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 64}
_QWEN_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 8}
_CLIP_TEXT = _BERT | {"projection_dim": 32}
_VISION = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
_MROPE = {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}


@dataclass(frozen=True)
class StandIn:
    """One repository.

    Attributes:
        repository: its name on the hub.
        model_class: name in transformers; its ``config_class`` is built from ``config``.
        config: values of the configuration.
        adapter: of a repository that holds a LoRA adapter: fields of ``peft.LoraConfig``; the model is then another
            repository's.
        base: of an adapter: the repository of its model.
    """

    repository: str
    model_class: str
    config: Mapping[str, Any] = field(default_factory=dict)
    adapter: Mapping[str, Any] | None = None
    base: str | None = None


def _lora(repository: str, model_class: str, base: str, **lora_config: Any) -> StandIn:
    return StandIn(repository, model_class, adapter=lora_config, base=base)


_TINY_OPT = "peft-internal-testing/tiny-random-OPTForCausalLM"
_LLAVA = {
    "text_config": _DECODER | {"model_type": "llama"},
    "vision_config": _VISION | {"model_type": "clip_vision_model", "image_size": 30, "patch_size": 15},
    "image_token_index": VOCAB_SIZE - 1,
}

STAND_INS: tuple[StandIn, ...] = (
    StandIn("trl-internal-testing/tiny-random-LlamaForCausalLM", "LlamaForCausalLM", _DECODER),
    StandIn("peft-internal-testing/tiny-random-LlamaForCausalLM", "LlamaForCausalLM", _DECODER),
    StandIn("hf-internal-testing/tiny-random-LlamaForCausalLM", "LlamaForCausalLM", _DECODER),
    StandIn("trl-internal-testing/tiny-LlamaForSequenceClassification-3.2", "LlamaForSequenceClassification", _DECODER),
    StandIn("hf-internal-testing/tiny-random-MistralForCausalLM", "MistralForCausalLM", _DECODER | _GROUPED),
    StandIn("peft-internal-testing/tiny-dummy-qwen2", "Qwen2ForCausalLM", _DECODER | _GROUPED),
    StandIn("trl-internal-testing/tiny-Qwen2ForCausalLM-2.5", "Qwen2ForCausalLM", _DECODER | _GROUPED),
    StandIn("Qwen/Qwen2-0.5B", "Qwen2ForCausalLM", _DECODER | _GROUPED),
    StandIn("trl-internal-testing/tiny-Qwen3ForCausalLM", "Qwen3ForCausalLM", _DECODER | {"head_dim": 8}),
    StandIn(
        "hf-internal-testing/tiny-random-Gemma3ForCausalLM",
        "Gemma3ForCausalLM",
        _DECODER | _GROUPED | {"head_dim": 8, "sliding_window": 16, "sliding_window_pattern": 2},
    ),
    StandIn("peft-internal-testing/tiny-LlavaForConditionalGeneration", "LlavaForConditionalGeneration", _LLAVA),
    StandIn("hf-internal-testing/tiny-random-LlavaForConditionalGeneration", "LlavaForConditionalGeneration", _LLAVA),
    StandIn(
        "trl-internal-testing/tiny-Qwen2_5_VLForConditionalGeneration",
        "Qwen2_5_VLForConditionalGeneration",
        {
            "text_config": _DECODER | _GROUPED | _MROPE,
            "vision_config": {"depth": 2, "hidden_size": 32, "intermediate_size": 37, "num_heads": 4}
            | {"out_hidden_size": 32, "fullatt_block_indexes": [1]},
        },
    ),
    StandIn("hf-internal-testing/Mixtral-tiny", "MixtralForCausalLM", _DECODER | _GROUPED | _EXPERTS),
    StandIn(
        "trl-internal-testing/tiny-Llama4ForCausalLM",
        "Llama4ForCausalLM",
        _DECODER | _EXPERTS | {"intermediate_size_mlp": 64, "head_dim": 4, "num_experts_per_tok": 1},
    ),
    StandIn("trl-internal-testing/tiny-GptOssForCausalLM", "GptOssForCausalLM", _DECODER | _EXPERTS | {"head_dim": 4}),
    StandIn("trl-internal-testing/tiny-Qwen3MoeForCausalLM", "Qwen3MoeForCausalLM", _DECODER | _QWEN_EXPERTS),
    StandIn("hf-internal-testing/tiny-qwen3-moe", "Qwen3MoeForCausalLM", _DECODER | _QWEN_EXPERTS),
    StandIn(_TINY_OPT, "OPTForCausalLM", _OPT),
    StandIn("peft-internal-testing/opt-125m", "OPTForCausalLM", _OPT_125M),
    StandIn("facebook/opt-125m", "OPTForCausalLM", _OPT_125M),
    StandIn("peft-internal-testing/tiny-random-GPT2LMHeadModel", "GPT2LMHeadModel", _GPT),
    StandIn("peft-internal-testing/tiny-random-gpt2", "GPT2LMHeadModel", _GPT),
    StandIn("hf-internal-testing/tiny-random-gpt2", "GPT2LMHeadModel", _GPT),
    StandIn("openai-community/gpt2", "GPT2LMHeadModel", _GPT),
    StandIn("peft-internal-testing/tiny-random-GPTJForCausalLM", "GPTJForCausalLM", _GPT | {"rotary_dim": 4}),
    StandIn(
        "peft-internal-testing/tiny-random-GPTNeoXForCausalLM",
        "GPTNeoXForCausalLM",
        _BERT | {"num_hidden_layers": 5},
    ),
    StandIn(
        "peft-internal-testing/tiny-random-BloomForCausalLM",
        "BloomForCausalLM",
        _TOKENS | {"hidden_size": 32, "n_layer": 5, "n_head": 4},
    ),
    StandIn("peft-internal-testing/tiny-random-BertModel", "BertModel", _BERT),
    StandIn("hf-internal-testing/tiny-random-BertModel", "BertModel", _BERT),
    StandIn("peft-internal-testing/tiny-random-RobertaModel", "RobertaModel", _BERT),
    StandIn("peft-internal-testing/tiny-random-DebertaModel", "DebertaModel", _BERT),
    StandIn("peft-internal-testing/tiny-random-DebertaV2Model", "DebertaV2Model", _BERT),
    StandIn("peft-internal-testing/tiny-random-BertForSequenceClassification", "BertForSequenceClassification", _BERT),
    StandIn(
        "peft-internal-testing/tiny-random-RobertaForSequenceClassification",
        "RobertaForSequenceClassification",
        _BERT,
    ),
    StandIn("peft-internal-testing/tiny-random-t5", "T5ForConditionalGeneration", _T5),
    StandIn("peft-internal-testing/tiny-random-T5ForConditionalGeneration", "T5ForConditionalGeneration", _T5),
    StandIn(
        "peft-internal-testing/tiny-random-T5ForConditionalGeneration-calibrated", "T5ForConditionalGeneration", _T5
    ),
    StandIn(
        "peft-internal-testing/tiny-random-BartForConditionalGeneration",
        "BartForConditionalGeneration",
        _TOKENS
        | {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2}
        | {"encoder_ffn_dim": 4, "decoder_ffn_dim": 4, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
        | {"max_position_embeddings": 512, "decoder_start_token_id": EOS, "forced_eos_token_id": EOS},
    ),
    StandIn("peft-internal-testing/tiny-clip-text-2", "CLIPTextModelWithProjection", _CLIP_TEXT),
    _lora("peft-internal-testing/tiny-OPTForCausalLM-lora", "OPTForCausalLM", _TINY_OPT, task_type="CAUSAL_LM"),
    _lora(
        "peft-internal-testing/tiny_T5ForSeq2SeqLM-lora",
        "T5ForConditionalGeneration",
        "peft-internal-testing/tiny-random-T5ForConditionalGeneration",
        task_type="SEQ_2_SEQ_LM",
    ),
    _lora(
        "peft-internal-testing/tiny_OPTForSequenceClassification-lora",
        "OPTForSequenceClassification",
        _TINY_OPT,
        task_type="SEQ_CLS",
    ),
    _lora(
        "peft-internal-testing/tiny_GPT2ForTokenClassification-lora",
        "GPT2ForTokenClassification",
        "peft-internal-testing/tiny-random-gpt2",
        task_type="TOKEN_CLS",
    ),
    _lora(
        "peft-internal-testing/tiny_OPTForQuestionAnswering-lora",
        "OPTForQuestionAnswering",
        _TINY_OPT,
        task_type="QUESTION_ANS",
    ),
    _lora(
        "peft-internal-testing/tiny_OPTForFeatureExtraction-lora",
        "OPTModel",
        _TINY_OPT,
        task_type="FEATURE_EXTRACTION",
    ),
    _lora("peft-internal-testing/gpt2-lora-random", "GPT2LMHeadModel", "openai-community/gpt2", task_type="CAUSAL_LM"),
    _lora(
        "peft-internal-testing/opt-125m-dummy-lora",
        "OPTForCausalLM",
        "peft-internal-testing/opt-125m",
        task_type="CAUSAL_LM",
    ),
    _lora("peft-internal-testing/tiny-random-BertModel-lora", "BertModel", "hf-internal-testing/tiny-random-BertModel"),
)
"""Every repository that has a stand-in; each adapter comes after its model."""

_QUOTES = ("ybelkada/english_quotes_copy", "Abirate/english_quotes")


def write_stand_ins(home: Path) -> Iterator[tuple[StandIn, Exception | None]]:
    """Build the stand-ins one by one.

    Args:
        home: the folder to use as ``HF_HOME``.

    Yields:
        Each stand-in with the exception that kept it from being built (this release of transformers may lack its
        class), or None. Its tests then find no such repository, plain and patched alike.
    """
    for stand_in in STAND_INS:
        try:
            _write(stand_in, home / "hub")
        except (AttributeError, TypeError, ValueError, KeyError, OSError) as error:
            yield stand_in, error
        else:
            yield stand_in, None


def write_datasets(folder: Path) -> None:
    """Write the text data set that some tests train on, where ``datasets`` looks before it asks the hub.

    Args:
        folder: the working directory of the tests; gets a folder for each of the data set's names.
    """
    subjects = (
        "A river",
        "The old clock",
        "Every winter",
        "A patient reader",
        "The second violin",
        "Somebody's garden",
    )
    verbs = ("teaches", "forgets", "carries", "measures", "repairs", "remembers")
    lines = [
        json.dumps({"quote": f"{subject} {verb} more than it says.", "author": subject, "tags": [verb]})
        for subject in subjects
        for verb in verbs
    ]
    for name in _QUOTES:
        path = folder / name / "train.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("\n".join(lines) + "\n")


def snapshot(cache: Path, repository: str) -> Path:
    """Where the hub's cache keeps the files of a repository's only commit."""
    commit = hashlib.sha1(repository.encode(), usedforsecurity=False).hexdigest()
    return cache / f"models--{repository.replace('/', '--')}" / "snapshots" / commit


def _write(stand_in: StandIn, cache: Path) -> None:
    import torch
    import transformers

    folder = snapshot(cache, stand_in.repository)
    model_class = getattr(transformers, stand_in.model_class)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if stand_in.base is None:
            model_class(model_class.config_class(**stand_in.config)).save_pretrained(folder)
            tokenizer().save_pretrained(folder)
        else:
            _write_adapter(stand_in, model_class, cache, folder)
    references = folder.parents[1] / "refs"
    references.mkdir()
    (references / "main").write_text(folder.name)


def _write_adapter(stand_in: StandIn, model_class: Any, cache: Path, folder: Path) -> None:
    from peft import LoraConfig, get_peft_model

    assert stand_in.base is not None
    assert stand_in.adapter is not None
    model = model_class.from_pretrained(snapshot(cache, stand_in.base))
    model.name_or_path = model.config._name_or_path = stand_in.base
    # A B of zero would make the adapter an identity, which no test could see.
    get_peft_model(model, LoraConfig(**stand_in.adapter, init_lora_weights=False)).save_pretrained(
        folder, save_embedding_layers=False
    )


def tokenizer() -> Any:
    """A ``transformers.PreTrainedTokenizerFast`` with one token for each byte and four special ones."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {"<pad>": PAD, "<s>": BOS, "</s>": EOS, "<unk>": UNKNOWN}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = special | {letter: index for index, letter in enumerate(alphabet, start=len(special))}
    model = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
