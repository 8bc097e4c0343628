"""A norm that keeps its input: upstream's bits, fewer bytes, and upstream itself wherever that would not be so."""

from __future__ import annotations

import gc
import importlib
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import patchkit
from patchkit.binding.norms import norm_class
from patchkit.errors import NotPatchedError, PatchkitWarning
from patchkit.planning.survey import survey
from patchkit.runtime import norm as runtime_norm
from patchkit.testing import add_lora, tiny_model
from tests.upstream.norm_texts import ByMethods, Deciding, Usual

OF_TRANSFORMERS = ("llama.LlamaRMSNorm", "gemma3.Gemma3RMSNorm", "t5.T5LayerNorm", "cohere.CohereLayerNorm")
SHAPE = (3, 5, 8)


def of_transformers(name: str) -> nn.Module:
    kind, cls = name.split(".")
    return getattr(importlib.import_module(f"transformers.models.{kind}.modeling_{kind}"), cls)(8)


MAKERS: dict[str, Callable[[], nn.Module]] = {
    **{name: lambda name=name: of_transformers(name) for name in OF_TRANSFORMERS},
    **{cls.__name__: cls for cls in (Usual, ByMethods, Deciding)},
}


def pair(name: str, dtype: torch.dtype = torch.bfloat16, *, trained: bool = False) -> tuple[nn.Module, nn.Module]:
    """A norm as upstream has it, and a patched one with the same weight."""
    plain, patched = (MAKERS[name]().to(dtype).requires_grad_(trained) for _ in range(2))
    torch.manual_seed(0)
    with torch.no_grad():
        plain.weight.uniform_(0.5, 1.5)
    patched.load_state_dict(plain.state_dict())
    patched.__class__ = norm_class(type(patched))
    return plain, patched


def given(dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(SHAPE).to(dtype).requires_grad_()


def kept(function: Callable[[], torch.Tensor]) -> int:
    """Bytes of what autograd keeps, parameters aside."""
    storages = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, nn.Parameter):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        made = function()
    del made
    return sum(storages.values())


def is_remade(out: torch.Tensor) -> bool:
    return type(out.grad_fn).__name__ == "RemadeNormBackward"


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MAKERS)
def test_the_same_bits(name, dtype, trained):
    found = []
    for norm in pair(name, dtype, trained=trained):
        x = given(dtype)
        out = norm(x)
        out.backward(torch.linspace(-1, 1, out.numel()).view(SHAPE).to(out.dtype))
        found.append((out.detach(), x.grad, norm.weight.grad))
    assert is_remade(out)
    plain, patched = found
    assert (plain[2] is not None) == trained
    assert all(torch.equal(one, other) for one, other in zip(plain, patched, strict=True) if one is not None)


@pytest.mark.parametrize("name", MAKERS)
def test_only_the_input_is_kept(name):
    plain, patched = pair(name)
    x = given()
    assert kept(lambda: patched(x)) == 2 * x.numel()
    assert kept(lambda: plain(x)) >= 4 * x.numel()


@pytest.mark.parametrize("name", ["llama.LlamaRMSNorm", "gemma3.Gemma3RMSNorm"])
def test_second_derivatives(name):
    plain, patched = pair(name, trained=True)
    found = []
    for norm, dtype in ((plain, torch.bfloat16), (patched, torch.bfloat16), (plain, torch.float64)):
        x = given().detach().to(dtype).requires_grad_()
        norm = norm.to(dtype)
        norm.weight.grad = None
        (first,) = torch.autograd.grad(norm(x).to(torch.float64).pow(3).sum(), x, create_graph=True)
        first.to(torch.float64).pow(3).sum().backward()
        found.append((x.grad, norm.weight.grad))
    *both, exact = found
    for grads in both:
        for one, truth in zip(grads, exact, strict=True):
            # Some roundings to bfloat16 of 2**-9 each; a term that is missing is of the order of 1.
            assert (one.double() - truth).norm() / truth.norm() < 2**-5


@pytest.mark.parametrize("name", ["llama.LlamaRMSNorm", "gemma3.Gemma3RMSNorm"])
def test_under_autocast(name):
    found = []
    for norm in pair(name, torch.float32, trained=True):
        x = given()
        with torch.autocast("cpu", torch.bfloat16):
            out = norm(x)
        out.sum().backward()
        found.append((out.detach(), x.grad, norm.weight.grad))
    assert is_remade(out)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("inside", ["forward", "backward", "neither"])
