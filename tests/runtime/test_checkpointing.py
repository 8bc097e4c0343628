"""Checkpointed regions whose level or class is another one when they are run again for backward."""

from __future__ import annotations

import contextlib
import copy
import gc
import threading
from functools import partial

import peft
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
    set_checkpoint_early_stop,
)
from transformers.models.llama.modeling_llama import LlamaMLP

import patchkit
from patchkit.runtime import checkpointing
from patchkit.testing import add_lora, fused_calls, relative_error, tiny_inputs, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::patchkit.errors.PatchkitWarning", "ignore::FutureWarning")

MM = torch.ops.aten.mm.default


def layers_of(model):
    return model.base_model.model.model.layers


def selective():
    def policy(context, op, *args, **kwargs):
        return CheckpointPolicy.MUST_SAVE if op is MM else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


WAYS = {
    "layers": {},
    "selective": {"context_fn": selective},
    "no random state": {"preserve_rng_state": False},
}


def checkpointed(model, **options):
    """Each decoder layer is a region."""
    for layer in layers_of(model):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, **options)


def nested(model, **options):
    """Regions in a region: the layers in a checkpoint around the decoder."""
    checkpointed(model, **options)
    decoder = model.base_model.model.model
    decoder.forward = partial(checkpoint, decoder.forward, use_reentrant=False)


class Watching:
    """Hooks that look, of every kind; counts what they see."""

    def __init__(self, *names, backward=True):
        self.names, self.backward, self.seen, self.handles = names, backward, [], []

    def add(self, model):
        for name, module in model.named_modules():
            if name.endswith(self.names):
                self.handles += [
                    module.register_forward_pre_hook(lambda m, args, name=name: self.see("before", name, args[0])),
                    module.register_forward_hook(lambda m, args, output, name=name: self.see("after", name, output)),
                ]
                if self.backward:
                    see = partial(self.see_gradient, name)
                    self.handles.append(module.register_full_backward_hook(see))

    def see_gradient(self, name, module, grad_input, grad_output):
        self.see("back", name, grad_output[0])

    def see(self, when, name, tensor):
        self.seen.append((when, name, tuple(tensor.shape), tensor.requires_grad, tensor.detach()))

    def remove(self, model):
        for handle in self.handles:
            handle.remove()


PROJECTIONS = {
    "q": ("q_proj",),
    "k base": ("k_proj.base_layer",),
    "v's A": ("v_proj.lora_A.default",),
    "o": ("o_proj",),
    "gate": ("gate_proj",),
    "activation": ("act_fn",),
    "down": ("down_proj",),
    "down's B": ("down_proj.lora_B.default",),
    "all": ("_proj",),
}


def step(model, inputs, between=lambda model: None, *, backwards=1):
    """Loss and gradients, with something done between forward and backward."""
    torch.manual_seed(3)
    model.zero_grad()
    loss = model(**inputs, use_cache=False).loss
    between(model)
    for index in range(backwards):
        loss.backward(retain_graph=index + 1 < backwards)
    return [loss.detach()] + [p.grad.clone() for p in model.parameters() if p.grad is not None]


def assert_close(found, expected):
    assert len(found) == len(expected)
    assert max(relative_error(a, b) for a, b in zip(found, expected, strict=True)) < 1e-5


def pair(lora=None, prepare=checkpointed, **options):
    """(reference, patched), checkpointed after patching."""
    model = add_lora(tiny_model("llama"), **lora or {}).train()
    reference = copy.deepcopy(model)
    patchkit.apply(model)
    for copied in (reference, model):
        prepare(copied, **options)
    return reference, model


def same_as_seen(found, expected):
    assert [entry[:4] for entry in found] == [entry[:4] for entry in expected]
    for (*_, value), (*_, wanted) in zip(found, expected, strict=True):
        assert relative_error(value, wanted) < 1e-5


@pytest.mark.parametrize("when", ["added", "removed"])
@pytest.mark.parametrize("names", PROJECTIONS.values(), ids=PROJECTIONS)
def test_hooks_between_forward_and_backward(names, when):
    """Upstream saves the same with a hook and without; the hooks see the recomputation, as there.

    Where torch stops a recomputation early, it is the fused function that it stops, so that of the last block of a
    region the hooks see the whole. Without that they see the same.
    """
    results = []
    for copied in pair({"lora_dropout": 0.3}):
        watching = Watching(*names)
        if when == "removed":
            watching.add(copied)
        between = watching.add if when == "added" else watching.remove
        with set_checkpoint_early_stop(False):
            results.append((step(copied, tiny_inputs("llama", copied), between), watching.seen))
    (expected, wanted), (found, seen) = results
    assert wanted
    assert_close(found, expected)
    same_as_seen(seen, wanted)


