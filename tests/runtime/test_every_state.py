"""Several adapters, an adapted ``lm_head`` and an adapted embedding, in every state that a model can be in."""

from __future__ import annotations

import copy
import io
import pickle

import peft
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import patchkit
from patchkit.testing import (
    Result,
    RoundingErrors,
    add_lora,
    compare_runs,
    fused_calls,
    randomise_adapter,
    run,
    tiny_inputs,
    tiny_model,
)
from patchkit.testing.tiny_models import generator_for

pytestmark = pytest.mark.filterwarnings(
    "ignore::patchkit.errors.PatchkitWarning", "ignore::FutureWarning", "ignore::UserWarning"
)

ADAPTED = ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "lm_head", "embed_tokens"]


def one(**options):
    options = {"target_modules": ADAPTED, "lora_dropout": 0.2} | options
    return add_lora(tiny_model("llama", tie_word_embeddings=False), **options).train()


def several():
    """Two adapters at once, on overlapping layers."""
    model = one()
    second = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=["q_proj", "up_proj", "lm_head"], init_lora_weights=False
    )
    model.add_adapter("second", second)
    randomise_adapter(model, "second", seed=3)
    model.base_model.set_adapter(["default", "second"])
    return model


MODELS = {
    "several adapters": several,
    "DoRA": lambda: one(use_dora=True, lora_dropout=0.0, target_modules=[n for n in ADAPTED if n != "embed_tokens"]),
    "rsLoRA and biases": lambda: one(use_rslora=True, r=5, bias="lora_only"),
}


def run_it(model, **options):
    return run(model, tiny_inputs("llama", model), **options)


def watched(kind, *names):
    """A hook that changes what goes through."""

    def state(model):
        for name, module in model.named_modules():
            if not name.endswith(names):
                continue
            if kind == "forward":
                module.register_forward_hook(lambda m, args, output: 1.5 * output)
            elif kind == "before":
                module.register_forward_pre_hook(
                    lambda m, args: args if not args[0].is_floating_point() else 2 * args[0]
                )
            else:
                module.register_full_backward_hook(lambda m, gin, gout: tuple(g if g is None else 2 * g for g in gin))
        return run_it(model)

    return state


def checkpointed(use_reentrant):
    def state(model):
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
        return run_it(model)

    return state


def whole_model_checkpointed(model):
    from torch.utils.checkpoint import checkpoint

    return run_it(model, forward=lambda **inputs: checkpoint(model, use_reentrant=False, **inputs))


def under(context, **options):
    def state(model):
        with context():
            return run_it(model, **options)

    return state


def pinned_hooks():
    return torch.autograd.graph.saved_tensors_hooks(lambda t: (t.detach().clone(), t.dtype), lambda kept: kept[0])


def evaluated(model):
    return run_it(model.eval())


def merged(model):
    model.merge_adapter()
    return run_it(model.eval(), backward=False)


def merged_and_unmerged(model):
    model.merge_adapter()
    model.unmerge_adapter()
    return run_it(model)


def disabled(model):
    with model.disable_adapter():
        return run_it(model, backward=False)


def switched(model):
    model.add_adapter("third", peft.LoraConfig(r=2, target_modules=ADAPTED, init_lora_weights=False))
    randomise_adapter(model, "third", seed=5)
    model.set_adapter("third")
    return run_it(model)


def deleted(model):
    model.add_adapter("third", peft.LoraConfig(r=2, target_modules=ADAPTED, init_lora_weights=False))
    model.set_adapter("third")
    model.set_adapter("default")
    model.delete_adapter("third")
    return run_it(model)


def copied(model):
    return run_it(copy.deepcopy(model))


def pickled(model):
    return run_it(pickle.loads(pickle.dumps(model)))


