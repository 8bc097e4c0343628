"""Odd modules beside a model: they stay as they are, with the reason where they are a block, and the rest is patched."""

from __future__ import annotations

import copy
import functools
import warnings

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers.models.llama.modeling_llama import LlamaMLP

import patchkit
from patchkit.errors import PatchkitWarning
from patchkit.module_tree import named_modules
from patchkit.testing import add_lora, compare_runs, identical_runs, run, tiny_inputs, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x):
        return self.inner(x)


def scripted():
    return torch.jit.script(Plain())


def traced():
    return torch.jit.trace(Plain(), torch.zeros(2, 3))


def holding_scripted():
    module = Plain()
    module.scripted = scripted()
    module.function = torch.jit.script(torch_function)
    return module


def torch_function(x: torch.Tensor) -> torch.Tensor:
    return x + 1


def embeddings(function):
    """A module with both of the methods that transformers models have."""

    def make():
        methods = dict.fromkeys(("get_input_embeddings", "get_output_embeddings"), function)
        return type("WithEmbeddings", (Plain,), methods)()

    return make


class Liar:
    """An answer that is of no class."""

    @property
    def __class__(self):
        raise RuntimeError("no class")


def raising(error):
    def method(self):
        raise error

    return method


class WithoutInit(nn.Module):
    def __init__(self):
        pass


class WithoutInitOnModules(nn.Module):
    """Half of it is there."""

    def __init__(self):
        super().__init__()
        del self.__dict__["_modules"]


class BadModules(Plain):
    def named_modules(self, *args, **kwargs):
        raise RuntimeError("no modules")

    modules = children = named_children = parameters = named_parameters = named_modules


class BadAttributes(Plain):
    def __getattr__(self, name):
        if name in ("inner", "_modules"):
            return super().__getattr__(name)
        raise RuntimeError(f"no {name}")


class BadState(Plain):
    @property
    def __dict__(self):
        raise RuntimeError("no state")


def without_state():
    module = Plain()
    module.__class__ = BadState
    return module


class BadComparison(Plain):
    def __eq__(self, other):
        raise RuntimeError("not comparable")

    def __hash__(self):
        raise RuntimeError("no hash")

    def __bool__(self):
        raise RuntimeError("neither true nor false")

    def __len__(self):
        raise RuntimeError("no length")


def circular():
    first, second = Plain(), Plain()
    first.second, second.first, second.itself = second, first, second
    return first


def shared():
    module = Plain()
    module.again = module.inner
    module.list = nn.ModuleList([module.inner, module.inner])
    return module


def deep():
    module = nn.Identity()
    for _ in range(3000):  # deeper than Python's stack
        module = nn.Sequential(module)
    return module


def odd_children():
    module = Plain()
    module._modules["none"] = None
    module._modules[3] = nn.Identity()
    module._modules["text"] = "no module"
    return module


def lists():
    module = Plain()
    module.list = nn.ParameterList([torch.zeros(2), nn.Parameter(torch.zeros(1)), "text"])
    module.dict = nn.ParameterDict({"a": torch.zeros(2)})
    return module


def quantised():
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)), {nn.Linear}, dtype=torch.qint8)


def graph():
    return torch.fx.symbolic_trace(Plain())


HOSTILE = {
    "scripted": scripted,
    "traced": traced,
    "holding scripted ones": holding_scripted,
    "embeddings with arguments": embeddings(lambda self, name, *, layer: None),
    "embeddings that are none": embeddings(lambda self: None),
    "embeddings that are text": embeddings(lambda self: "embed"),
    "embeddings that are a tensor": embeddings(lambda self: torch.zeros(2)),
    "embeddings that are a class": embeddings(lambda self: nn.Embedding),
    "embeddings that lie": embeddings(lambda self: Liar()),
    "embeddings that are the module": embeddings(lambda self: self),
    "embeddings that are no method": embeddings("text"),
    "embeddings that are a property": embeddings(property(lambda self: 1 / 0)),
    **{
        f"embeddings that raise {type(error).__name__}": embeddings(raising(error))
        for error in (NotImplementedError(), RuntimeError(), KeyError("x"), AssertionError(), RecursionError())
    },
    "without init": WithoutInit,
    "without modules": WithoutInitOnModules,
    "bad modules": BadModules,
    "bad attributes": BadAttributes,
    "bad state": without_state,
    "bad comparison": BadComparison,
    "circular": circular,
    "shared": shared,
    "deep": deep,
    "odd children": odd_children,
    "lazy": lambda: nn.Sequential(nn.LazyLinear(3), nn.LazyConv1d(2, 3), nn.LazyBatchNorm1d()),
    "parameter lists": lists,
    "quantised": quantised,
    "graph": graph,
    "compiled": lambda: torch.compile(Plain()),
}


class Beside(nn.Module):
    """A model with something beside it."""

    def __init__(self, model, other):
        super().__init__()
        self.before = other
        self.model = model
        self.after = other


def classes(model):
    return [type(module) for _, module in named_modules(model)]


def assert_equal(reference, model, same=compare_runs):
    inputs = tiny_inputs("llama", reference)
    outcome = same(run(reference, inputs), run(model, inputs))
    assert outcome is True or outcome.passed, outcome


@pytest.mark.parametrize("name", HOSTILE)
def test_the_model_beside_it_is_patched(name, lora_model):
    reference, model = lora_model(target_modules="all-linear")
    whole = Beside(model, HOSTILE[name]())
    before = classes(whole)
    with warnings.catch_warnings():
        warnings.simplefilter("error", PatchkitWarning)
        report = patchkit.apply(whole)
    assert report.counts == {"fused": 6}
    assert patchkit.report(whole) == report
    assert patchkit.apply(whole, mlp=False).counts["fused"] == 4
    assert_equal(reference, model)
    patchkit.revert(whole)
    assert classes(whole) == before
    with patchkit.patched(whole) as report:
        assert report.counts == {"fused": 6}
        assert_equal(reference, model)
    assert classes(whole) == before
    assert_equal(reference, model, identical_runs)


