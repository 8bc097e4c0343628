"""Leaving ``with patched(model)``: every class as before, whatever was done to the model in the block."""

from __future__ import annotations

import contextlib
import copy
import gc

import pytest
import transformers
from torch import nn
from transformers.models.llama.modeling_llama import LlamaMLP

import patchkit
from patchkit.errors import PatchkitWarning, RevertError
from patchkit.testing import compare_runs, identical_runs, run, tiny_inputs

pytestmark = pytest.mark.filterwarnings("ignore::patchkit.errors.PatchkitWarning")


def classes(model):
    return [type(module) for module in model.modules()]


def mlp_of(model):
    return next(module for module in model.modules() if isinstance(module, LlamaMLP))


def layers_of(model):
    return model.base_model.model.model.layers


def nothing(model):
    pass


def revert_twice(model):
    patchkit.revert(model)
    patchkit.revert(model)


def revert_and_apply(model):
    patchkit.revert(model)
    patchkit.apply(model, qkv=False)


def nest(model):
    with patchkit.patched(model, o=False):
        patchkit.apply(model, mlp=False)


def nest_and_revert(model):
    with patchkit.patched(model, o=False):
        patchkit.revert(model)


def leave_by_an_error(model):
    with contextlib.suppress(ZeroDivisionError), patchkit.patched(model, o=False):
        raise ZeroDivisionError


def generate(model):
    """A generator that is left in the middle holds a block open."""

    def inside():
        with patchkit.patched(model, qkv=False):
            yield

    generator = inside()
    next(generator)
    generator.close()


def forget(model):
    """Never closed: it ends when it is collected."""

    def inside():
        with patchkit.patched(model, qkv=False):
            yield

    generator = inside()
    next(generator)
    del generator
    gc.collect()


def copied(model):
    """The copy is another model, and stays what it is."""
    other = copy.deepcopy(model)
    assert patchkit.report(other).counts == patchkit.report(model).counts


ACTIONS = [
    nothing,
    patchkit.revert,
    revert_twice,
    revert_and_apply,
    lambda model: patchkit.apply(model, mlp=False),
    lambda model: patchkit.apply(model, precision="fast"),
    lambda model: patchkit.apply(model, qkv=False, o=False, mlp=False, embedding=False, head=False),
    nest,
    nest_and_revert,
    leave_by_an_error,
    generate,
    forget,
    copied,
]
NAMES = [getattr(action, "__name__", "").replace("<lambda>", "apply again") for action in ACTIONS]
BEFORE = [None, {}, {"mlp": False}, {"precision": "fast"}]


@pytest.mark.parametrize("before", BEFORE, ids=["unpatched", "patched", "partly", "fast"])
@pytest.mark.parametrize("action", ACTIONS, ids=NAMES)
def test_every_class_is_as_before(action, before, lora_model):
    _, model = lora_model(target_modules="all-linear")
    if before is not None:
        patchkit.apply(model, **before)
    found = classes(model)
    with patchkit.patched(model):
        action(model)
    assert classes(model) == found
    callback = patchkit.TrainerCallback(revert_at_end=True)
    arguments = None, transformers.TrainerState(), transformers.TrainerControl()
    callback.on_train_begin(*arguments, model=model)
    action(model)
    callback.on_train_end(*arguments)
    callback.on_train_end(*arguments)
    assert classes(model) == found


def test_the_numbers_are_upstreams_again(lora_model):
    reference, model = lora_model()
    with patchkit.patched(model):
        revert_and_apply(model)
        assert compare_runs(run(reference, tiny_inputs("llama", model)), run(model, tiny_inputs("llama", model))).passed
    inputs = tiny_inputs("llama", model)
    assert identical_runs(run(reference, inputs), run(model, inputs))


def test_modules_that_come_and_go(lora_model):
    """Those that came are reverted too, since they are in the model; those that left are as they were."""
    reference, model = lora_model()
    with patchkit.patched(model):
        layers = layers_of(model)
        old = layers[0]
        layers[0] = copy.deepcopy(layers[1])
        layers.append(copy.deepcopy(layers[1]))
        patchkit.apply(model)
    assert set(classes(model)) <= set(classes(reference))
    assert [type(module) for module in old.modules()] == [type(m) for m in layers_of(reference)[0].modules()]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["first in, first out", "first in, last out"])
@pytest.mark.parametrize("options", [{}, {"mlp": False}], ids=["same", "other"])
def test_two_blocks_that_are_not_nested(order, options, lora_model):
    """Two callbacks end in the order in which they began."""
    _, model = lora_model()
    found = classes(model)
    stacks = contextlib.ExitStack(), contextlib.ExitStack()
    stacks[0].enter_context(patchkit.patched(model))
    stacks[1].enter_context(patchkit.patched(model, **options))
    for index in order:
        stacks[index].close()
    assert classes(model) == found


def put_on_top(model):
    """What ``fully_shard`` and parametrizations do."""
    module = mlp_of(model)
    module.__class__ = type("OnTop", (type(module),), {})


def wrap_forward(model):
    module = mlp_of(model)
    forward = module.forward
    module.forward = lambda *args, **kwargs: forward(*args, **kwargs)


@pytest.mark.parametrize("change", [put_on_top, wrap_forward])
class TestSomethingOnTop:
    """To undo what is below would do damage."""

    def test_is_an_error(self, change, lora_model):
        _, model = lora_model()
        block = patchkit.patched(model)
        block.__enter__()
        change(model)
        found = classes(model)
        with pytest.raises(RevertError, match=r"layers\.0\.mlp cannot be given its class back"):
            block.__exit__(None, None, None)
        assert classes(model) == found

    def test_never_hides_another_error(self, change, lora_model):
        _, model = lora_model()

        def fail():
            with patchkit.patched(model):
                change(model)
                raise ZeroDivisionError

        with pytest.warns(PatchkitWarning, match=r"stays patched: .*layers\.0\.mlp"), pytest.raises(ZeroDivisionError):
            fail()

    def test_on_what_is_not_patched_any_more_it_is_nobodys_business(self, change, lora_model):
        _, model = lora_model()
        with patchkit.patched(model):
            patchkit.revert(model)
            change(model)
            found = classes(model)
        assert classes(model) == found


def test_a_class_that_took_its_place_stays(lora_model):
    """As a library that puts modules' classes in place of whatever is there."""

    class Other(LlamaMLP):
        def forward(self, x):
            return x

    _, model = lora_model()
    with patchkit.patched(model):
        mlp_of(model).__class__ = Other
    assert type(mlp_of(model)) is Other


class Other(LlamaMLP):
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def test_what_was_patched_over_such_a_class_is_reverted_to_it(lora_model):
    _, model = lora_model()
    with patchkit.patched(model):
        mlp_of(model).__class__ = Other
        patchkit.apply(model, trust="always")
        assert type(mlp_of(model)) is not Other
    assert type(mlp_of(model)) is Other


def test_a_block_that_never_began(lora_model):
    _, model = lora_model()
    found = classes(model)
    with pytest.raises(patchkit.errors.UnknownOptionError), patchkit.patched(model, rope=True):
        pass
    with patchkit.patched(model):
        pass
    assert classes(model) == found


def test_the_model_is_not_kept_alive(lora_model):
    """A training that was aborted leaves its block open for ever."""
    import weakref

    _, model = lora_model()
    block = patchkit.patched(model)
    block.__enter__()
    reference = weakref.ref(model)
    assert isinstance(model, nn.Module)
    del model, block, _
    gc.collect()
    assert reference() is None
