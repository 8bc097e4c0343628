"""What single model types need: each hint leads to a small model that trains on all that the hint gives."""

from __future__ import annotations

import copy

import pytest
import torch

from patchkit.errors import TinyModelError
from patchkit.testing import tiny_inputs_for, tiny_model_from
from patchkit.testing.tiny import hints
from patchkit.testing.tiny.hints import HINTS
from patchkit.testing.tiny.hints_of_images import OF_IMAGES
from patchkit.testing.tiny.inputs import search_inputs
from patchkit.testing.tiny.outcome import require_a_step

WITH_INPUTS = {
    "bridgetower_vision_model": "part",
    "clap": "base",
    "clvp": "base",
    "csm": "base",
    "csm_depth_decoder_model": "part",
    "d_fine": "base",
    "depth_pro": "base",
    "dia": "speech-seq2seq",
    "dia_decoder": "part",
    "dots3_note_audio_encoder": "part",
    "florence_vision": "part",
    "fun_asr_nano_encoder": "base",
    "gemma3n": "image-text",
    "gemma3n_audio": "base",
    "grounding-dino": "base",
    "inkling2_vision": "base",
    "jev": "task",
    "kyutai_speech_to_text": "speech-seq2seq",
    "lw_detr": "base",
    "mimi_decoder": "base",
    "minicpmv4_6_vision": "part",
    "molmo2": "image-text",
    "molmo2_adapter": "part",
    "muse_glimmer_assistant": "base",
    "muse_spark": "image-text",
    "muse_spark_audio": "base",
    "omdet-turbo": "base",
    "oneformer": "base",
    "paddleocr_vl_vision": "part",
    "pe_audio": "base",
    "pe_audio_encoder": "base",
    "phi4_multimodal_audio": "part",
    "pocket_tts_audio_tokenizer_decoder": "base",
    "qwen2_5_omni_audio_encoder": "part",
    "qwen3_asr_encoder": "base",
    "qwen3_omni_moe_audio_encoder": "part",
    "qwen3_omni_moe_talker_code_predictor": "part",
    "qwen3_omni_moe_talker_text": "part",
    "rt_detr": "base",
    "sam2": "base",
    "sam3_detr_decoder": "part",
    "seggpt": "base",
    "superglue": "task",
    "t5gemma2_decoder": "part",
    "timesfm": "base",
    "unlimited_ocr_vision": "part",
    "unlimited_ocr_vision_encoder": "part",
    "voxtral_realtime": "seq2seq",
    "voxtral_realtime_encoder": "base",
    "xclip_vision_model": "part",
    "zoedepth": "task",
}
WITHOUT = {
    "align": "base",
    "clvp_encoder": "part",
    "conditional_detr": "base",
    "deepseek_ocr2_vision": "part",
    "deformable_detr": "base",
    "detr": "base",
    "esm": "encoder",
    "fast_vlm": "image-text",
    "mimi": "base",
    "mimi_encoder": "base",
    "moonshine_streaming": "speech-seq2seq",
    "perception_lm": "image-text",
    "pix2struct_text_model": "part",
    "sam3_tracker": "base",
    "sapiens2": "base",
    "t5gemma2_encoder": "base",
    "t5gemma2_text": "part",
    "table-transformer": "base",
}


@pytest.mark.parametrize(("model_type", "head"), WITH_INPUTS.items(), ids=WITH_INPUTS)
def test_a_model_takes_the_inputs_of_its_hint(model_type: str, head: str) -> None:
    """The same for the same seed; no tower is left out, and each of them changes what comes out."""
    model = tiny_model_from(model_type, head=head)
    assert sum(parameter.numel() for parameter in model.parameters()) < 3_000_000
    found = search_inputs(model)
    assert found.inputs is not None
    assert found.missing == ()
    assert set(HINTS[model_type].inputs) <= set(found.inputs)
    again = tiny_inputs_for(model)
    assert all(torch.equal(value, again[name]) for name, value in found.inputs.items())
    require_a_step(copy.deepcopy(model), found.inputs)


@pytest.mark.parametrize(("model_type", "head"), WITHOUT.items(), ids=WITHOUT)
def test_a_model_is_made_with_the_values_of_its_hint(model_type: str, head: str) -> None:
    model = tiny_model_from(model_type, head=head)
    assert sum(parameter.numel() for parameter in model.parameters()) < 3_000_000
    assert search_inputs(model).missing == ()


@pytest.mark.parametrize("model_type", [name for name, hint in HINTS.items() if hint.instead])
def test_what_stands_in_is_of_another_type_and_is_said(model_type: str) -> None:
    stood_in = [
        value for value in HINTS[model_type].values.values() if isinstance(value, dict) and "model_type" in value
    ]
    assert stood_in
    assert "in place of timm's" in HINTS[model_type].instead


def test_a_part_of_another_type_takes_the_place_of_what_a_package_makes() -> None:
    model = tiny_model_from("gemma3n", head="causal")
    assert type(model.model.vision_tower).__name__ == "ConvNextModel"
    assert model.config.vision_config.model_type == "convnext"


@pytest.mark.parametrize(
    ("model_type", "head"),
    [
        ("gemma4_assistant", "causal"),
        ("gemma4_unified_assistant", "causal"),
        ("sam2_video", "base"),
        ("sam3_mask_decoder", "part"),
        ("xcodec", "base"),
    ],
)
def test_what_nothing_gives_is_said_and_no_model_is_tried(model_type: str, head: str) -> None:
    with pytest.raises(TinyModelError, match=f"^no tiny \\w+: {HINTS[model_type].lacks}$"):
        tiny_model_from(model_type, head=head)


def test_the_table_is_sorted_and_has_a_reason_for_each() -> None:
    for table in (HINTS, hints._OTHERS, OF_IMAGES):
        assert list(table) == sorted(table)
    assert len(HINTS) == len(hints._OTHERS) + len(OF_IMAGES)
    for model_type, hint in HINTS.items():
        assert hint.reason, model_type
        assert hint.values or hint.inputs or hint.lacks, model_type