def saved(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return run_it(torch.load(buffer, weights_only=False))


def unloaded(model):
    return run_it(model.merge_and_unload().eval(), backward=False)


def compiled(model):
    torch._dynamo.reset()
    return run_it(model.eval(), forward=torch.compile(model, backend="eager"))


def data_parallel(model):
    return run_it(model, forward=DistributedDataParallel(model))


def trained_base(model):
    return run_it(model.requires_grad_(True))


def stepped(model):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    found = run_it(model)
    for name, parameter in model.named_parameters():
        parameter.grad = found.gradients.get(name)
    optimizer.step()
    return run_it(model)


def accumulated(model):
    """Two forwards before one backward."""
    inputs = tiny_inputs("llama", model)
    return run_it(model, forward=lambda **kw: Twice(model(**inputs, use_cache=False), model(**kw)))


class Twice:
    def __init__(self, first, second):
        self.logits, self.loss = second.logits, first.loss + second.loss


def generated(model):
    ids = tiny_inputs("llama", model)["input_ids"]
    with torch.no_grad():
        tokens = model.eval().generate(input_ids=ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
    return patchkit.testing.Run({"tokens": tokens})


STATES = {
    "train": run_it,
    "eval": evaluated,
    "no_grad": under(torch.no_grad, backward=False),
    "inference_mode": under(torch.inference_mode, backward=False),
    "input gradients": under(torch.enable_grad, input_gradients=True),
    "hook on lm_head": watched("forward", "lm_head"),
    "hook in lm_head": watched("forward", "lm_head.base_layer"),
    "hook on lm_head's B": watched("forward", "lm_head.lora_B.default"),
    "hook before projections": watched("before", "q_proj", "down_proj", "lm_head"),
    "backward hooks": watched("backward", "v_proj", "gate_proj", "lm_head"),
    "checkpointing": checkpointed(use_reentrant=False),
    "reentrant checkpointing": checkpointed(use_reentrant=True),
    "whole model checkpointed": whole_model_checkpointed,
    "save_on_cpu": under(torch.autograd.graph.save_on_cpu),
    "saved-tensor hooks": under(pinned_hooks),
    "anomaly mode": under(torch.autograd.detect_anomaly),
    "merged": merged,
    "merged and unmerged": merged_and_unmerged,
    "merged and unloaded": unloaded,
    "disabled": disabled,
    "switched": switched,
    "added and deleted": deleted,
    "copied": copied,
    "pickled": pickled,
    "saved": saved,
    "trained base": trained_base,
    "after a step": stepped,
    "two forwards": accumulated,
    "generation": generated,
    "compiled": compiled,
}


def compare(state, model, **options):
    """The same state of an untouched copy and of the patched model; returns the fused calls of the latter."""
    reference = copy.deepcopy(model)
    report = patchkit.apply(model)
    assert {row.part for row in report.at("fused")} >= {"qkv", "mlp", "head"}
    expected = state(reference)
    with fused_calls() as calls:
        found = state(model)
    findings = compare_runs(expected, found)
    assert findings.passed, (findings.problems, str(findings.worst))
    return calls


UPSTREAM = {"merged", "merged and unloaded", "disabled", "pickled", "saved"}
"""States that nothing is fused in; a pickle names upstream's classes."""


FEW = (
    "train",
    "eval",
    "hook in lm_head",
    "checkpointing",
    "reentrant checkpointing",
    "save_on_cpu",
    "merged and unmerged",
    "switched",
    "compiled",
)
"""States for the models that have one adapter each; tests/runtime/test_states.py has them in the others."""
GRID = [(state, "several adapters") for state in STATES]
GRID += [(state, model) for state in FEW for model in MODELS if model != "several adapters"]


@pytest.mark.parametrize(("state", "model"), GRID)
def test_state(state, model):
    calls = compare(STATES[state], MODELS[model]())
    assert bool(calls) != (state in UPSTREAM)


@pytest.mark.parametrize("model", MODELS)
def test_autocast(model):
    """In low precision: all gradients together are not further from float32 than upstream's are, over some draws."""
    original, errors = MODELS[model](), RoundingErrors()
    for draw in range(6):
        reference = copy.deepcopy(original)
        with torch.no_grad():
            for name, parameter in reference.named_parameters():
                parameter.mul_(1 + 0.1 * torch.randn(parameter.shape, generator=generator_for(name, draw)))
        truth, patched = run_it(copy.deepcopy(reference)), copy.deepcopy(reference)
        patchkit.apply(patched)
        expected, found = (run_it(m, autocast=torch.bfloat16) for m in (reference, patched))
        assert found.gradients.keys() == expected.gradients.keys()
        assert {n: g.dtype for n, g in found.gradients.items()} == {n: g.dtype for n, g in expected.gradients.items()}
        gradients = truth.gradients.items()
        errors.add_draw("all", [Result(g, expected.gradients[name], found.gradients[name]) for name, g in gradients])
    assert not errors.failures()


@pytest.mark.parametrize("model", MODELS)
def test_data_parallel(model, tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert compare(data_parallel, MODELS[model]())
    finally:
        torch.distributed.destroy_process_group()


def test_the_states_do_what_they_say():
    """A state that changes nothing would prove nothing of it."""
    model = several()
    usual = run_it(copy.deepcopy(model))
    for name in (
        "eval",
        "hook on lm_head",
        "hook in lm_head",
        "hook before projections",
        "disabled",
        "switched",
        "merged",
    ):
        found = STATES[name](copy.deepcopy(model))
        assert patchkit.testing.relative_error(found.outputs["logits"], usual.outputs["logits"]) > 1e-3, name
    assert isinstance(model, nn.Module)
