"""What is estimated is what a real step of the whole model allocates, as torch's own profiler sees it."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

import patchkit
from patchkit.estimation.counter import Counter, trainings
from patchkit.estimation.layers import roles_of, stack_of
from patchkit.estimation.live import LiveBytes
from patchkit.testing import add_lora, tiny_model, tiny_model_from

LAYERS, BATCH, TOKENS = 6, 2, 160
MODELS = {
    "llama": {"num_hidden_layers": LAYERS},
    "gemma3": {"num_hidden_layers": LAYERS, "sliding_window_pattern": 3, "sliding_window": 32},
    "qwen2": {"num_hidden_layers": LAYERS},
    # Dropout is kept as numbers on a CPU and as booleans on a device: see test_live_bytes.py.
    "gpt2": {"n_layer": LAYERS, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
}


def ways(precision):
    """Norms keep a float32 copy, or make it again, of what is narrower."""
    options = {} if precision == "float32" else {"memory": "recompute"}
    return [one for one in trainings(options) if not one.way.offload]


def adapted(name, precision):
    """In bfloat16 the base alone is: PEFT leaves adapters in float32."""
    options = {"vocab_size": 512, **MODELS[name]}
    model = tiny_model(name, **options) if name != "gpt2" else tiny_model_from(name, **options)
    model = add_lora(model, target_modules="all-linear")
    for parameter_name, parameter in model.named_parameters():
        if precision != "float32" and "lora_" not in parameter_name:
            parameter.data = parameter.data.to(torch.bfloat16)
    return model.train()


def inputs_of_ones():
    ids = torch.ones(BATCH, TOKENS, dtype=torch.int64)
    return {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}


def allocated(forward):
    """Bytes that live after forward and were not there before, and at most until backward is through."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        loss = forward()
        with record_function("backward begins"):
            pass
        loss.backward()
    events = sorted(seen.profiler.kineto_results.events(), key=lambda one: one.start_ns())
    live = peak = kept = 0
    for event in events:
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
        elif event.name() == "backward begins":
            kept = live
    return kept, peak


def trained(model, training):
    found = copy.deepcopy(model)
    if training.options is not None:
        patchkit.apply(found, **training.options)
    if training.way.checkpointing:
        found.gradient_checkpointing_enable({"use_reentrant": False})
    return found


def real(model, training):
    """Bytes kept and the peak, as the profiler sees them; the peak and the work as operations show them."""
    model, inputs = trained(model, training), inputs_of_ones()

    def forward():
        return model(**inputs).loss

    forward().backward()  # what is made once and stays is no part of a step
    model.zero_grad(set_to_none=True)
    kept, peak = allocated(forward)
    if training.way.checkpointing:  # each layer keeps the state of the CPU's generator, in the host's memory
        kept -= LAYERS * torch.get_rng_state().nbytes
    model.zero_grad(set_to_none=True)
    live = LiveBytes([*model.parameters(), *model.buffers()], roles_of(stack_of(model).layers))
    with live:
        forward().backward()
    return kept, peak, max(span.peak for span in live.spans.values()), sum(live.flops.values())


@pytest.mark.parametrize(
    ("name", "precision"),
    [*((name, "float32") for name in MODELS), ("llama", "bfloat16"), ("gpt2", "bfloat16")],
    ids=lambda value: value,
)
@pytest.mark.filterwarnings("ignore")
def test_counts_are_those_of_a_real_step(name, precision):
    model = adapted(name, precision)
    counter = Counter(model, BATCH)
    for training in ways(precision):
        with counter.prepared(training) as (run, unfused):
            step = run(TOKENS)
        kept, peak, peak_of_operations, flops = real(model, training)
        assert not unfused
        assert step.flops == flops > 0, training
        assert sum(step.kept.values()) == pytest.approx(kept, rel=0.05), training
        # On a CPU the loss without logits has no kernel: its reference needs room that a kernel does not.
        without_kernel = "loss" in (training.options or {})
        assert step.peak == pytest.approx(peak_of_operations if without_kernel else peak, rel=0.05), training


def test_the_longer_model_is_not_what_was_run():
    counter = Counter(adapted("gemma3", "float32"), BATCH)
    assert counter.partial


def test_gradients_and_states_are_those_of_the_model():
    model = adapted("llama", "bfloat16")
    found = patchkit.estimate(model, tokens=8, loss=True)
    model(**inputs_of_ones()).loss.backward()
    assert found.gradients == sum(one.grad.nbytes for one in model.parameters() if one.grad is not None)
    assert found.parameters == sum(one.nbytes for one in [*model.parameters(), *model.buffers()])
