"""``apply`` on a model that it has patched before, after somebody changed what it was patched from."""

from __future__ import annotations

import pytest
from peft.tuners import lora
from transformers.models.llama.modeling_llama import LlamaMLP

import patchkit
from patchkit.testing import add_lora, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::patchkit.errors.PatchkitWarning")


@pytest.mark.parametrize(("owner", "part"), [(LlamaMLP, "mlp"), (lora.Embedding, "embedding")])
def test_applying_again_after_a_class_got_another_forward(owner, part, monkeypatch):
    """Such a block is given back to what stands there now, with the reason in the same words as at the first time."""

    def forward(self, *args):
        return own(self, *args)

    own = owner.forward
    model = add_lora(tiny_model("llama"), target_modules=["embed_tokens", "up_proj"])
    patchkit.apply(model)
    patched = [row for row in patchkit.report(model).rows if row.part == part]
    assert {row.level for row in patched} == {"fused"}
    monkeypatch.setattr(owner, "forward", forward)
    rows = [row for row in patchkit.apply(model).rows if row.part == part]
    assert {row.reason for row in rows} == {f"its forward was replaced by {__name__}.{forward.__qualname__}"}
    assert {type(model.get_submodule(row.name)) for row in rows} == {owner}
