"""A suite as PEFT's, with tests of every fate. ``test_end_to_end`` copies it to ``tests/test_fake.py`` of a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, LoraModel, PeftModel, get_peft_model, inject_adapter_in_model
from transformers import LlamaConfig, LlamaForCausalLM

from patchkit.binding.patch import patch_of

from .testing_utils import CONFIG  # noqa: TID252  (as PEFT's tests import one another)

# This file is WORK/RUN/tests/test_fake.py: all runs share WORK.
WORK = Path(__file__).parents[2]


def llama():
    return LlamaForCausalLM(LlamaConfig(**CONFIG))


def lora(**options):
    return LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, **options)


def is_patched(model):
    return any(patch_of(module) is not None for module in model.modules())


def loaded(folder):
    get_peft_model(llama(), lora()).save_pretrained(folder)
    return PeftModel.from_pretrained(llama(), folder)


def with_adapter_later(_):
    model = llama()
    model.add_adapter(lora())
    return model


WAYS = {
    "get_peft_model": lambda _: get_peft_model(llama(), lora()),
    "from_pretrained": loaded,
    "mixed": lambda _: get_peft_model(llama(), lora(), mixed=True),
    "inject_adapter_in_model": lambda _: inject_adapter_in_model(lora(), llama()),
    "tuner": lambda _: LoraModel(llama(), lora(), "default").model,
    "transformers": with_adapter_later,
}


@pytest.mark.parametrize("way", WAYS)
def test_passes_plain_only(way, tmp_path):
    assert not is_patched(WAYS[way](tmp_path))


def test_passes_patched_only():
    assert is_patched(get_peft_model(llama(), lora()))


def test_runs_fused():
    model = get_peft_model(llama(), lora())
    ids = torch.arange(8)[None]
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_same_random_numbers_in_every_run():
    drawn, known = str(torch.rand(4).tolist()), WORK / "drawn"
    if not known.exists():
        known.write_text(drawn)
    assert drawn == known.read_text()


def test_fails_in_both():
    raise LookupError("no such thing")


def test_skipped():
    pytest.skip("no such device")


@pytest.mark.xfail(reason="known", strict=True)
def test_expected_to_fail():
    raise ValueError


@pytest.fixture
def broken():
    raise OSError("no such file")


def test_error(broken):
    pass


def test_no_apply_on_meta():
    with torch.device("meta"):
        model = llama()
    assert get_peft_model(model, lora(), low_cpu_mem_usage=True) is not None
