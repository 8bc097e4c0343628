"""The device of the harness: named, tried, and the same numbers where it is the CPU, said or not."""

from __future__ import annotations

import pytest
import torch

from patchkit.errors import DeviceError
from patchkit.testing import CHECKS, add_lora, on_device, run_checks, tiny_inputs, tiny_model, usable_device

ABSENT = "cuda" if not torch.cuda.is_available() else "xpu"


def case():
    model = add_lora(tiny_model("llama"))
    return model, tiny_inputs("llama", model)


def test_a_device_that_computes():
    assert usable_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", [ABSENT, "gpu", "", "cpu:x"])
def test_a_device_that_is_not_there_is_named(name):
    with pytest.raises(DeviceError, match=rf"no device '{name}' here: .*'cpu' is everywhere"):
        usable_device(name)


def test_meta_holds_no_numbers():
    with pytest.raises(DeviceError, match="'meta' holds no numbers"):
        on_device(*case(), "meta")


def test_the_model_and_its_inputs_stay_where_they_are():
    model, inputs = case()
    before = [parameter.data_ptr() for parameter in model.parameters()]
    copied, moved = on_device(model, {**inputs, "use_cache": False}, "cpu")
    assert moved["use_cache"] is False
    assert {name: moved[name].device for name in inputs} == dict.fromkeys(inputs, torch.device("cpu"))
    assert [parameter.data_ptr() for parameter in model.parameters()] == before
    assert not {parameter.data_ptr() for parameter in copied.parameters()} & set(before)


def test_checks_on_a_named_device():
    names = ["forward_backward", "dropout", "autocast_bfloat16_base", "compile"]
    results = run_checks(*case(), names=names, device="cpu")
    assert [(result.check, result.status) for result in results] == [
        (name, "passed") for name in CHECKS if name in names
    ]


def test_checks_are_not_begun_where_there_is_no_such_device():
    with pytest.raises(DeviceError):
        run_checks(*case(), patch=lambda model: pytest.fail("patched"), device=ABSENT)
