"""F2 to F4, F11, F12, F16 to F23, F26, F27: what systems of this kind got wrong about models, shapes and classes."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
import warnings
from pathlib import Path

import pytest
import torch
from same_as_upstream import assert_fused, assert_same, named, pair
from torch import nn
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaMLP

import patchkit
from patchkit.arch.spec import GatedMLP
from patchkit.binding.classes import patched_class
from patchkit.errors import PatchkitWarning, UnknownOptionError
from patchkit.testing import add_lora, compare_runs, run, tiny_inputs, tiny_model

quiet = pytest.mark.filterwarnings("ignore")


@quiet
def test_f2_scaled_embedding():
    """Gemma multiplies its embedding; the adapter's part is multiplied too."""
    targets = ["embed_tokens", "q_proj", "v_proj"]
    reference, model = pair("gemma3", target_modules=targets)
    row = next(row for row in patchkit.report(model).rows if row.part == "embedding")
    assert row.level == "fused", row
    assert named(model, "embed_tokens.base_layer")[0].embed_scale != 1
    assert_same(reference, model, "gemma3")


@pytest.mark.parametrize(
    "activation", ["silu", "gelu", "gelu_pytorch_tanh", "gelu_new", "gelu_fast", "quick_gelu", "relu", "mish"]
)
def test_f3_each_activation_is_its_own_function(activation):
    reference, model = pair(overrides={"hidden_act": activation})
    x = torch.randn(64, 64)
    mlp, expected = (next(m for m in copied.modules() if isinstance(m, LlamaMLP)) for copied in (model, reference))
    x = x * (6 / expected.gate_proj(x).abs().max()) * 1.5
    gates = expected.gate_proj(x)
    assert gates.min() < -6
    assert gates.max() > 6
    assert (mlp(x) - expected(x)).norm() <= 1e-6 * expected(x).norm()


class Clamped(LlamaMLP):
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)).clamp(max=1.0) * self.up_proj(x))


class Dropped(LlamaMLP):
    def forward(self, x):
        return self.down_proj(
            nn.functional.dropout(self.act_fn(self.gate_proj(x)) * self.up_proj(x), 0.5, self.training)
        )


class Scaled(LlamaMLP):
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x) * 0.5)


class Sparse(LlamaMLP):
    def forward(self, x):
        gate = self.gate_proj(x)
        gate = torch.relu(gate - gate.mean(-1, keepdim=True))
        return self.down_proj(self.act_fn(gate) * self.up_proj(x))


class Added(LlamaMLP):
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) + self.up_proj(x))


@quiet
@pytest.mark.parametrize("cls", [Clamped, Dropped, Scaled, Sparse, Added], ids=lambda cls: cls.__name__)
def test_f4_a_look_alike_is_not_fused(cls):
    """The same attribute names, another function: its projections are fused one by one, the rest is its own."""
    reference = add_lora(tiny_model("llama")).train()
    for module in reference.modules():
        if type(module) is LlamaMLP:
            module.__class__ = cls
    model = copy.deepcopy(reference)
    target = patched_class(cls, GatedMLP(cls.__name__), frozenset({"mlp"}))
    assert isinstance(target, type)
    assert {site.rule for site in target.__patchkit__.sites} == {"call-alone"}
    for module in model.modules():
        if type(module) is cls:
            module.__class__ = target
    assert_same(reference, model, seeds=(0, 1))


@quiet
def test_f11_patching_one_architecture_leaves_another_as_it_is():
    _, llama = pair()
    inputs = tiny_inputs("llama", llama)
    before = run(llama, inputs)
    function = type(named(llama, "self_attn")[0]).forward
    assert function.__globals__ is vars(modeling_llama)
    names = set(vars(modeling_llama))
    for other in ("gemma", "gemma3", "mistral"):
        pair(other)
    after = run(llama, inputs)
    assert all(torch.equal(before.gradients[name], after.gradients[name]) for name in before.gradients)
    assert set(vars(modeling_llama)) == names


def test_f12_later_patches_of_the_upstream_module_are_seen(monkeypatch):
    _, model = pair()
    calls, rotate = [], modeling_llama.apply_rotary_pos_emb
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", lambda *a, **k: calls.append(1) or rotate(*a, **k))
    model(**tiny_inputs("llama", model))
    assert len(calls) == 2


