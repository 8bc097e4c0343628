"""States that are not fused run at upstream level (or alone, where only some projections are concerned): equal, and said.

Each row of the table changes one thing about a model with adapters. The reference is a copy that had the same change
and was never patched.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from typing import NamedTuple

import peft
import pytest
import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP

import patchkit
from patchkit.testing import add_lora, compare_runs, randomise_adapter, run, tiny_inputs, tiny_model
from patchkit_kernels.lora.linear import lora_linear
from patchkit_kernels.lora.projection import Adapter, Precision, Projection

pytestmark = pytest.mark.filterwarnings("ignore::patchkit.errors.PatchkitWarning", "ignore::UserWarning")


def projections(model, *names):
    return [module for name, module in model.named_modules() if name.endswith(names)]


class State(NamedTuple):
    """A change to the model, the levels it must have then, and words of the reason."""

    name: str
    build: Callable[[], nn.Module]
    levels: dict[str, str]
    reason: str
    inputs: dict[str, object] = {}  # noqa: RUF012


def lora(**config):
    return lambda: add_lora(tiny_model("llama"), **config)


def changed(change, **config):
    def build():
        model = add_lora(tiny_model("llama"), **config)
        change(model)
        return model

    return build


def tuner(config_class, **config):
    def build():
        torch.manual_seed(0)
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        model = peft.get_peft_model(
            tiny_model("llama"), config_class(target_modules=targets, task_type="CAUSAL_LM", **config)
        )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.add_(
                        0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
                    )
        return model

    return build


def several_adapters(model):
    model.add_adapter(
        "second", peft.LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "gate_proj"], init_lora_weights=False)
    )
    randomise_adapter(model, "second", seed=3)
    model.base_model.set_adapter(["default", "second"])


def zero_magnitudes(model):
    """F24: nothing divides by the magnitude."""
    for module in projections(model, "q_proj", "up_proj", "down_proj"):
        with torch.no_grad():
            module.lora_magnitude_vector["default"].weight[::3] = 0


def adapters_of_several_dtypes(model):
    several_adapters(model)
    for module in projections(model, "q_proj.lora_A.second", "q_proj.lora_B.second"):
        module.to(torch.float64)
    for module in projections(model, "gate_proj.lora_A.second", "gate_proj.lora_B.second"):
        module.to(torch.float64)


def set_dropout(layer, dropout):
    layer.lora_dropout["default"] = dropout


def hook(kind, *names):
    def change(model):
        for module in projections(model, *names):
            if kind == "forward":
                module.register_forward_hook(lambda module, args, output: output * 1.5)
            elif kind == "forward_pre":
                module.register_forward_pre_hook(lambda module, args: (args[0] * 1.5,))
            else:
                module.register_full_backward_hook(
                    lambda module, gin, gout: tuple(None if g is None else 2 * g for g in gin)
                )

    return change


def replace_forward(model):
    for module in projections(model, "v_proj"):
        module.forward = types.MethodType(lambda self, x: 1.5 * type(self).forward(self, x), module)


class OwnLinear(nn.Linear):
    def forward(self, x):
        return 1.5 * super().forward(x)


def own_base_layer(model):
    for module in projections(model, "k_proj.base_layer"):
        module.__class__ = OwnLinear


def parametrized(model):
    class Double(nn.Module):
        def forward(self, weight):
            return 2 * weight

    for module in projections(model, "o_proj.base_layer"):
        nn.utils.parametrize.register_parametrization(module, "weight", Double())


def other_activation(model):
    for module in model.modules():
        if isinstance(module, LlamaMLP):
            module.act_fn = nn.Mish()


UPSTREAM = {"qkv": "upstream", "o": "upstream", "mlp": "upstream"}
FUSED = {"qkv": "fused", "o": "fused", "mlp": "fused"}
ATTENTION_ALONE = {"qkv": "alone", "o": "fused", "mlp": "fused"}

STATES = [
    State("dropout", lora(lora_dropout=0.3), FUSED, ""),
    State("dora", lora(use_dora=True), FUSED, ""),
    State("lora_bias", lora(lora_bias=True), FUSED, ""),
    State("several adapters", changed(several_adapters), FUSED, ""),
    State("magnitude zero", changed(zero_magnitudes, use_dora=True), FUSED, ""),
    State(
        "adapters of several dtypes",
        changed(adapters_of_several_dtypes),
        {"qkv": "alone", "o": "fused", "mlp": "alone"},
        "its adapters differ in dtype",
    ),
    State(
        "dropout of another kind",
        changed(lambda m: [set_dropout(p, nn.AlphaDropout(0.1)) for p in projections(m, "q_proj")]),
        ATTENTION_ALONE,
        "its dropout is a AlphaDropout",
    ),
    State(
        "DoRA with a dropout of nothing",
        changed(
            lambda m: [setattr(p.lora_dropout["default"], "p", 0.0) for p in projections(m, "q_proj")],
            lora_dropout=0.3,
            use_dora=True,
        ),
        ATTENTION_ALONE,
        "its dropout does not train with it",
    ),
    State("merged", changed(lambda model: model.merge_adapter()), UPSTREAM, "its adapters are merged"),
    State(
        "disabled",
        changed(lambda model: model.base_model.disable_adapter_layers()),
        UPSTREAM,
        "its adapters are disabled",
    ),
    *(
        State("velora", lora(velora_config=config(num_groups=2)), UPSTREAM, "LoRA variant VeloraLinearVariant")
        for config in [getattr(peft, "VeloraConfig", None)]
        if config  # since PEFT 0.20
    ),
    State("ia3", tuner(peft.IA3Config, feedforward_modules=["down_proj"]), UPSTREAM, "ia3"),
    State("loha", tuner(peft.LoHaConfig, r=2), UPSTREAM, "loha"),
    State("vera", tuner(peft.VeraConfig, r=4), UPSTREAM, "vera"),
    State(
        "adalora",
        tuner(peft.AdaLoraConfig, init_r=4, target_r=2, total_step=10, tinit=1, tfinal=1),
        UPSTREAM,
        "adalora",
    ),
    State("forward hook", changed(hook("forward", "k_proj")), ATTENTION_ALONE, "k_proj: a forward hook"),
    State(
        "forward pre-hook",
        changed(hook("forward_pre", "q_proj.base_layer")),
        ATTENTION_ALONE,
        "q_proj: base layer: a forward hook",
    ),
    State("backward hook", changed(hook("backward", "v_proj")), ATTENTION_ALONE, "v_proj: a backward hook"),
    State(
        "hook on A",
        changed(hook("forward", "o_proj.lora_A.default")),
        {"qkv": "fused", "o": "upstream", "mlp": "fused"},
        "o_proj: A, B or dropout of adapter 'default': a forward hook",
    ),
    State(
        "hook on the gate",
        changed(hook("forward", "gate_proj")),
        {"qkv": "fused", "o": "fused", "mlp": "alone"},
        "gate_proj: a forward hook",
    ),
    State(
        "hook on down",
        changed(hook("forward", "down_proj")),
        {"qkv": "fused", "o": "fused", "mlp": "alone"},
        "down_proj: a forward hook",
    ),
    State(
        "hook on the activation",
        changed(hook("forward", "act_fn")),
        {"qkv": "fused", "o": "fused", "mlp": "alone"},
        "activation SiLU",
    ),
    State("hook on the block", changed(hook("forward", "mlp")), FUSED, ""),
    State("replaced forward", changed(replace_forward), ATTENTION_ALONE, "v_proj: forward was replaced"),
    State(
        "own linear class",
        changed(own_base_layer),
        ATTENTION_ALONE,
        "k_proj: its base layer is a test_states.OwnLinear",
    ),
    State(
        "parametrization",
        changed(parametrized),
        {"qkv": "fused", "o": "upstream", "mlp": "fused"},
        "ParametrizedLinear",
    ),
    State(
        "other activation",
        changed(other_activation),
        {"qkv": "fused", "o": "fused", "mlp": "alone"},
        "activation Mish: it is not fused",
    ),
    State(
        "some projections",
        lora(target_modules=["q_proj", "v_proj", "up_proj"]),
        {"qkv": "fused", "o": "upstream", "mlp": "fused"},
        "no active LoRA adapter",
    ),
    State(
        "ranks by projection", lora(rank_pattern={"q_proj": 7, "gate_proj": 1}, alpha_pattern={"v_proj": 3}), FUSED, ""
    ),
    State("rsLoRA", lora(use_rslora=True, r=5), FUSED, ""),
    State(
        "modules_to_save",
        lora(target_modules=["q_proj"], modules_to_save=["v_proj"]),
        {"qkv": "fused", "o": "upstream", "mlp": "fused"},
        "no active LoRA adapter",
    ),
    State("trained biases and base", changed(lambda m: [p.requires_grad_() for p in m.parameters()]), FUSED, ""),
    State(
        "float32 adapters over bfloat16",
        changed(lambda m: [p.base_layer.to(torch.float32) for p in projections(m, "q_proj")]),
        FUSED,
        "",
    ),
    State(
        "adapters in another dtype",
        changed(
            lambda m: [p.to(torch.float64) for p in projections(m, "q_proj.lora_A.default", "q_proj.lora_B.default")]
        ),
        ATTENTION_ALONE,
        "the projections differ in dtype",
    ),
    State(
        "mixed batch",
        changed(
            lambda model: model.add_adapter(
                "other", peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
            )
        ),
        FUSED,
        "",
        {"adapter_names": ["default", "other"]},
    ),
]


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.name)
def test_state_is_equal_and_reported(state):
    model = state.build().train()
    reference = copy.deepcopy(model)
    report = patchkit.apply(model)
    assert {row.part: row.level for row in report.rows} == state.levels
    assert any(state.reason in row.reason for row in report.rows)
    inputs = tiny_inputs("llama", model)
    if state.inputs:
        # PEFT refuses adapter names in training.
        reference.eval()
        model.eval()
    for seed in (0, 1):
        options = {"seed": seed, "backward": not state.inputs, "input_gradients": not state.inputs}
        expected, found = (run(copied, inputs, **options, **state.inputs) for copied in (reference, model))
        findings = compare_runs(expected, found)
        assert findings.passed, (findings.problems, str(findings.worst))


@pytest.mark.parametrize("use_dora", [False, True])
def test_dropout_is_identity_in_eval(use_dora):
    model = add_lora(tiny_model("llama"), lora_dropout=0.3, use_dora=use_dora).eval()
    reference = copy.deepcopy(model)
    assert patchkit.apply(model).counts == {"fused": 6}
    inputs = tiny_inputs("llama", model)
    assert compare_runs(run(reference, inputs), run(model, inputs)).passed


def test_each_change_after_apply_is_seen():
    """Nothing is cached: what the user does between two calls counts at the next."""
    model = add_lora(tiny_model("llama")).train()
    patchkit.apply(model)
    inputs = tiny_inputs("llama", model)

    def check(levels):
        assert {row.part: row.level for row in patchkit.report(model).rows} == levels
        reference = copy.deepcopy(model)
        patchkit.revert(reference)
        findings = compare_runs(*(run(copied, inputs, input_gradients=True) for copied in (reference, model)))
        assert findings.passed, (findings.problems, str(findings.worst))

    check(FUSED)
    model.merge_adapter()
    check(UPSTREAM)
    model.unmerge_adapter()
    check(FUSED)
    several_adapters(model)
    check(FUSED)
    model.set_adapter("second")
    check({"qkv": "fused", "o": "upstream", "mlp": "fused"})
    model.set_adapter("default")
    check(FUSED)
    model.delete_adapter("second")
    check(FUSED)
    handles = [
        module.register_forward_hook(lambda module, args, output: 2 * output) for module in projections(model, "q_proj")
    ]
    check(ATTENTION_ALONE)
    for handle in handles:
        handle.remove()
    check(FUSED)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    check(FUSED)
    for module in projections(model, "v_proj"):
        module.base_layer = nn.Linear(64, 32, bias=True)
    check(FUSED)


def test_merge_and_unload():
    """F25."""
    model = add_lora(tiny_model("llama"))
    reference = copy.deepcopy(model).merge_and_unload()
    patchkit.apply(model)
    merged = model.merge_and_unload()
    inputs = tiny_inputs("llama", merged)
    assert {row.level for row in patchkit.report(merged).rows if row.part != "mlp"} == {"upstream"}
    assert compare_runs(run(reference, inputs, backward=False), run(merged, inputs, backward=False)).passed


def test_a_global_hook_is_honoured():
    """F23: a global hook sees every projection being called; torch's own tracker of modules does not count as one."""
    model = add_lora(tiny_model("llama"))
    patchkit.apply(model)
    inputs, called = tiny_inputs("llama", model), []

    def record(module, args, output):
        called.append(type(module).__name__)

    with torch.nn.modules.module.register_module_forward_hook(record):
        model(**inputs)
    assert called.count("Linear") > 7 * 2
    called.clear()
    from torch.utils.flop_counter import FlopCounterMode

    original = LlamaAttention.forward
    with FlopCounterMode(display=False) as flops:
        model(**inputs)
    assert flops.get_total_flops() > 0
    assert LlamaAttention.forward is original