def test_backward_computes_under_the_autocast_of_forward(inside, monkeypatch):
    """On some devices autocast chooses the dtype of a power or a root."""
    states, computed = [], runtime_norm._computed

    def watched(*arguments):
        states.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        return computed(*arguments)

    monkeypatch.setattr(runtime_norm, "_computed", watched)
    _, norm = pair("llama.LlamaRMSNorm", torch.float32)
    x = given(torch.float16)
    with torch.autocast("cpu", torch.bfloat16, enabled=inside == "forward"):
        out = norm(x)
    with torch.autocast("cpu", torch.float16, enabled=inside == "backward"):
        out.sum().backward()
    first, again = states
    assert first == again
    assert first[0] == (inside == "forward")


def test_what_stands_in_for_a_norm_goes_at_once():
    _, norm = pair("ByMethods")
    gc.collect()
    gc.disable()
    try:
        norm(given()).sum().backward()
        assert not [one for one in gc.get_objects() if type(one) is runtime_norm._StandIn]
    finally:
        gc.enable()


@pytest.mark.parametrize("reentrant", [False, True])
def test_under_checkpoints(reentrant):
    found = []
    for norm in pair("llama.LlamaRMSNorm"):
        x = given()
        checkpoint(norm, x * 2, use_reentrant=reentrant).float().square().sum().backward()
        found.append(x.grad)
    assert torch.equal(*found)


def test_saved_on_the_host():
    found = []
    for norm in pair("llama.LlamaRMSNorm"):
        x = given()
        with torch.autograd.graph.save_on_cpu():
            out = norm(x * 2)
        out.float().square().sum().backward()
        found.append(x.grad)
    assert torch.equal(*found)


def upstream_runs(norm: nn.Module, x: torch.Tensor) -> None:
    out = norm(x)
    assert not is_remade(out)
    assert torch.equal(out, type(norm).__mro__[1].forward(norm, x))


def test_upstream_runs_where_nothing_would_be_saved():
    _, norm = pair("llama.LlamaRMSNorm")
    upstream_runs(norm, given(torch.float32))
    upstream_runs(norm, given().detach())
    with torch.no_grad():
        upstream_runs(norm, given())
    whole = torch.randn(3, 5, 24).bfloat16().requires_grad_()
    upstream_runs(norm, whole[..., :8])  # three times its bytes would be kept, where the copy takes two
    assert is_remade(norm(torch.randn(3, 5, 16).bfloat16().requires_grad_()[..., :8]))


def test_upstream_runs_for_other_tensors_and_inside_transforms():
    _, norm = pair("llama.LlamaRMSNorm")

    class Own(torch.Tensor):
        pass

    out = norm(torch.randn(SHAPE).bfloat16().as_subclass(Own).requires_grad_())
    assert not is_remade(out)
    norm.weight = nn.Parameter(norm.weight.detach().as_subclass(Own), requires_grad=False)
    assert not is_remade(norm(given()))
    _, norm = pair("llama.LlamaRMSNorm")
    found = torch.func.grad(lambda x: norm(x).float().sum())(given().detach())
    assert found.shape == SHAPE


def test_what_is_put_in_place_of_a_method_is_heard(monkeypatch):
    _, norm = pair("gemma3.Gemma3RMSNorm")
    cls = type(norm).__mro__[1]
    assert is_remade(norm(given()))
    with monkeypatch.context() as patch:
        patch.setattr(cls, "_norm", lambda self, x: x * 3)
        upstream_runs(norm, given())
    with monkeypatch.context() as patch:
        patch.setattr(cls, "forward", lambda self, x: x * 3)
        assert torch.equal(norm(given()), given() * 3)
    vars(norm)["_norm"] = lambda x: x * 3
    upstream_runs(norm, given())


def test_an_attribute_that_is_missing_or_something_else():
    _, norm = pair("Deciding")
    norm.with_scale = object()
    upstream_runs(norm, given())
    norm = MAKERS["Usual"]().bfloat16()
    del norm.eps
    norm.__class__ = norm_class(type(norm))
    with pytest.raises(AttributeError, match="eps"):
        norm(given())