@pytest.mark.parametrize("shape", [(64,), (5, 64), (0, 64), (2, 0, 64), (2, 3, 64), (2, 1, 3, 64)], ids=str)
@pytest.mark.parametrize("options", [{}, {"use_dora": True, "lora_dropout": 0.2}], ids=str)
def test_f16_any_leading_shape(shape, options):
    reference, model = pair(**options)
    assert_same_mlp(reference, model, torch.randn(shape))


@pytest.mark.parametrize("options", [{}, {"lora_dropout": 0.2}], ids=str)
def test_f17_inputs_and_gradients_that_are_not_contiguous(options):
    reference, model = pair(**options)
    assert_same_mlp(reference, model, torch.randn(64, 7, 3).permute(2, 1, 0), permuted=True)
    assert_same_mlp(reference, model, torch.randn(3, 7, 128)[..., ::2])


def assert_same_mlp(reference, model, x, *, permuted=False):
    found = []
    for copied in (reference, model):
        mlp = next(m for m in copied.modules() if isinstance(m, LlamaMLP))
        own = x.clone(memory_format=torch.preserve_format).requires_grad_()
        torch.manual_seed(1)
        y = mlp(own)
        cotangent = torch.linspace(-1, 1, y.numel()).reshape(y.shape[::-1] if permuted else y.shape)
        cotangent = cotangent.permute(*reversed(range(y.dim()))) if permuted else cotangent
        trained = [p for p in mlp.parameters() if p.requires_grad]
        found.append([y, *torch.autograd.grad(y, [own, *trained], cotangent)])
    for expected, actual in zip(*found, strict=True):
        assert expected.shape == actual.shape
        assert (expected - actual).norm() <= 1e-5 * expected.norm()


HALF, FULL = torch.bfloat16, torch.float32


@quiet
@pytest.mark.parametrize("base", [FULL, HALF])
@pytest.mark.parametrize("adapter", [FULL, HALF])
@pytest.mark.parametrize("autocast", [None, HALF, torch.float16])
@pytest.mark.parametrize("use_dora", [False, True])
def test_f18_dtypes_are_upstreams(base, adapter, autocast, use_dora):
    """Of every output and gradient, for each mixture; also that nothing crashes where upstream does not."""
    model = add_lora(tiny_model("llama", dtype=base), use_dora=use_dora).train()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(adapter)
    reference = copy.deepcopy(model)
    patchkit.apply(model)
    dtypes, inputs = [], tiny_inputs("llama", model)
    for copied in (reference, model):
        with torch.autocast("cpu", autocast or HALF, enabled=autocast is not None):
            found = run(copied, inputs)
        dtypes.append({name: t.dtype for name, t in {**found.outputs, **found.gradients}.items()})
    assert dtypes[0] == dtypes[1]


@pytest.mark.parametrize("options", [{}, {"use_dora": True, "lora_dropout": 0.2}], ids=str)
def test_f19_a_second_backward_gives_the_same_gradients(options):
    _, model = pair(**options)
    loss = model(**tiny_inputs("llama", model)).loss
    trained = [p for p in model.parameters() if p.requires_grad]
    first = torch.autograd.grad(loss, trained, retain_graph=True)
    second = torch.autograd.grad(loss, trained)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


class Expert(LlamaMLP):
    """An expert, as mixtures of experts have them: a subclass with the forward of the dense block."""


@quiet
def test_f20_experts_are_bound_one_by_one():
    """A list of experts and a shared one: each computes with its own weights, on [tokens, hidden] and on no token."""
    config = tiny_model("llama").config
    reference = nn.ModuleDict({"experts": nn.ModuleList(Expert(config) for _ in range(3)), "shared": LlamaMLP(config)})
    reference = add_experts_lora(reference)
    model = copy.deepcopy(reference)
    report = patchkit.apply(model)
    assert report.counts == {"fused": 4}
    x = torch.randn(7, config.hidden_size)
    chosen = [x[:4], x[4:], x[:0]]
    for expected, found in (
        *zip(reference["experts"], model["experts"], strict=True),
        (reference["shared"], model["shared"]),
    ):
        for tokens in (*chosen, x):
            assert (expected(tokens) - found(tokens)).norm() <= 1e-5 * expected(tokens).norm()
    assert (model["experts"][0](x) - model["experts"][1](x)).norm() > 0.1


