"""What patchkit does not compute itself runs upstream's code: equal, and the report names what it met.

Every LoRA variant and every tuner of PEFT that can be built without a download, every kind of quantised layer that PEFT
wraps, and weights that are not where a plain Linear keeps them.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
import torch.nn.functional as F
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.lora import LoraLayer, variants
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

import patchkit
from patchkit.testing import TEXT_PROJECTIONS, add_lora, compare_runs, randomise_adapter, run, tiny_inputs, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::patchkit.errors.PatchkitWarning", "ignore::UserWarning")

UPSTREAM = {"qkv": "upstream", "o": "upstream", "mlp": "upstream"}


def levels(report):
    return {row.part: row.level for row in report.rows}


def assert_equal(reference, model, inputs=None, **options):
    inputs = inputs or tiny_inputs("llama", tiny_model("llama"))
    findings = compare_runs(run(reference, inputs, **options), run(model, inputs, **options))
    assert findings.passed, (findings.problems, str(findings.worst))


def assert_falls_back(build: Callable[[], nn.Module], reason: str, *, expected=UPSTREAM, **options):
    """Builds the same model twice, since some libraries' hooks do not survive a deepcopy."""
    reference, model = build().train(), build().train()
    report = patchkit.apply(model)
    assert levels(report) == expected
    for row in report.rows:
        assert row.level != "upstream" or reason in row.reason, str(report)
    assert_equal(reference, model, **options)


