"""Beside other libraries that patch the same model: equal in either order, and the report says who owns what.

Each row of the table is one such library, or one way of using it. The reference is a model that only it has patched.
"""

from __future__ import annotations

import copy
import functools
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP

import patchkit
from patchkit.errors import PatchkitWarning, RevertError
from patchkit.testing import add_lora, compare_runs, identical_runs, run, tiny_inputs, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::patchkit.errors.PatchkitWarning", "ignore::FutureWarning")

FUSED = {"qkv": "fused", "o": "fused", "mlp": "fused"}
NO_MLP = FUSED | {"mlp": "upstream"}


class Patcher(NamedTuple):
    """One way in which a library patches a model.

    Attributes:
        name: of the row.
        patch: does it, in place.
        first: the levels where the library came first.
        last: the levels where patchkit came first.
        said: words of the report, in both orders where a level is upstream.
        revert: whether ``revert`` works with the library's patch on top of patchkit's.
        backward: whether the library supports training.
    """

    name: str
    patch: Callable[[nn.Module], object]
    first: dict[str, str]
    last: dict[str, str]
    said: str = ""
    revert: bool = True
    backward: bool = True


def modules(model, kind):
    return [module for module in model.modules() if isinstance(module, kind)]


def projections(model, *names):
    return [module for name, module in model.named_modules() if name.endswith(names)]


def causal_lm(model):
    return model.base_model.model


# Liger-Kernel. Its Triton kernels need a GPU, so their launchers compute in torch here; all the rest is Liger's.


class LigerCalls(list):
    """The names of the Liger functions that ran."""


@pytest.fixture
def liger(monkeypatch):
    pytest.importorskip("liger_kernel", reason="liger-kernel is Linux only")
    from liger_kernel.ops import swiglu
    from liger_kernel.transformers import rms_norm, rope

    calls = LigerCalls()

    def swiglu_forward(gate, up, multiplier):
        calls.append("swiglu")
        return gate, up, F.silu(gate * multiplier) * up

    def swiglu_backward(gate, up, gradient, multiplier):
        with torch.enable_grad():
            inputs = [gate.detach().requires_grad_(), up.detach().requires_grad_()]
            return torch.autograd.grad(F.silu(inputs[0] * multiplier) * inputs[1], inputs, gradient)

    def liger_rope(name, q, k, cos, sin, position_ids, unsqueeze_dim):
        calls.append(name)
        return upstream_rope(q, k, cos, sin, unsqueeze_dim)

    class Norm:
        @staticmethod
        def apply(x, weight, eps, offset, *options):
            calls.append("rms_norm")
            return F.rms_norm(x, weight.shape, weight + offset, eps)

    # Liger replaces these globally; monkeypatch puts them back.
    upstream_rope = modeling_llama.apply_rotary_pos_emb
    for name in ("apply_rotary_pos_emb", "LlamaRMSNorm", "LlamaMLP"):
        monkeypatch.setattr(modeling_llama, name, getattr(modeling_llama, name))
    monkeypatch.setattr(swiglu, "swiglu_forward", swiglu_forward)
    monkeypatch.setattr(swiglu, "swiglu_backward", swiglu_backward)
    monkeypatch.setattr(rope, "dispatch", liger_rope)
    monkeypatch.setattr(rms_norm, "LigerRMSNormFunction", Norm)
    return calls


def apply_liger(model, **options):
    from liger_kernel.transformers.monkey_patch import apply_liger_kernel_to_llama

    apply_liger_kernel_to_llama(cross_entropy=False, fused_linear_cross_entropy=False, model=model, **options)


def liger_on_instance(model):
    apply_liger(causal_lm(model))


def liger_without_mlp(model):
    apply_liger(causal_lm(model), swiglu=False)


# kernels (Hugging Face): layers of upstream whose forward is replaced on the instance.


class FastMLP(nn.Module):
    """A kernel layer: stateless, bound to upstream's module."""

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x) * 1.0)


class LocalKernel:
    """What ``kernels`` takes for a repository: something that loads a layer."""

    def load(self):
        return FastMLP


