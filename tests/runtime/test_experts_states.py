"""Experts in every state: fused where that is equal, PEFT's own code where it is not, and the report says which."""

from __future__ import annotations

import copy
from types import MethodType

import pytest
import torch
from experts_cases import IMPLEMENTATIONS, INNER, adapted, assert_equal, inputs, patched, results
from peft.tuners.lora.layer import ParamWrapper
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

import patchkit
from patchkit.errors import MergedInBetweenError
from patchkit.runtime.parameters import choose_parameters
from patchkit.testing import fused_calls

pytestmark = pytest.mark.filterwarnings("ignore::patchkit.errors.PatchkitWarning", "ignore::UserWarning")


def wrapper(model):
    return model.base_model.model.experts


def inner(model):
    return wrapper(model).base_layer


def experts(model):
    return wrapper(model).get_base_layer()


def double(module, args, output):
    return 2 * output


def half_of_input(module, args):
    return (args[0] / 2, *args[1:])


def own_forward(self, hidden_states, top_k_index, top_k_weights):
    return hidden_states * top_k_weights.sum() + self.down_proj.sum()


FUSED = ("fused", "")
STATES = {
    "nothing": (lambda model: None, FUSED),
    "eval": (lambda model: model.eval(), FUSED),
    "a hook on the outermost wrapper": (lambda model: wrapper(model).register_forward_hook(double), FUSED),
    "a hook before the outermost wrapper": (
        lambda model: wrapper(model).register_forward_pre_hook(half_of_input),
        FUSED,
    ),
    "a hook on a wrapper inside": (
        lambda model: inner(model).register_forward_hook(double),
        ("upstream", "gate_up_proj: a forward hook is registered on it"),
    ),
    "a hook on the experts": (
        lambda model: experts(model).register_forward_pre_hook(half_of_input),
        ("upstream", "Plain: a forward hook is registered on it"),
    ),
    "a backward hook on the experts": (
        lambda model: experts(model).register_full_backward_hook(lambda module, given, out: (given[0] * 2, None, None)),
        ("upstream", "Plain: a backward hook is registered on it"),
    ),
    "a hook on the activation": (lambda model: experts(model).act_fn.register_forward_hook(double), FUSED),
    "a weight that is trained": (
        lambda model: experts(model).down_proj.requires_grad_(),
        ("upstream", "down_proj: it is trained itself"),
    ),
    "another parameter that is trained": (lambda model: experts(model).register_parameter("p", None), FUSED),
    "all adapters frozen": (lambda model: model.requires_grad_(False), FUSED),
    "one wrapper merged": (lambda model: wrapper(model).merge(), FUSED),
    "the inner wrapper merged": (lambda model: inner(model).merge(), FUSED),
    "all merged": (
        lambda model: [wrapper(model).merge(), inner(model).merge()],
        ("upstream", "no active LoRA adapter"),
    ),
    "merged and unmerged": (lambda model: [wrapper(model).merge(), wrapper(model).unmerge()], FUSED),
    "one wrapper disabled": (lambda model: inner(model).enable_adapters(False), FUSED),
    "all disabled": (
        lambda model: [one.enable_adapters(False) for one in (wrapper(model), inner(model))],
        ("upstream", "no active LoRA adapter"),
    ),
    "disabled while merged": (
        lambda model: [model.merge_adapter(), model.base_model.disable_adapter_layers()],
        ("upstream", "down_proj: its adapters are disabled"),
    ),
    "no adapter active": (
        lambda model: [one.set_adapter([]) for one in (wrapper(model), inner(model))],
        ("upstream", "no active LoRA adapter"),
    ),
    "an adapter's scale": (lambda model: wrapper(model).set_scale("default", 3.0), FUSED),
    "new weights": (lambda model: experts(model).down_proj.data.mul_(3.0), FUSED),
    "new tensors": (
        lambda model: setattr(experts(model), "down_proj", nn.Parameter(experts(model).down_proj.data * 2, False)),
        FUSED,
    ),
    "a forward on the experts": (
        lambda model: setattr(experts(model), "forward", MethodType(own_forward, experts(model))),
        ("upstream", "Plain: forward was replaced on the instance"),
    ),
    "an activation": (lambda model: setattr(experts(model), "act_fn", nn.Tanh()), FUSED),
    "adapters in another dtype": (
        lambda model: [p.data.copy_(p.data.float()) for n, p in model.named_parameters() if "lora_A" in n],
        FUSED,
    ),
    "expert parallel": (
        lambda model: setattr(experts(model), "_is_expert_parallel", True),
        ("upstream", "Plain: its experts are spread over processes"),
    ),
}