@torch.no_grad()
def perturb(model):
    """Moves every trained parameter away from its initial value, where an adapter computes nothing."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            generator = torch.Generator().manual_seed(len(name))
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


# LoRA variants


def saved_adapters(folder):
    """Two LoRA adapters on disk, as routers load them."""
    model = add_lora(tiny_model("llama"))
    model.add_adapter("second", peft.LoraConfig(r=4, target_modules=list(TEXT_PROJECTIONS), init_lora_weights=False))
    randomise_adapter(model, "second", seed=5)
    model.save_pretrained(folder)
    return [str(folder), str(folder / "second")]


def arrow(folder):
    paths = saved_adapters(folder)

    def build():
        config = peft.tuners.lora.ArrowConfig(top_k=2, rng_seed=3)
        return peft.tuners.lora.create_arrow_model(tiny_model("llama"), paths, config)

    return build


BLOCK_DIAGONAL = {
    "target_modules_bd_a": ["o_proj", "down_proj"],
    "target_modules_bd_b": ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"],
    "nblocks": 2,
}
# By PEFT's key of the variant. DoRA is fused, or will be, and has tests of its own.
VARIANTS = {
    ("arrow_config",): None,
    ("use_bdlora",): lambda: {"use_bdlora": peft.tuners.lora.BdLoraConfig(**BLOCK_DIAGONAL)},
    ("alora_invocation_tokens",): lambda: {"alora_invocation_tokens": [5]},
    ("velora_config",): lambda: {"velora_config": peft.tuners.lora.VeloraConfig(num_groups=2)},
    ("monteclora_config",): lambda: {"monteclora_config": peft.tuners.lora.MontecloraConfig(num_samples=2)},
    ("mica",): lambda: {"init_lora_weights": "mica"},
    ("kasa_config",): lambda: {"kasa_config": peft.tuners.lora.KasaConfig()},
}
# Before PEFT 0.20 there is no table of the variants to ask.
BEFORE_THE_TABLE = {
    ("arrow_config",): variants.ArrowLinearVariant,
    ("alora_invocation_tokens",): variants.ALoraLinearVariant,
}


def peft_variants():
    layer = LoraLinear(nn.Linear(2, 2), "default", config=peft.LoraConfig(r=1), r=1, lora_alpha=1)
    table = getattr(layer, "lora_variants", BEFORE_THE_TABLE)
    return {key: variant for key, variant in table.items() if variant and key != ("use_dora",)}


@pytest.mark.parametrize("key", peft_variants(), ids=lambda key: "+".join(key))
def test_lora_variant(key, tmp_path):
    """F8."""
    if key not in VARIANTS:
        pytest.fail(f"this release of PEFT has a variant {key} that is not in the table of this test")
    recipe = VARIANTS[key]
    build = (lambda: add_lora(tiny_model("llama"), **recipe())) if recipe else arrow(tmp_path)
    inputs = tiny_inputs("llama", tiny_model("llama"))
    inputs["input_ids"][:, 3] = 5  # what invokes the aLoRA
    options = {"inputs": inputs, "backward": key != ("arrow_config",)}  # Arrow routes, it does not train
    assert_falls_back(build, f"LoRA variant {peft_variants()[key].__name__}", **options)


# Other tuners

VIRTUAL_TOKENS = {
    "num_virtual_tokens": 3,
    "num_layers": 2,
    "token_dim": 64,
    "num_attention_heads": 2,
    "num_transformer_submodules": 1,
}
# What the tiny model needs beyond the projections as targets.
OPTIONS = {
    "ADALORA": {"init_r": 4, "target_r": 2, "total_step": 10, "tinit": 1, "tfinal": 1},
    "ADAPTION_PROMPT": {"adapter_len": 3, "adapter_layers": 2, "target_modules": None},
    "C3A": {"block_size": 16},
    "CARTRIDGE": VIRTUAL_TOKENS,
    "IA3": {"feedforward_modules": ["down_proj"]},
    "P_TUNING": VIRTUAL_TOKENS | {"encoder_hidden_size": 64},
    "POLY": {"n_tasks": 1},
    "PREFIX_TUNING": VIRTUAL_TOKENS,
    "PROMPT_TUNING": VIRTUAL_TOKENS,
    "ROAD": {"group_size": 16},
    "SHADOW": {"target_modules": None},
    "SHIRA": {"r": 2},
    "TRAINABLE_TOKENS": {"target_modules": ["embed_tokens"], "token_indices": [1, 2]},
    "VBLORA": {"vector_length": 16, "num_vectors": 8, "topk": 2},
    "WAVEFT": {"n_frequency": 64},
}
# Tuners that leave the projections alone: there is nothing to fall back from.
NO_PROJECTIONS = {
    "ADAPTION_PROMPT",
    "CARTRIDGE",
    "P_TUNING",
    "PREFIX_TUNING",
    "PROMPT_TUNING",
    "SHADOW",
    "TRAINABLE_TOKENS",
}
# LoRA is what is fused, X-LoRA needs saved adapters and has a test below; CPT and multitask prompt tuning add tokens like
# the other prompt methods, with inputs of their own.
TUNERS = sorted(
    kind.value
    for kind in PEFT_TYPE_TO_TUNER_MAPPING
    if kind.value not in {"LORA", "XLORA", "CPT", "MULTITASK_PROMPT_TUNING"}
)


def tuner(name):
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(name)]
    config = {"task_type": "CAUSAL_LM"}
    if "target_modules" in config_class.__dataclass_fields__:
        config["target_modules"] = list(TEXT_PROJECTIONS)
    config |= OPTIONS.get(name, {})

    def build():
        torch.manual_seed(0)
        options = {key: value for key, value in config.items() if value is not None}
        return perturb(peft.get_peft_model(tiny_model("llama"), config_class(**options)))

    return build


def foreign_layers(model):
    return [
        module for module in model.modules() if isinstance(module, BaseTunerLayer) and type(module) is not LoraLinear
    ]


@pytest.mark.parametrize("name", TUNERS)
def test_tuner(name):
    if name == "ADAMSS":
        pytest.importorskip("sklearn", reason="AdaMSS clusters with scikit-learn")
    build = tuner(name)
    reference, model = build().train(), build().train()
    report = patchkit.apply(model)
    if name not in NO_PROJECTIONS:
        assert levels(report) == UPSTREAM
        (package,) = {type(layer).__module__.rpartition(".")[0] for layer in foreign_layers(model)}
        assert all(f"it is a {package}." in row.reason for row in report.rows), str(report)
    inputs = tiny_inputs("llama", tiny_model("llama"))
    if name == "POLY":
        inputs["task_ids"] = torch.zeros(len(inputs["input_ids"]), dtype=torch.long)
    assert_equal(reference, model, inputs)


def test_x_lora(tmp_path):
    """X-LoRA sets a ``forward`` on each LoRA layer."""
    paths = saved_adapters(tmp_path)

    def build():
        torch.manual_seed(0)
        adapters = {str(index): path for index, path in enumerate(paths)}
        config = peft.XLoraConfig(task_type="CAUSAL_LM", hidden_size=64, adapters=adapters)
        model = tiny_model("llama")
        model.config.use_cache = False
        return perturb(peft.get_peft_model(model, config))

    assert_falls_back(build, "forward was replaced on the instance")


@pytest.mark.parametrize("names", [["default", "__base__"], ["__base__", "other"], ["other", "default"]])
def test_mixed_batch(names):
    """``adapter_names=`` in eval: PEFT tells each layer through a hook."""
    model = add_lora(tiny_model("llama")).eval()
    model.add_adapter("other", peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    randomise_adapter(model, "other", seed=7)
    inputs = tiny_inputs("llama", model)
    expected = run(model, inputs, backward=False, adapter_names=names)
    patchkit.apply(model)
    assert compare_runs(expected, run(model, inputs, backward=False, adapter_names=names)).passed


# Quantised layers. Stand-ins compute what such a layer computes: a product with a weight that is unpacked at each call.


class StandIn(nn.Module):
    """An 8-bit weight with one scale per row, and every attribute by which PEFT finds the sizes of a layer."""

    def __init__(self, linear):
        super().__init__()
        self.out_features, self.in_features = linear.weight.shape
        self.infeatures, self.outfeatures = self.in_features, self.out_features
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("qweight", (linear.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self, x):
        return F.linear(x, self.qweight.to(x.dtype) * self.scale)


def peft_class(file, name):
    """A class of PEFT's LoRA for a package that is not installed: its file is run with a stand-in for the package."""
    module = importlib.import_module(f"peft.tuners.lora.{file}")
    if hasattr(module, name):
        return getattr(module, name)
    base = {"eetq": "EetqLinear", "hqq.core.quantize": "HQQLinear"}
    with pytest.MonkeyPatch.context() as patch:
        for package, layer in base.items():
            patch.setitem(sys.modules, package, types.SimpleNamespace(**{layer: StandIn}))
        for check in ("is_eetq_available", "is_hqq_available", "is_inc_available"):
            patch.setattr(f"peft.import_utils.{check}", lambda: True)
        spec = importlib.util.spec_from_file_location(f"peft.tuners.lora.{file}_beside_stand_in", module.__file__)
        again = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(again)
    return getattr(again, name)