def kernelize(model, *, registered="TRAINING", mode="TRAINING"):
    kernels = pytest.importorskip("kernels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlamaMLP, "kernel_layer_name", "LlamaMLP", raising=False)
        mapping = {"LlamaMLP": {"cpu": {kernels.Mode[registered]: LocalKernel()}}} if registered else {}
        with kernels.use_kernel_mapping(mapping, inherit_mapping=False):
            kernels.kernelize(model, mode=kernels.Mode[mode], device="cpu")


# accelerate


def accelerate_hooks(model, kind=LlamaMLP):
    from accelerate.hooks import ModelHook, add_hook_to_module

    for module in modules(model, kind):
        add_hook_to_module(module, ModelHook())


def dispatch(model):
    from accelerate import dispatch_model

    dispatch_model(model, device_map={"": "cpu"}, force_hooks=True)


def offload(model):
    from accelerate import cpu_offload

    cpu_offload(model, execution_device="cpu")


# Others


def wrap(model):
    """A wrapper that keeps the old ``forward`` for itself."""
    for module in modules(model, LlamaMLP):
        module.forward = functools.partial(lambda old, x: 1.5 * old(x), module.forward)


def bind_method(model):
    def forward(self, x):
        return 1.5 * self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))

    for module in modules(model, LlamaMLP):
        module.forward = types.MethodType(forward, module)


def compile_in_place(*names):
    def patch(model):
        for module in projections(model, *names):
            module.compile(backend="eager")

    return patch


def compile_and_replace(*names):
    def patch(model):
        for parent in list(model.modules()):
            for name in set(names) & set(parent._modules):
                setattr(parent, name, torch.compile(getattr(parent, name), backend="eager"))

    return patch


def weight_norm(model):
    for module in projections(model, "q_proj.base_layer", "gate_proj.lora_A.default"):
        nn.utils.parametrizations.weight_norm(module)


MLP_OWNED = FUSED | {"mlp": "alone"}  # its owner calls projections, which run fused where they stand
ONE_CALLED = {"qkv": "alone", "o": "fused", "mlp": "alone"}
ALL_CALLED = {"qkv": "upstream", "o": "upstream", "mlp": "upstream"}
LIGER = "replaced on the instance by liger_kernel.transformers.swiglu.LigerSwiGLUMLP.forward, which owns the block"

PATCHERS = [
    Patcher("Liger on the model", liger_on_instance, MLP_OWNED, NO_MLP, LIGER),
    Patcher("Liger without its MLP", liger_without_mlp, FUSED, FUSED),
    Patcher("kernelize", kernelize, MLP_OWNED, NO_MLP, "test_ownership.FastMLP.forward, which owns the block"),
    Patcher("kernelize without a kernel", functools.partial(kernelize, registered=None), FUSED, FUSED),
    Patcher("accelerate on MLPs", accelerate_hooks, FUSED, FUSED),
    Patcher("accelerate on attention", functools.partial(accelerate_hooks, kind=LlamaAttention), FUSED, FUSED),
    Patcher("dispatch_model", dispatch, ALL_CALLED, ALL_CALLED, "forward was replaced on the instance"),
    Patcher("cpu_offload", offload, ALL_CALLED, ALL_CALLED, "forward was replaced on the instance", backward=False),
    Patcher("a wrapper", wrap, MLP_OWNED, NO_MLP, "test_ownership.wrap.<locals>.<lambda>, which", revert=False),
    Patcher("a bound method", bind_method, MLP_OWNED, NO_MLP, "bind_method.<locals>.forward, which owns the block"),
    Patcher("compiled MLP", compile_in_place("mlp"), FUSED, FUSED),
    Patcher("compiled MLP, replaced", compile_and_replace("mlp"), FUSED, FUSED),
    Patcher(
        "compiled projection",
        compile_in_place("q_proj"),
        FUSED | {"qkv": "alone"},
        FUSED | {"qkv": "alone"},
        "q_proj: its call was replaced on the instance, as module.compile() does",
    ),
    Patcher(
        "compiled projection, replaced",
        compile_and_replace("q_proj"),
        FUSED | {"qkv": "alone", "linear": "fused"},  # the layer inside the compiled module is a layer like others
        FUSED | {"qkv": "alone", "linear": "upstream"},
        "q_proj: it is a torch._dynamo.eval_frame.OptimizedModule",
    ),
    Patcher("parametrization", weight_norm, ONE_CALLED, ONE_CALLED, "ParametrizedLinear"),
]


def levels(report):
    return {row.part: row.level for row in report.rows}


def assert_equal(reference, model, backward=True):
    inputs = tiny_inputs("llama", tiny_model("llama"))  # on the CPU, wherever the weights are
    findings = compare_runs(run(reference, inputs, backward=backward), run(model, inputs, backward=backward))
    assert findings.passed, (findings.problems, str(findings.worst))