@pytest.mark.parametrize("when", ["added", "removed"])
@pytest.mark.parametrize("prepare", [checkpointed, nested])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_checkpoint(way, prepare, when):
    """The random state is not kept in one of them: then the masks are other ones upstream, too, so there are none."""
    lora = {} if way == "no random state" else {"lora_dropout": 0.3}
    results = []
    for copied in pair(lora, prepare, **WAYS[way]):
        # A backward hook puts operations into the region, for which selective checkpointing has kept nothing.
        watching = Watching("k_proj", "up_proj", backward=way != "selective")
        if when == "removed":
            watching.add(copied)
        between = watching.add if when == "added" else watching.remove
        results.append(step(copied, tiny_inputs("llama", copied), between))
    assert_close(results[1], results[0])


@pytest.mark.parametrize("when", ["added", "removed"])
@pytest.mark.parametrize("name", ["embed_tokens.base_layer", "lm_head.base_layer", "lm_head.lora_B.default"])
def test_hooks_in_embedding_and_head(name, when):
    """The whole model is one region."""
    lora = {"target_modules": ["embed_tokens", "lm_head", "q_proj"], "lora_dropout": 0.3}
    model = add_lora(tiny_model("llama", tie_word_embeddings=False), **lora).train()
    reference = copy.deepcopy(model)
    assert {row.part for row in patchkit.apply(model).at("fused")} >= {"embedding", "head"}
    results = []
    for copied in (reference, model):
        copied.base_model.model.forward = partial(checkpoint, copied.base_model.model.forward, use_reentrant=False)
        watching = Watching(name, backward=False)
        if when == "removed":
            watching.add(copied)
        between = watching.add if when == "added" else watching.remove
        results.append((step(copied, tiny_inputs("llama", copied), between), watching.seen))
    assert results[0][1]
    assert_close(results[1][0], results[0][0])
    same_as_seen(results[1][1], results[0][1])


def test_a_global_hook():
    seen = []
    results = []
    for copied in pair():
        stack = contextlib.ExitStack()

        def add(_, stack=stack):
            register = torch.nn.modules.module.register_module_forward_hook
            stack.enter_context(register(lambda *arguments: seen.append(arguments)))

        with stack, set_checkpoint_early_stop(False):
            results.append(step(copied, tiny_inputs("llama", copied), add))
        assert seen
        results[-1].append(torch.tensor(float(len(seen))))
        seen.clear()
    assert_close(results[1], results[0])


@pytest.mark.parametrize("prepare", [checkpointed, nested])
def test_a_hook_that_changes_values(prepare):
    """Attention keeps only its input, so the recomputed values are upstream's, whatever the hook makes of them."""

    def change(model):
        for layer in layers_of(model):
            layer.self_attn.q_proj.register_forward_hook(lambda module, args, output: 1.5 * output)
            layer.mlp.register_forward_hook(lambda module, args, output: 0.5 * output)

    expected, found = (step(copied, tiny_inputs("llama", copied), change) for copied in pair(prepare=prepare))
    assert_close(found, expected)


CLASSES = {
    "apply": (None, lambda model: patchkit.apply(model)),
    "apply a part": (None, lambda model: patchkit.apply(model, qkv=False)),
    "revert": ({}, patchkit.revert),
    "apply less": ({}, lambda model: patchkit.apply(model, mlp=False)),
    "apply more": ({"qkv": False}, patchkit.apply),
    "apply, revert and apply": (
        None,
        lambda model: (patchkit.apply(model), patchkit.revert(model), patchkit.apply(model, o=False)),
    ),
    "revert and apply": ({}, lambda model: (patchkit.revert(model), patchkit.apply(model))),
}


@pytest.mark.parametrize("backwards", [1, 2])
@pytest.mark.parametrize("prepare", [checkpointed, nested])
@pytest.mark.parametrize("name", CLASSES)
def test_classes_between_forward_and_backward(name, prepare, backwards):
    before, between = CLASSES[name]
    model = add_lora(tiny_model("llama"), lora_dropout=0.3).train()
    reference = copy.deepcopy(model)
    if before is not None:
        patchkit.apply(model, **before)
    for copied in (reference, model):
        prepare(copied)
    inputs = tiny_inputs("llama", model)
    classes = []

    def note(copied):
        between(copied)
        classes.extend(type(module) for module in copied.modules())

    assert_close(
        step(model, inputs, note, backwards=backwards),
        step(reference, inputs, backwards=backwards),
    )
    assert [type(module) for module in model.modules()] == classes
    assert_close(step(model, inputs), step(reference, inputs))


def test_patched_only_for_the_forward():
    model = add_lora(tiny_model("llama")).train()
    reference = copy.deepcopy(model)
    checkpointed(model)
    inputs = tiny_inputs("llama", model)
    with patchkit.patched(model), fused_calls() as calls:
        loss = model(**inputs, use_cache=False).loss
    assert calls
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert_close(gradients, step(reference, inputs)[1:])


def test_an_error_in_the_recomputation_leaves_the_classes():
    model = add_lora(tiny_model("llama")).train()
    patchkit.apply(model)
    checkpointed(model)
    loss = model(**tiny_inputs("llama", model), use_cache=False).loss
    patchkit.revert(model)
    classes = [type(module) for module in model.modules()]

    def fail(module, args):
        raise ZeroDivisionError

    handle = layers_of(model)[1].mlp.register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError):
        loss.backward()
    handle.remove()
    assert [type(module) for module in model.modules()] == classes