def test_torch_func_runs_upstream():
    """``torch.func`` transforms worked before, so they work after."""
    model = add_lora(tiny_model("llama"))
    reference = copy.deepcopy(model)
    patchkit.apply(model)
    mlp, expected = (next(m for m in copied.modules() if isinstance(m, LlamaMLP)) for copied in (model, reference))
    x = torch.randn(3, 64)

    def jacobian(module):
        return torch.func.jacrev(lambda x: module(x).sum(0))(x)

    assert torch.allclose(jacobian(mlp), jacobian(expected), rtol=1e-5, atol=1e-5)
    assert torch.allclose(torch.func.vmap(mlp)(x), expected(x), rtol=1e-5, atol=1e-5)
    tangent = torch.randn_like(x)
    found, wanted = (torch.func.jvp(module, (x,), (tangent,))[1] for module in (mlp, expected))
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_forward_mode_and_tracing_run_upstream():
    model = add_lora(tiny_model("llama")).requires_grad_(False)
    reference = copy.deepcopy(model)
    patchkit.apply(model)
    mlp, expected = (next(m for m in copied.modules() if isinstance(m, LlamaMLP)) for copied in (model, reference))
    x, tangent = torch.randn(3, 64), torch.randn(3, 64)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        found, wanted = (torch.autograd.forward_ad.unpack_dual(m(dual)).tangent for m in (mlp, expected))
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5)
    traced = torch.jit.trace(mlp, x)
    assert torch.allclose(traced(x), expected(x), rtol=1e-5, atol=1e-5)
    assert "prim::PythonOp" not in kinds(traced)
    assert "prim::PythonOp" in kinds(torch.jit.trace(fused_alone, x, check_trace=False))