def patched_calls(model):
    """How many MLPs run patchkit's code in one forward: a level that is only promised would not show."""
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        for cls in {type(module) for module in modules(model, LlamaMLP) if hasattr(module, "apply_mlp")}:

            def counted(self, x, apply_mlp=cls.apply_mlp):
                calls.append(self)
                return apply_mlp(self, x)

            patch.setattr(cls, "apply_mlp", counted)
        with torch.no_grad():
            model(**tiny_inputs("llama", tiny_model("llama")))
    return len(calls)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


@pytest.mark.parametrize("patcher", PATCHERS, ids=lambda patcher: patcher.name)
@pytest.mark.parametrize("order", ["first", "last"])
def test_equal_in_either_order(patcher, order, request):
    if "Liger" in patcher.name:
        request.getfixturevalue("liger")
    original = add_lora(tiny_model("llama")).train()
    reference, model = copy.deepcopy(original), copy.deepcopy(original)
    patcher.patch(reference)
    steps = [patcher.patch, patchkit.apply]
    for step in steps if order == "first" else reversed(steps):
        step(model)
    report = patchkit.report(model)
    assert levels(report) == getattr(patcher, order)
    # If every level is fused the words are empty: nobody else owns anything.
    assert any(patcher.said in row.reason for row in report.rows)
    assert_equal(reference, model, patcher.backward)
    owned = any("owns the block" in row.reason for row in report.rows)
    around = order == "last" and not patcher.revert  # whoever wraps a forward that it does not show
    if "compiled" not in patcher.name:
        assert patched_calls(model) == (0 if owned and not around else 2)
    if around:
        with pytest.raises(RevertError, match="may call the patched one"):
            patchkit.revert(model)
    else:
        patchkit.revert(model)
        assert not any(type(module).forward.__code__.co_filename.startswith("<patchkit") for module in blocks(model))
    assert_equal(reference, model, patcher.backward)


def blocks(model):
    return modules(model, (LlamaMLP, LlamaAttention))


@pytest.mark.parametrize(
    ("patch", "ran"),
    [(liger_on_instance, {"swiglu", "rope", "rms_norm"}), (liger_without_mlp, {"rope", "rms_norm"})],
    ids=["all", "without its MLP"],
)
def test_the_owner_is_the_one_that_runs(liger, patch, ran):
    """The rows about Liger would also be equal if its functions never ran."""
    model = add_lora(tiny_model("llama"))
    patchkit.apply(model)
    patch(model)
    model(**tiny_inputs("llama", model))
    assert set(liger) == ran


def test_liger_before_the_model_is_made(liger):
    """Liger's class stands where upstream's would; a model that exists already is not changed by Liger, nor by us."""
    before = add_lora(tiny_model("llama"))
    patchkit.apply(before)
    apply_liger(None)
    assert levels(patchkit.report(before)) == FUSED
    model = add_lora(tiny_model("llama")).train()
    reference = copy.deepcopy(model)
    with pytest.warns(PatchkitWarning, match=r"LigerSwiGLUMLP stands in place of LlamaMLP .* call Liger-Kernel with"):
        report = patchkit.apply(model)
    assert levels(report) == MLP_OWNED
    assert {row.module_class for row in report.rows if row.part == "mlp"} == {"LigerSwiGLUMLP"}
    assert report == patchkit.report(model)
    liger.clear()
    assert_equal(reference, model)
    assert set(liger) == {"swiglu", "rope", "rms_norm"}


def test_switching_the_mlp_off_leaves_it_to_liger_without_a_warning(liger, recwarn):
    model = add_lora(tiny_model("llama"))
    liger_on_instance(model)
    assert levels(patchkit.apply(model, mlp=False)) == NO_MLP
    assert not [warning for warning in recwarn if issubclass(warning.category, PatchkitWarning)]


class SameMLP(LlamaMLP):
    """The same function in other words."""

    def forward(self, x):
        gate = self.act_fn(self.gate_proj(x))
        return self.down_proj(gate * self.up_proj(x))


class ClampedMLP(LlamaMLP):
    """Another function under the same names."""

    def forward(self, x):
        return self.down_proj((self.act_fn(self.gate_proj(x)) * self.up_proj(x)).clamp(-1, 1))


class UnrelatedMLP(nn.Module):
    """Not a subclass of upstream's."""

    def __init__(self, config):
        super().__init__()
        for name in ("gate_proj", "up_proj"):
            setattr(self, name, nn.Linear(config.hidden_size, config.intermediate_size, bias=False))
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