def quantised(file, name, base, **config):
    def build():
        wrapper, stand_in = peft_class(file, name), type(base, (StandIn,), {})
        torch.manual_seed(0)
        model = add_lora(tiny_model("llama"), **config)
        for parent in list(model.modules()):
            for child_name, child in list(parent._modules.items()):
                if isinstance(child, LoraLayer):
                    options = peft.LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, **config)
                    layer = wrapper(stand_in(child.base_layer), "default", config=options, r=4, lora_alpha=8)
                    setattr(parent, child_name, layer)
        randomise_adapter(model)
        return model

    return build


QUANTISED = [
    ("gptq", "GPTQLoraLinear", "QuantLinear", {}),
    ("gptq", "GPTQLoraLinear", "QuantLinear", {"use_qalora": True, "qalora_group_size": 2}),
    ("awq", "AwqLoraLinear", "WQLinear_GEMM", {}),
    ("aqlm", "AqlmLoraLinear", "QuantizedLinear", {}),
    ("eetq", "EetqLoraLinear", "EetqLinear", {}),
    ("hqq", "HqqLoraLinear", "HQQLinear", {}),
    ("inc", "IncLoraLinear", "PatchedLinear", {}),
    ("te", "TeLinear", "Linear", {}),
]


@pytest.mark.parametrize(("file", "name", "base", "config"), QUANTISED, ids=lambda value: str(value or "plain"))
def test_quantised_layer(file, name, base, config):
    assert_falls_back(quantised(file, name, base, **config), name)


@pytest.mark.parametrize("config", ["Int8WeightOnlyConfig", "Float8WeightOnlyConfig"])
def test_torchao(config):
    quantization = pytest.importorskip("torchao.quantization")

    def build():
        model = tiny_model("llama")
        is_projection = lambda module, name: name.endswith(TEXT_PROJECTIONS)  # noqa: E731
        quantization.quantize_(model, getattr(quantization, config)(), filter_fn=is_projection)
        return add_lora(model)

    assert_falls_back(build, "peft.tuners.lora.torchao.TorchaoLoraLinear")