@pytest.mark.parametrize("name", STATES)
def test_states_after_apply_and_before(name):
    change, told = STATES[name]
    model = adapted()
    ours, _ = patched(model)
    for one in (model, ours):
        change(one)
    late = copy.deepcopy(model)
    patchkit.apply(late)
    wanted = results(model)
    for one in (ours, late):
        (row,) = patchkit.report(one).rows
        assert (row.level, row.reason) == told
        with fused_calls() as calls:
            found = results(one)
        assert bool(calls) == (told == FUSED)
        assert_equal(wanted, found)


CALLS = {
    "by name": lambda model, x, index, weights: wrapper(model)(x, top_k_index=index, top_k_weights=weights),
    "no gradient": lambda model, *given: torch.no_grad()(model)(*given),
    "inference mode": lambda model, *given: torch.inference_mode()(model)(*given),
    "a wrong dtype": lambda model, x, *given: model(x.half(), *given),
    "a wrong width": lambda model, x, *given: model(x[:, :3], *given),
    "an index that is none": lambda model, x, index, weights: model(x, torch.full_like(index, 99), weights),
    "a batch of adapters": lambda model, *given: wrapper(model)(*given, adapter_names=["default"]),
}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", CALLS)
def test_calls(name, implementation):
    """The same numbers, or the same kind of error."""
    if (name, implementation) == ("an index that is none", "grouped_mm"):
        pytest.skip("what transformers computes then is memory that nobody wrote")
    dtype = torch.float32 if implementation == "grouped_mm" else torch.float64
    model = adapted(implementation=implementation, dtype=dtype)
    ours, _ = patched(model)
    outcomes = []
    for one in (model, ours):
        try:
            outcomes.append(CALLS[name](one, *inputs(dtype)))
        except Exception as error:
            outcomes.append(type(error))
    wanted, found = outcomes
    if isinstance(wanted, type):
        assert found is wanted
        return
    assert (found.requires_grad, found.dtype) == (wanted.requires_grad, wanted.dtype)
    assert (found - wanted).norm() <= (1e-5 if dtype == torch.float32 else 1e-12) * wanted.norm()


class Subclass(torch.Tensor):
    pass