def merge(model):
    model.merge_adapter()


def disable(model):
    model.base_model.disable_adapter_layers()


def switch(model):
    model.add_adapter("other", peft.LoraConfig(r=3, target_modules=["q_proj", "up_proj"], init_lora_weights=False))
    model.set_adapter("other")


@pytest.mark.parametrize("between", [merge, disable, switch])
def test_where_upstream_raises_so_does_the_patched_model(between):
    """The adapters changed in between: nothing can be recomputed then."""
    errors = []
    for copied in pair():
        with pytest.raises(torch.utils.checkpoint.CheckpointError) as caught:
            step(copied, tiny_inputs("llama", copied), between)
        errors.append(type(caught.value))
    assert errors[0] is errors[1]


def test_regions_in_several_threads():
    """Each thread has its graph; the hooks come between forward and backward of all of them."""
    reference, model = pair()
    inputs = tiny_inputs("llama", model)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]

    def gradients(copied, meet, found, index):
        loss = copied(**inputs, use_cache=False).loss
        meet.wait()
        meet.wait()
        parameters = dict(copied.named_parameters())
        found[index] = torch.autograd.grad(loss, [parameters[name] for name in names])

    def together(copied):
        found, meet = [None, None], threading.Barrier(3)
        threads = [threading.Thread(target=gradients, args=(copied, meet, found, index)) for index in range(2)]
        for thread in threads:
            thread.start()
        meet.wait()
        watching = Watching("q_proj", "down_proj")
        watching.add(copied)
        meet.wait()
        for thread in threads:
            thread.join()
        return found

    expected, found = together(reference), together(model)
    for index in range(2):
        assert_close(found[index], expected[index])


@pytest.mark.parametrize("device", ["save_on_cpu", "pack and unpack"])
def test_other_saved_tensor_hooks(device):
    """A user's hooks around a forward: they get tensors, and what they give back is used."""
    packed, unpacked = [], []

    def pack(tensor):
        packed.append(tensor)
        return tensor.detach().clone()

    def unpack(tensor):
        unpacked.append(tensor)
        return tensor.clone()

    def hooks():
        return (
            torch.autograd.graph.save_on_cpu()
            if device == "save_on_cpu"
            else torch.autograd.graph.saved_tensors_hooks(pack, unpack)
        )

    results = []
    model = add_lora(tiny_model("llama"), lora_dropout=0.3, use_dora=True).train()
    reference = copy.deepcopy(model)
    assert patchkit.apply(model).counts == {"fused": 6}
    for copied in (reference, model):
        with hooks():
            results.append(step(copied, tiny_inputs("llama", copied)))
        assert device == "save_on_cpu" or (packed and unpacked)
        packed.clear()
        unpacked.clear()
    assert_close(results[1], results[0])


class TestPendingFrames:
    @pytest.fixture(autouse=True)
    def _those_of_other_tests(self):
        """A traceback may hold a graph."""
        gc.collect()
        if left := checkpointing.pending_frames():
            pytest.skip(f"{len(left)} frames are left from tests that failed")

    def test_none(self, monkeypatch):
        """Not even looked for."""
        monkeypatch.setattr(gc, "get_referrers", None)
        assert checkpointing.pending_frames() == []

    def test_those_of_live_graphs(self):
        x, linear = torch.randn(2, 3, requires_grad=True), nn.Linear(3, 3)
        outputs = [checkpoint(lambda x: linear(x).exp(), x, use_reentrant=False) for _ in range(3)]
        for count in (3, 2, 1, 0):
            assert len(checkpointing.pending_frames()) == count
            del outputs[:1]

    def test_no_frame_is_kept(self):
        _, model = pair()
        loss = model(**tiny_inputs("llama", model), use_cache=False).loss
        patchkit.revert(model)
        loss.backward()
        del loss
        gc.collect()
        assert checkpointing.pending_frames() == []


def test_without_torchs_frames(monkeypatch):
    """Where torch's private names are other ones, checkpointing works as long as nothing changes in between."""
    monkeypatch.setattr(checkpointing, "_CHECKPOINT", "torch.utils.another")
    reference, model = pair({"lora_dropout": 0.3})
    inputs = tiny_inputs("llama", model)
    assert_close(step(model, inputs), step(reference, inputs))
    assert isinstance(layers_of(model)[0].mlp, LlamaMLP)


def test_checkpoints_that_are_not_reentrant_need_no_gradient_of_the_embeddings():
    """What the documentation of memory advises: the embedding's output is no leaf with a gradient then."""
    model = add_lora(tiny_model("llama")).train()
    patchkit.apply(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ids = torch.arange(24).view(2, 12)
    leaves, found = [], []
    model.get_input_embeddings().register_forward_hook(lambda *args: leaves.append(args[2].requires_grad))
    for _ in range(2):
        model.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        found.append([loss.detach(), *(one.grad for one in model.parameters() if one.grad is not None)])
        model.disable_input_require_grads()
    assert leaves == [True, False]
    assert len(found[0]) == len(found[1])
    assert all(map(torch.equal, *found))
