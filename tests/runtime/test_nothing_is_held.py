"""A patched layer or block lets go of its input as soon as nobody else has it: the garbage collector is not needed."""

from __future__ import annotations

import gc
import weakref
from contextlib import contextmanager

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import patchkit
from patchkit.testing import add_lora, tiny_model, tiny_model_from


@contextmanager
def without_collector():
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def linear():
    return add_lora(tiny_model_from("gpt2"), target_modules="all-linear"), "c_attn", torch.randn(2, 3, 64)


def head():
    return add_lora(tiny_model("llama"), target_modules=["lm_head"]), "lm_head", torch.randn(2, 3, 64)


def embedding():
    return add_lora(tiny_model("llama"), target_modules=["embed_tokens"]), "embed_tokens", torch.ones(2, 3).long()


def experts():
    options = {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj"]}
    model = add_lora(tiny_model_from("qwen3_moe", num_experts=2, num_experts_per_tok=1), **options)
    return model, "experts", torch.randn(6, 64)


def block():
    return add_lora(tiny_model("llama")), "mlp", torch.randn(2, 3, 64)


def call(module, x, *, checkpointed):
    if type(module).__name__ == "ParamWrapper":  # what the router gives it
        picked, weights = torch.zeros(len(x), 1, dtype=torch.int64), torch.ones(len(x), 1)
        run = lambda value: module(value, picked, weights)  # noqa: E731
    else:
        run = module
    return checkpoint(run, x, use_reentrant=False) if checkpointed else run(x)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("made", [linear, head, embedding, experts, block])
@pytest.mark.filterwarnings("ignore")
def test_an_input_dies_with_its_graph(made, checkpointed):
    model, name, x = made()
    patchkit.apply(model)
    module = next(one for path, one in model.named_modules() if path.endswith(name))
    x = x.requires_grad_() if x.is_floating_point() else x
    call(module, x, checkpointed=checkpointed).sum().backward()  # what is looked up once is looked up here
    x = x.detach().clone().requires_grad_(x.is_floating_point())
    with without_collector():
        y = call(module, x, checkpointed=checkpointed)
        gone = weakref.ref(x)
        y.sum().backward()
        del x, y
        assert gone() is None