def fused_alone(x):
    """A fused function without its decision, which tracing must not reach."""
    eye = torch.eye(x.shape[-1])
    precision = Precision(*[torch.float32] * 4)
    return lora_linear(x, Projection(eye, None, (Adapter(eye[:2], eye[:, :2]),)), precision)


def kinds(traced):
    """The kinds of every operation of a traced module; an autograd function is a ``prim::PythonOp``."""
    return [node.kind() for node in traced.inlined_graph.nodes()]


def test_second_derivatives():
    """``create_graph=True`` (gradient penalties, influence functions) works as before."""
    model = add_lora(tiny_model("llama"))
    reference = copy.deepcopy(model)
    patchkit.apply(model)
    x = torch.randn(3, 64, requires_grad=True)

    def penalty(copied):
        mlp = next(m for m in copied.modules() if isinstance(m, LlamaMLP))
        (gradient,) = torch.autograd.grad(mlp(x).square().sum(), x, create_graph=True)
        parameters = [p for p in mlp.parameters() if p.requires_grad]
        return torch.autograd.grad(gradient.square().sum(), [x, *parameters])

    for found, wanted in zip(penalty(model), penalty(reference), strict=True):
        assert (found - wanted).norm() <= 1e-5 * wanted.norm()


def test_wrong_device_and_shape_give_upstreams_error():
    model = add_lora(tiny_model("llama"))
    reference = copy.deepcopy(model)
    patchkit.apply(model)
    for bad in (torch.randn(2, 63), torch.randn(2, 64, dtype=torch.float64), torch.ones(2, 64, dtype=torch.long)):
        messages = []
        for copied in (reference, model):
            mlp = next(m for m in copied.modules() if isinstance(m, LlamaMLP))
            with pytest.raises(RuntimeError) as caught:
                mlp(bad)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]


def test_nan_inputs_propagate_as_upstream():
    model = add_lora(tiny_model("llama"))
    reference = copy.deepcopy(model)
    patchkit.apply(model)
    x = torch.randn(4, 64)
    x[1, 3] = torch.nan
    x[2, 5] = torch.inf
    found, wanted = (next(m for m in copied.modules() if isinstance(m, LlamaMLP))(x) for copied in (model, reference))
    assert torch.equal(found.isnan(), wanted.isnan())
