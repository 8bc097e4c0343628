"""``patchkit check`` of a plugin: what its description says otherwise than the source is said beside the verdict."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from patchkit.arch import registry
from patchkit.arch.spec import Architecture, Attention, GatedMLP
from patchkit.cli.main import app

QWEN3, PHI3 = "transformers.models.qwen3.modeling_qwen3", "transformers.models.phi3.modeling_phi3"

CASES = {
    "gate and up": (
        Architecture("mine", ("qwen3",), QWEN3, (GatedMLP("Qwen3MLP", gate="up_proj", up="gate_proj"),)),
        "partial: mine",
        "gate and up look swapped: the source gives `gate_proj` to self.act_fn, and not `up_proj`",
    ),
    "one projection for three": (
        Architecture("mine", ("phi3",), PHI3, (Attention("Phi3Attention"),)),
        "absent: mine, transformers",
        "`qkv_proj` is one projection for q, k and v: no rule of qkv; leave Phi3Attention out of the architecture",
    ),
    "another kind": (
        Architecture("mine", ("phi3",), PHI3, (GatedMLP("Phi3MLP"),)),
        "partial: mine",
        "gate_up: nothing is described, the source says 'gate_up_proj'",
    ),
    "what is right": (Architecture("mine", ("qwen3",), QWEN3, (Attention("Qwen3Attention"),)), "rewritten", ""),
}


@pytest.mark.parametrize(("architecture", "verdict", "said"), CASES.values(), ids=CASES)
def test_differences_are_said(architecture, verdict, said, tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHKIT_CACHE", str(tmp_path))
    with registry.registered_also(architecture):
        result = CliRunner().invoke(app, ["check", "--arch", "mine", "--static"])
    text = " ".join(result.stdout.split())
    assert verdict in text
    assert said in text
    assert ("is described" in text or "swapped" in text or "no rule of" in text) == bool(said)