class FP8Linear(nn.Linear):
    """As transformers' fine-grained FP8: a Linear whose weight is float8, with a scale."""

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype) * self.scale)


def test_fp8_weight():
    """F10."""

    def build():
        model = add_lora(tiny_model("llama"))
        for module in model.modules():
            if isinstance(module, LoraLinear):
                base = module.base_layer
                base.__class__, base.scale = FP8Linear, base.weight.detach().abs().max() / 448
                base.weight = nn.Parameter((base.weight / base.scale).to(torch.float8_e4m3fn), requires_grad=False)
        return model

    assert_falls_back(build, "its base layer is a test_fallbacks.FP8Linear")


# Weights that are elsewhere


def projections(model):
    return [module for module in model.modules() if isinstance(module, LoraLinear)]


def shard(module):
    """As DeepSpeed ZeRO-3: nothing is left of a weight but its shape."""
    for parameter in module.parameters():
        parameter.full, parameter.ds_shape = parameter.data, parameter.shape
        parameter.data = torch.empty(0)


def gather(module):
    for parameter in module.parameters():
        parameter.data = parameter.full


def release(module):
    for parameter in module.parameters():
        parameter.data = torch.empty(0)


def zero_3(granularity):
    """Weights are gathered before a module's forward and backward and released after it."""

    def build():
        model = add_lora(tiny_model("llama"))
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) if granularity == "layers" else name.endswith(("self_attn", "mlp")):
                shard(module)
                module.register_forward_pre_hook(lambda module, args: gather(module))
                module.register_forward_hook(lambda module, args, output: release(module))
                module.register_full_backward_pre_hook(lambda module, gradient: gather(module))
        return model

    return build


def test_zero_3_by_layer():
    """F23: the hooks stand on the layers inside a projection."""
    assert_falls_back(zero_3("layers"), "base layer: a forward hook is registered on it")


def test_zero_3_by_block():
    """Hooks on the whole block: its weights are there while it runs, though not while the report is made."""
    assert_falls_back(zero_3("blocks"), "(sharded, or not a matrix)")


@pytest.fixture
def mesh():
    from torch.distributed.device_mesh import init_device_mesh

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,), mesh_dim_names=("tp",))
    torch.distributed.destroy_process_group()


def test_tensor_parallel(mesh):
    """torch's own: DTensor weights, and hooks that make DTensors of inputs."""
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    def build():
        model = add_lora(tiny_model("llama"))
        for name, module in model.named_modules():
            if name.endswith(".base_layer"):
                rowwise = "o_proj" in name or "down_proj" in name
                parallelize_module(module, mesh, RowwiseParallel() if rowwise else ColwiseParallel())
        return model

    assert_falls_back(build, "base layer: a forward hook is registered on it")


def test_dtensor_weight(mesh):
    """Not gathered: upstream refuses to mix it with a plain input, so the error must be upstream's."""
    from torch.distributed.tensor import Replicate, distribute_tensor

    errors = []
    for patch in (False, True):
        model = add_lora(tiny_model("llama"))
        for module in projections(model):
            weight = distribute_tensor(module.base_layer.weight.data, mesh, [Replicate()])
            module.base_layer.weight = nn.Parameter(weight, requires_grad=False)
        if patch:
            report = patchkit.apply(model)
            assert levels(report) == UPSTREAM
            assert all("its weight is a torch.distributed.tensor.DTensor" in row.reason for row in report.rows)
        with pytest.raises(RuntimeError) as caught:
            model(**tiny_inputs("llama", tiny_model("llama")))
        errors.append(str(caught.value))
    assert errors[0] == errors[1]
    assert "DTensor" in errors[0]


@pytest.mark.distributed
def test_transformers_tensor_parallel(tmp_path):
    """``tp_plan="auto"`` on two processes."""
    tiny_model("llama").save_pretrained(tmp_path)
    worker = Path(__file__).with_name("tensor_parallel_worker.py")
    processes = [
        subprocess.Popen([sys.executable, worker, str(rank), tmp_path], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(errors)