def test_a_weight_that_changes_before_backward_is_an_error_as_upstream():
    for norm in pair("llama.LlamaRMSNorm"):
        out = norm(given())
        with torch.no_grad():
            norm.weight.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.float().sum().backward()


def test_a_number_that_changes_before_backward_is_that_of_forward():
    found = []
    for norm in pair("llama.LlamaRMSNorm"):
        x = given()
        out = norm(x)
        norm.variance_epsilon = 100.0
        out.float().square().sum().backward()
        found.append(x.grad)
    assert torch.equal(*found)


def test_nothing_is_held():
    _, norm = pair("gemma3.Gemma3RMSNorm")
    gc.collect()
    gc.disable()
    try:
        x = given() * 2
        watched = weakref.ref(x)
        out = norm(x)
        out.float().sum().backward()
        del x, out
        assert watched() is None
    finally:
        gc.enable()


def test_compiled_in_one_graph():
    found = []
    for norm in pair("llama.LlamaRMSNorm"):
        torch._dynamo.reset()
        x = given()
        out = torch.compile(norm, fullgraph=True, backend="aot_eager")(x)
        out.float().square().sum().backward()
        found.append((out.detach(), x.grad))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def adapted(dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    return add_lora(tiny_model("gemma3").to(dtype), target_modules="all-linear").train()


def rows(report: patchkit.Report) -> list[tuple[str, str, str]]:
    return [(row.module_class, row.level, row.memory) for row in report.rows if row.part == "norm"]


def test_norms_of_a_model_are_asked_for_by_memory():
    model = adapted()
    count = sum(type(module).__name__ == "Gemma3RMSNorm" for module in model.modules())
    before = {name: type(module) for name, module in model.named_modules()}
    expected = [("Gemma3RMSNorm", "fused", "recompute")] * count
    assert count
    assert rows(patchkit.apply(model)) == []
    for memory in ("recompute", "tiled"):
        assert rows(patchkit.apply(model, memory=memory)) == rows(patchkit.report(model)) == expected
    assert rows(patchkit.apply(model, memory="tiled", norm=False)) == rows(patchkit.report(model)) == []
    assert rows(patchkit.apply(model, memory="tiled")) == expected
    assert rows(patchkit.apply(model)) == []
    patchkit.apply(model, memory="tiled")
    patchkit.revert(model)
    assert {name: type(module) for name, module in model.named_modules()} == before


def test_norms_count_for_nothing_in_what_is_fused():
    model, nothing = adapted(), {"linear": False, "qkv": False, "o": False, "mlp": False}
    assert patchkit.apply(model, memory="recompute").share_fused == 1
    with pytest.raises(NotPatchedError, match="nothing of"):
        patchkit.apply(model, memory="recompute", strict=True, **nothing)
    assert patchkit.apply(model, memory="recompute", **nothing).share_fused == 0


def test_a_model_without_adapters_and_blocks_has_no_norm_to_patch():
    model = nn.Sequential(MAKERS["llama.LlamaRMSNorm"]())
    with pytest.warns(PatchkitWarning, match="no layer with an adapter"):
        patchkit.apply(model, memory="recompute")
    assert type(model[0]).__name__ == "LlamaRMSNorm"
    assert not survey(model).blocks


def test_the_loss_keeps_nothing_for_a_second_derivative():
    ids = torch.arange(32).view(2, 16)
    found, sizes = [], []
    for memory in (None, "recompute"):
        model = adapted(torch.float32)
        patchkit.apply(model, loss=True, memory=memory)
        loss = None

        def step(model=model):
            return model(input_ids=ids, labels=ids).loss

        sizes.append(kept(step))
        loss = step()
        loss.backward(retain_graph=True)
        found.append((loss.detach(), [one.grad for one in model.parameters() if one.grad is not None]))
        parameters = [one for one in model.parameters() if one.requires_grad]
        if memory is None:
            assert torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        else:
            with pytest.raises(RuntimeError, match="with memory= the loss does not keep"):
                torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
    (loss, grads), (other, others) = found
    assert torch.equal(loss, other)
    assert all(map(torch.equal, grads, others))
    assert sizes[1] < sizes[0]
