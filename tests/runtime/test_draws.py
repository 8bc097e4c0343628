"""What dropout draws: as many tensors as upstream, in its order, each of its shape and dtype.

A CPU's masks are the same in every dtype; those of a GPU are not. So the draws themselves are compared, not the masks.
"""

from __future__ import annotations

import itertools

import loralib
import peft
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchtune.modules.peft import LoRALinear

from patchkit.adapters.registry import read_projection
from patchkit.runtime.levels import Ready, examine, input_of
from patchkit.runtime.methods import make_apply_linear, make_apply_qkv
from patchkit_kernels.lora import forward as project
from patchkit_kernels.ops import dropout_once


class Draws(TorchDispatchMode):
    """Notes the dtype and shape of every tensor that upstream draws for. Under a mode, patched blocks run upstream."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if torch.Tag.nondeterministic_seeded in func.tags and isinstance(args[0], Tensor):
            self.seen.append((args[0].dtype, tuple(args[0].shape)))
        return func(*args, **(kwargs or {}))


def peft_layer(lora, *, adapters=1, dora=False):
    torch.manual_seed(0)
    module = nn.ModuleDict({"proj": nn.Linear(4, 6)})
    names = ["one", "two", "three"][:adapters]
    for number, name in enumerate(names):
        config = peft.LoraConfig(
            r=2, target_modules=["proj"], lora_dropout=0.2 + 0.1 * number, use_dora=dora, init_lora_weights=False
        )
        peft.inject_adapter_in_model(config, module, name)
    layer = module["proj"].train()
    layer._active_adapter = names
    for name in names:
        layer.lora_A[name].to(lora)
        layer.lora_B[name].to(lora)
        layer.lora_dropout[name].train()
    return layer


def loralib_layer(lora):
    layer = loralib.Linear(4, 6, 2, lora_dropout=0.3, bias=False)
    layer.lora_A.data, layer.lora_B.data = layer.lora_A.data.to(lora), layer.lora_B.data.to(lora)
    layer.train()  # loralib's returns nothing
    return layer


def torchtune_layer(lora):
    layer = LoRALinear(4, 6, 2, 3.0, dropout=0.3)
    layer.lora_a.to(lora)
    layer.lora_b.to(lora)
    return layer.train()


LAYERS = {
    "PEFT": peft_layer,
    "PEFT, three adapters": lambda lora: peft_layer(lora, adapters=3),
    "PEFT, DoRA": lambda lora: peft_layer(lora, dora=True),
    "loralib": loralib_layer,
    "torchtune": torchtune_layer,
}

DTYPES = (torch.float32, torch.bfloat16)


def base_of(layer):
    return layer.base_layer if hasattr(layer, "base_layer") else layer


@pytest.fixture
def drawn(monkeypatch):
    """The dtype and shape of every tensor that the fused functions draw for."""
    seen = []

    def noted(function):
        return lambda x, p: seen.append((x.dtype, tuple(x.shape))) or function(x, p)

    monkeypatch.setattr(project, "draw_mask", noted(project.draw_mask))
    # Where everything is of the structure that people train.
    monkeypatch.setattr(dropout_once, "drop", noted(dropout_once.drop))
    return seen


@pytest.mark.parametrize("library", LAYERS)
def test_one_projection(library, drawn):
    fused = set()
    for given, lora, autocast in itertools.product(DTYPES, DTYPES, (False, True)):
        layer = LAYERS[library](lora)
        base_of(layer).weight.data = base_of(layer).weight.data.to(torch.float32 if autocast else given)
        if base_of(layer).bias is not None:
            base_of(layer).bias.data = base_of(layer).bias.data.to(base_of(layer).weight.dtype)
        x = torch.randn(3, 4).to(given)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            if not isinstance(examine(layer, input_of(x)), Ready):
                continue
            with Draws() as upstream:
                layer(x)
            drawn.clear()
            make_apply_linear("peft")(None, layer, x)
        assert upstream.seen
        assert drawn == upstream.seen, (given, lora, autocast)
        fused.add((given, lora, autocast))
    assert len(fused) >= 2
    assert any(given != lora for given, lora, _ in fused)


@pytest.mark.parametrize("order", list(itertools.permutations("qkv")), ids="".join)
def test_projections_of_one_input_draw_in_the_order_of_calls(order, drawn):
    """Each width of A's input is the same, so that ranks and probabilities tell the projections apart."""
    block = nn.Module()
    for number, name in enumerate("qkv"):
        setattr(block, name, peft_layer(torch.float32, adapters=number + 1))
    x = torch.randn(3, 4)
    for module in block.children():
        assert not isinstance(read_projection(module), str)
    torch.manual_seed(1)
    expected = {name: getattr(block, name)(x) for name in order}
    state = torch.get_rng_state()
    torch.manual_seed(1)
    found = make_apply_qkv(("q", "k", "v"), order, "peft")(block, x)
    assert len(drawn) == 6, "fused"
    for name, output in zip("qkv", found, strict=True):
        torch.testing.assert_close(output, expected[name])
    assert torch.equal(torch.get_rng_state(), state)