def add_experts_lora(model):
    import peft

    torch.manual_seed(0)
    targets = ["gate_proj", "up_proj", "down_proj"]
    return peft.inject_adapter_in_model(peft.LoraConfig(target_modules=targets, init_lora_weights=False), model).train()


def test_f21_bind_is_all_or_nothing(monkeypatch):
    from patchkit.binding import swap as binding

    model = add_lora(tiny_model("llama"))
    before = [type(module) for module in model.modules()]
    give, calls = binding._give, []

    def fail_at_the_third(module, cls):
        calls.append(cls)
        if len(calls) == 3:
            raise RuntimeError("no third class")
        give(module, cls)

    monkeypatch.setattr(binding, "_give", fail_at_the_third)
    with pytest.raises(RuntimeError, match="no third class"):
        patchkit.apply(model)
    assert [type(module) for module in model.modules()] == before
    monkeypatch.undo()
    assert patchkit.apply(model).counts == {"fused": 6}
    after = [type(module) for module in model.modules()]
    assert patchkit.apply(model).counts == {"fused": 6}
    assert [type(module) for module in model.modules()] == after


def test_f22_only_this_model_and_back():
    reference, model = pair()
    other = add_lora(tiny_model("llama"))
    assert type(named(other, "mlp")[0]) is LlamaMLP
    source = inspect.getsource(type(named(model, "mlp")[0]).forward)
    assert "self.apply_mlp(x)" in source
    loaded = pickle.loads(pickle.dumps(named(model, "mlp")[0]))
    assert type(loaded) is LlamaMLP
    copied = copy.deepcopy(model)
    assert_same(reference, copied)
    patchkit.revert(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in reference.modules()]


def test_f23_a_hook_on_an_inner_module_runs():
    reference, model = pair()
    seen = []
    for copied in (reference, model):
        for inner in named(copied, "v_proj.base_layer", "up_proj.lora_A.default"):
            inner.register_forward_hook(lambda module, args, output: seen.append(type(module)) or 1.5 * output)
    assert_same(reference, model)
    assert len(seen) == 2 * 4


@pytest.mark.parametrize("name", ["qkv", "o", "mlp"])
def test_f26_each_switch_works_alone(name):
    model = add_lora(tiny_model("llama")).train()
    reference = copy.deepcopy(model)
    report = patchkit.apply(model, **dict.fromkeys(("qkv", "o", "mlp"), False) | {name: True})
    assert [row.part for row in report.rows if row.level == "fused"] == [name] * 2
    assert_same(reference, model)
    with pytest.raises(UnknownOptionError, match="did you mean 'qkv'"):
        patchkit.apply(model, qvk=True)


def drifted(self, x):
    """An MLP as a release might write it that nobody has seen: gate and up swapped roles in a helper."""
    return self.down_proj(torch.einsum("...i,...i->...i", self.act_fn(self.gate_proj(x)), self.up_proj(x)))


def test_f27_an_unknown_form_runs_upstream_with_one_warning(monkeypatch):
    """A release whose MLP is written otherwise: attention stays fused, the MLP's projections are fused alone."""
    monkeypatch.setattr(LlamaMLP, "forward", drifted)
    model = add_lora(tiny_model("llama")).train()
    reference = copy.deepcopy(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = patchkit.apply(model)
    levels = {row.part: row.level for row in report.rows}
    assert (levels["qkv"], levels["o"]) == ("fused", "fused")
    assert levels["mlp"] in ("alone", "upstream")
    assert all(row.reason for row in report.rows if row.part == "mlp")
    assert len([w for w in caught if w.category is PatchkitWarning]) <= 1
    assert_same(reference, model)


def test_every_failure_mode_has_a_named_test():
    folder = Path(__file__).parent.parent
    text = "\n".join(path.read_text() for path in folder.rglob("test_*.py"))
    named_rows = {int(number) for number in re.findall(r"\bF(\d+)\b|test_f(\d+)_", text) for number in number if number}
    assert named_rows >= set(range(1, 28))


def test_compare_runs_sees_a_difference():
    """The comparison that this folder rests on can fail."""
    reference, model = pair()
    with torch.no_grad():
        named(model, "up_proj")[0].lora_B["default"].weight.mul_(1.001)
    inputs = tiny_inputs("llama", model)
    assert not compare_runs(run(reference, inputs), run(model, inputs)).passed
    assert_fused(model)