class Mode(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def under_mode(model):
    with Mode():
        return model(*inputs())


SURROUNDINGS = {
    "a tensor subclass": lambda model: model(inputs()[0].detach().as_subclass(Subclass), *inputs()[1:]),
    "a function mode": under_mode,
}


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_surroundings_run_pefts_code(name):
    model = adapted(implementation="batched_mm")
    ours, _ = patched(model)
    wanted = SURROUNDINGS[name](model)
    with fused_calls() as calls:
        found = SURROUNDINGS[name](ours)
    assert not calls
    assert torch.equal(found, wanted)


def test_a_forward_of_peft_that_is_replaced_after_apply(monkeypatch):
    ours, _ = patched(adapted())
    monkeypatch.setattr(ParamWrapper, "forward", lambda self, x, *args, **kwargs: x * 3)
    x, index, weights = inputs()
    assert torch.equal(ours(x, index, weights), x * 3)
    (row,) = patchkit.report(ours).rows
    assert row.level == "upstream"
    assert "forward was replaced" in row.reason


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_checkpointing(implementation, reentrant):
    dtype = torch.float32 if implementation == "grouped_mm" else torch.float64
    model = adapted(implementation=implementation, dtype=dtype)
    ours, _ = patched(model)

    class Checkpointed(nn.Module):
        def __init__(self, one):
            super().__init__()
            self.one = one

        def forward(self, *given):
            return checkpoint(self.one, *given, use_reentrant=reentrant)

    wanted = results(Checkpointed(model))
    with fused_calls() as calls:
        found = results(Checkpointed(ours))
    assert len(calls) % 2 == 0
    assert calls
    assert_equal(wanted, found, 1e-5 if dtype == torch.float32 else 1e-12)


CHANGES = {
    "a hook on a wrapper inside": lambda model: inner(model).register_forward_hook(lambda *args: None),
    "a hook on the experts": lambda model: experts(model).register_forward_hook(lambda *args: None),
    "revert": lambda model: patchkit.revert(model),
    "apply again": lambda model: patchkit.apply(model, experts=False),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_before_the_recomputation(name):
    """The forward is run again as it ran first."""
    model = adapted()
    ours, _ = patched(model)
    x, index, weights = inputs()
    grads = []
    for one in (model, ours):
        y = checkpoint(one, x, index, weights, use_reentrant=False)
        if one is ours or "hook" in name:
            CHANGES[name](one)
        variables = [x, weights, *[p for p in one.parameters() if p.requires_grad]]
        grads.append(torch.autograd.grad(y.square().sum(), variables))
    for a, b in zip(*grads, strict=True):
        assert (a - b).norm() <= 1e-12 * a.norm()


@pytest.mark.parametrize("implementation", ["eager", "batched_mm"])
def test_compiled(implementation):
    """torch.compile breaks the graph at PEFT's parametrization; the numbers stay."""
    model = adapted(implementation=implementation)
    ours, _ = patched(model)
    x, index, weights = inputs()
    torch._dynamo.reset()
    with torch.no_grad():
        wanted = model(x, index, weights)
        found = torch.compile(ours, backend="eager")(x, index, weights)
    torch._dynamo.reset()
    assert (found - wanted).norm() <= 1e-12 * wanted.norm()
    assert_equal(results(model), results(ours))


@pytest.mark.parametrize("merge", [True, False], ids=["merged", "unmerged"])
@pytest.mark.parametrize("which", [wrapper, inner])
def test_merging_between_a_forward_and_its_backward(which, merge):
    """An error, where the gradients of x would be wrong."""
    ours, _ = patched(adapted())
    if not merge:
        which(ours).merge()
    y = ours(*inputs())
    which(ours).merge() if merge else which(ours).unmerge()
    with pytest.raises(MergedInBetweenError, match="of a Plain were merged or unmerged"):
        y.sum().backward()
    which(ours).unmerge() if merge else which(ours).merge()
    y.sum().backward()


def in_float8(model):
    weight = experts(model).down_proj
    weight.data = weight.data.to(torch.float8_e4m3fn)


def of_a_subclass(model):
    experts(model)._parameters["down_proj"] = nn.Parameter(experts(model).down_proj.data.as_subclass(Subclass), False)


def sparse(model):
    wrapper(model).lora_A["default"].weight = nn.Parameter(wrapper(model).lora_A["default"].weight.data.to_sparse())


def on_meta(model):
    wrapper(model).lora_B.to("meta")


def another_rank(model):
    wrapper(model).lora_A["default"] = nn.Linear(INNER, 9, bias=False, dtype=torch.float64)


def another_width(model):
    wrapper(model).lora_A["default"] = nn.Linear(INNER + 1, 8, bias=False, dtype=torch.float64)


MISFITS = {
    "float8": (in_float8, "torch.float8_e4m3fn"),
    "a subclass": (of_a_subclass, "Subclass"),
    "sparse": (sparse, "torch.sparse_coo"),
    "another device": (on_meta, "it is on another device than its input"),
    "another rank": (another_rank, "its A and B do not fit it"),
    "another width": (another_width, "its A and B do not fit it"),
    "another dtype than the input's": (
        lambda model: wrapper(model).get_base_layer().float(),
        "its weight is torch.float32, its input torch.float64",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_tensors_that_do_not_fit(name):
    change, reason = MISFITS[name]
    model = adapted()
    change(model)
    found = choose_parameters(wrapper(model), inputs()[0])
    assert isinstance(found, str)
    assert found.startswith("down_proj: ")
    assert reason in found


def test_autocast_over_float64_is_left_to_peft():
    model = adapted()
    with torch.autocast("cpu", torch.bfloat16):
        assert "autocast to torch.bfloat16" in choose_parameters(wrapper(model), inputs()[0])


def test_adapters_of_another_dtype_are_cast_as_peft_casts_them():
    model = adapted()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    ours, report = patched(model)
    assert [row.level for row in report.rows] == ["fused"]
    assert_equal(results(model), results(ours), 1e-6)  # PEFT before 0.21 multiplies them first


def test_applied_before_the_recomputation():
    model = adapted()
    x, index, weights = inputs()
    grads = []
    for late in (False, True):
        y = checkpoint(model, x, index, weights, use_reentrant=False)
        if late:
            assert patchkit.apply(model).rows[0].level == "fused"
        variables = [x, weights, *[p for p in model.parameters() if p.requires_grad]]
        grads.append(torch.autograd.grad(y.square().sum(), variables))
    for a, b in zip(*grads, strict=True):
        assert (a - b).norm() <= 1e-12 * a.norm()