def test_named_modules_are_torchs(lora_model):
    _, model = lora_model()
    model.again = model.base_model.model.model.layers
    whole = Beside(model, shared())
    assert list(named_modules(whole)) == list(whole.named_modules())


class RaisingMLP(LlamaMLP):
    """A block that does not let itself be looked at."""

    def __getattribute__(self, name):
        if name in ("__dict__", "gate_proj"):
            raise RuntimeError("not yours")
        return super().__getattribute__(name)


def lazily(mlp):
    """Nobody knows its sizes yet."""
    mlp.gate_proj.base_layer.weight = nn.UninitializedParameter()


def unlike(mlp):
    mlp.gate_proj.lora_dropout._modules["default"] = "text"


@pytest.mark.parametrize("change", [lambda mlp: setattr(mlp, "__class__", RaisingMLP), lazily, unlike])
def test_a_block_that_cannot_be_examined_is_left(change, lora_model):
    _, model = lora_model()
    change(model.base_model.model.model.layers[0].mlp)
    before = classes(model)
    with pytest.warns(PatchkitWarning, match="mlp: .*"):
        report = patchkit.apply(model, trust="always")
    assert report.counts == {"fused": 5, "alone": 1}
    (row,) = report.at("alone")
    assert row.name.endswith("layers.0.mlp")
    assert row.reason
    assert [row for row in patchkit.report(model).rows if row.level == "fused"] == list(report.at("fused"))
    patchkit.revert(model)
    assert classes(model) == before


def test_wrapped_in_compile(lora_model):
    _, model = lora_model()
    compiled = torch.compile(model)
    before = classes(compiled)
    assert patchkit.apply(compiled).counts == {"fused": 6}
    patchkit.revert(compiled)
    assert classes(compiled) == before


def test_wrapped_in_data_parallel(lora_model, tmp_path):
    reference, model = lora_model()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(model)
        assert patchkit.apply(wrapped).counts == {"fused": 6}
        assert_equal(reference, model)
        patchkit.revert(wrapped)
        assert_equal(reference, model, identical_runs)
    finally:
        torch.distributed.destroy_process_group()


def converted(tensor, layout):
    if layout == "nested":
        return torch.nested.nested_tensor(list(tensor))
    if layout == "jagged":
        return torch.nested.nested_tensor(list(tensor), layout=torch.jagged)
    return {"coo": tensor.to_sparse, "csr": tensor.to_sparse_csr, "mkldnn": tensor.to_mkldnn}[layout]()


def outcome(function, x):
    """What comes out as an ordinary tensor, or the error."""
    try:
        y = function(x)
    except Exception as error:
        return type(error)
    return y.to_padded_tensor(0.0) if y.is_nested else y if y.layout is torch.strided else y.to_dense()


@pytest.mark.parametrize("layout", ["coo", "csr", "mkldnn", "nested", "jagged"])
def test_inputs_that_are_no_ordinary_tensors(layout, lora_model):
    """As upstream: what it computes, or the error that it raises."""
    reference, model = lora_model()
    patchkit.apply(model)
    shape = (3, 64) if layout in ("coo", "csr") else (2, 3, 64)
    x = converted(torch.randn(shape, generator=torch.Generator().manual_seed(0)), layout)
    with torch.no_grad():
        for name in ("mlp", "self_attn.o_proj"):
            layers = (m.base_model.model.model.layers[0].get_submodule(name) for m in (reference, model))
            expected, found = (outcome(layer, x) for layer in layers)
            assert type(found) is type(expected)
            assert torch.equal(found, expected) if isinstance(found, torch.Tensor) else found is expected
        attention = model.base_model.model.model.layers[0].self_attn
        blocks = (functools.partial(call_qkv, m.base_model.model.model.layers[0].self_attn) for m in (reference, model))
        assert hasattr(attention, "apply_qkv")
        expected, found = (outcome(block, x) for block in blocks)
        assert torch.equal(found, expected) if isinstance(found, torch.Tensor) else found is expected


def call_qkv(attention, x):
    if hasattr(attention, "apply_qkv"):
        return attention.apply_qkv(x)[0]
    query, _, _ = (projection(x) for projection in (attention.q_proj, attention.k_proj, attention.v_proj))
    return query


@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_sparse_weights(layout, lora_model):
    reference, model = lora_model()
    for copied in (reference, model):
        base = copied.base_model.model.model.layers[0].mlp.down_proj.base_layer
        base.weight = nn.Parameter(converted(base.weight.data, layout), requires_grad=False)
    (row,) = patchkit.apply(model).at("alone")
    assert "down_proj: its weight is sparse" in row.reason
    inputs = tiny_inputs("llama", model)
    results = []
    for copied in (reference, model):
        try:
            results.append(run(copied, inputs, backward=False))
        except RuntimeError as error:
            results.append(str(error))
    if isinstance(results[0], str):
        assert results[0] == results[1]
    else:
        assert compare_runs(*results).passed


def test_a_copy_beside_stays_unpatched(lora_model):
    reference, model = lora_model()
    whole = Beside(model, scripted())
    patchkit.apply(whole)
    assert classes(reference) == classes(add_lora(tiny_model("llama")))
    assert classes(copy.deepcopy(model)) == classes(model)
