"""Stand-ins are found under the hub's names, by the ordinary loaders."""

from __future__ import annotations

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftConfig
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from tools.peft_suite.stand_ins import STAND_INS, write_stand_ins

LLAMA = "trl-internal-testing/tiny-random-LlamaForCausalLM"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    assert [(one.repository, error) for one, error in write_stand_ins(home) if error is not None] == []
    return home


@pytest.fixture
def offline(monkeypatch, home):
    """What ``HF_HOME`` and ``HF_HUB_OFFLINE`` would set, had they been there when the libraries were imported."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return {"cache_dir": str(home / "hub"), "local_files_only": True}


def test_names_are_unique_and_bases_come_first():
    names = [one.repository for one in STAND_INS]
    assert len(set(names)) == len(names)
    assert all(one.base is None or one.base in names[:i] for i, one in enumerate(STAND_INS))


@pytest.mark.parametrize(
    ("repository", "loader"),
    [
        (LLAMA, AutoModelForCausalLM),
        ("hf-internal-testing/tiny-random-Gemma3ForCausalLM", AutoModelForCausalLM),
        ("trl-internal-testing/tiny-Qwen2_5_VLForConditionalGeneration", AutoModelForImageTextToText),
    ],
)
def test_a_model_is_loaded_by_name(offline, repository, loader):
    model = loader.from_pretrained(repository, **offline)
    assert model(input_ids=torch.arange(6)[None]).logits.shape == (1, 6, 1024)


def test_an_adapter_finds_its_model(offline):
    name = "peft-internal-testing/tiny-OPTForCausalLM-lora"
    assert PeftConfig.from_pretrained(name, **offline).base_model_name_or_path.endswith("tiny-random-OPTForCausalLM")
    model = AutoPeftModelForCausalLM.from_pretrained(name, **offline)
    adapters = [parameter for name, parameter in model.named_parameters() if "lora_B" in name]
    assert adapters
    assert all(parameter.abs().sum() > 0 for parameter in adapters)


def test_the_tokenizer_gives_back_any_text(offline):
    tokenizer = AutoTokenizer.from_pretrained(LLAMA, **offline)
    text = "Grüße, 世界!"
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    assert ids.shape == (1, len(text.encode()))
    assert tokenizer.decode(ids[0]) == text
