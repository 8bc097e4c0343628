"""``patchkit env``."""

from __future__ import annotations

import json
import platform
import sys
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from patchkit.cli.env import PACKAGES, Device, Facts
from patchkit.cli.main import app
from patchkit.version import __version__


def test_markdown_names_every_package_once() -> None:
    result = CliRunner().invoke(app, ["env"])
    assert result.exit_code == 0
    facts = dict(line.removeprefix("- ").split(": ", 1) for line in result.output.splitlines())
    assert facts["patchkit"] == __version__
    assert facts["torch"] == torch.__version__
    assert facts["Python"].startswith(platform.python_version())
    assert set(PACKAGES) <= set(facts)


def test_json_has_the_same_facts() -> None:
    result = CliRunner().invoke(app, ["env", "--json"])
    assert result.exit_code == 0
    facts = json.loads(result.output)
    assert facts["packages"]["torch"] == torch.__version__
    assert facts["devices"][0]["kind"] == "CPU"
    assert isinstance(facts["triton_kernels"], bool)


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, properties: SimpleNamespace, hip: str | None) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "hip", hip)


@pytest.mark.parametrize(
    ("properties", "hip", "device"),
    [
        (SimpleNamespace(name="NVIDIA H200", major=9, minor=0), None, Device("CUDA", "NVIDIA H200", "sm_90")),
        (
            SimpleNamespace(name="AMD Instinct MI300X", gcnArchName="gfx942:sramecc+:xnack-"),
            "6.4",
            Device("ROCm", "AMD Instinct MI300X", "gfx942"),
        ),
    ],
    ids=["cuda", "rocm"],
)
def test_gpu(monkeypatch: pytest.MonkeyPatch, properties: SimpleNamespace, hip: str | None, device: Device) -> None:
    pretend_gpu(monkeypatch, properties, hip)
    monkeypatch.setattr("patchkit_kernels.ops.triton_support.TRITON_AVAILABLE", True)
    environment = Facts.read()
    assert environment.devices[1:] == (device,)
    assert environment.triton_kernels
    assert environment.triton_kernels_reason == f"on tensors of {device.name}"


def test_gpu_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, SimpleNamespace(name="NVIDIA H200", major=9, minor=0), None)
    monkeypatch.setattr("patchkit_kernels.ops.triton_support.TRITON_AVAILABLE", False)
    environment = Facts.read()
    assert not environment.triton_kernels
    assert "triton cannot be imported" in environment.triton_kernels_reason


def test_torch_that_cannot_be_imported_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    environment = Facts.read()
    assert environment.packages["torch"] is not None
    assert not environment.triton_kernels
    assert "torch cannot be imported" in environment.triton_kernels_reason