@pytest.mark.parametrize(
    ("replacement", "expected", "said"),
    [
        (SameMLP, FUSED, ""),
        (ClampedMLP, FUSED | {"mlp": "alone"}, "clamp"),
        (UnrelatedMLP, MLP_OWNED, "a test_ownership.UnrelatedMLP stands in place of LlamaMLP and owns the block"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_transformers_patch_mapping(replacement, expected, said):
    """``register_patch_mapping`` replaces classes while a model is made; what is there decides, not its name."""
    monkey_patching = pytest.importorskip("transformers.monkey_patching", reason="since transformers 5.3")
    config = tiny_model("llama").config
    monkey_patching.register_patch_mapping({"LlamaMLP": replacement})
    try:
        model = add_lora(AutoModelForCausalLM.from_config(config))
    finally:
        monkey_patching.clear_patch_mapping()
    assert len(modules(model, replacement)) == 2
    reference = copy.deepcopy(model)
    report = patchkit.apply(model)
    assert levels(report) == expected
    assert any(said in row.reason for row in report.rows), str(report)
    assert_equal(reference, model)
    patchkit.revert(model)
    assert identical_runs(*(run(copied, tiny_inputs("llama", model)) for copied in (reference, model)))


def test_a_kernel_for_one_mode_only():
    """``use_kernels=True`` kernelizes anew at each change of mode: our forward comes back with the mode it had."""
    model = add_lora(tiny_model("llama")).train()
    reference = copy.deepcopy(model)
    patchkit.apply(model)
    for mode, expected in (("INFERENCE", NO_MLP), ("TRAINING", FUSED), ("INFERENCE", NO_MLP)):
        kernelize(model, registered="INFERENCE", mode=mode)
        kernelize(reference, registered="INFERENCE", mode=mode)
        assert levels(patchkit.report(model)) == expected
        assert_equal(reference, model)
    assert patchkit.revert(model) == 4


@pytest.mark.parametrize(
    ("steps", "calls"),
    [
        (("hook", "apply", "unhook", "revert"), (0, 2, 2, 0)),
        (("apply", "hook", "unhook", "revert"), (2, 2, 2, 0)),
        (("apply", "hook", "revert", "unhook"), (2, 2, 0, 0)),
        (("hook", "apply", "revert", "unhook"), (0, 2, 0, 0)),
        (("hook", "unhook", "apply", "revert"), (0, 0, 2, 0)),
    ],
    ids=lambda value: "-".join(map(str, value)),
)
def test_hooks_come_and_go(steps, calls):
    """accelerate's hooks keep the bound forward; it follows the class in whichever order they come and go."""
    from accelerate.hooks import remove_hook_from_submodules

    does = {
        "hook": accelerate_hooks,
        "unhook": remove_hook_from_submodules,
        "apply": patchkit.apply,
        "revert": patchkit.revert,
    }
    model = add_lora(tiny_model("llama")).train()
    reference = copy.deepcopy(model)
    before = [type(module) for module in model.modules()]
    for step, expected in zip(steps, calls, strict=True):
        does[step](model)
        assert patched_calls(model) == expected
        assert_equal(reference, model)
    assert [type(module) for module in model.modules()] == before


def test_a_class_replaced_after_apply(monkeypatch):
    """``forward`` of the upstream class itself: it runs from the next call on, and is gone when it is gone."""
    model = add_lora(tiny_model("llama")).train()
    reference = copy.deepcopy(model)
    before = levels(patchkit.apply(model))

    def fast_forward(self, x):
        return 1.5 * self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))

    monkeypatch.setattr(LlamaMLP, "forward", fast_forward)
    for expected in (NO_MLP, MLP_OWNED):
        report = patchkit.report(model)
        assert levels(report) == expected
        assert all("replaced by test_ownership." in row.reason for row in report.rows if row.part == "mlp")
        assert_equal(reference, model)
        patchkit.apply(model)  # the block is left to its owner for good, its layers run where they stand
    monkeypatch.undo()
    patchkit.apply(model)
    assert levels(patchkit.report(model)) == before
    assert_equal(reference, model)


def test_use_kernels():
    """``model.set_use_kernels(True)``, as ``from_pretrained(use_kernels=True)`` calls it, through changes of mode."""
    pytest.importorskip("kernels")
    worker = Path(__file__).with_name("use_kernels_worker.py")
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, worker], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
