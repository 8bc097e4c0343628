"""QLoRA: bitsandbytes' 4-bit and 8-bit layers on the CPU, loaded as users load them, against PEFT."""

from __future__ import annotations

import copy
import functools
import logging

import peft
import pytest
import torch
import transformers
from packaging.version import Version
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import patchkit
from patchkit.runtime.choice import NO_GRADIENT
from patchkit.testing import add_lora, compare_runs, fused_calls, run, tiny_inputs, tiny_model
from patchkit.testing.checks.precision import ErrorTally

bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is Linux only")
pytestmark = [
    pytest.mark.skipif(
        Version(transformers.__version__) < Version("4.56"),
        reason="from_pretrained takes dtype= since transformers 4.56, and before 4.51 puts no bitsandbytes on a CPU",
    ),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("quiet"),
]

F32 = torch.float32
INT8 = {"load_in_8bit": True}


def four_bits(quant_type, double, compute=F32):
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": quant_type,
        "bnb_4bit_use_double_quant": double,
        "bnb_4bit_compute_dtype": compute,
    }


STORED = {
    "nf4": four_bits("nf4", False),
    "nf4 double": four_bits("nf4", True),
    "fp4": four_bits("fp4", False),
    "fp4 double": four_bits("fp4", True),
    "int8": INT8,
}
PACKED_IN_EVAL = "in eval mode bitsandbytes packs its 4-bit weight"
PACKED = "bitsandbytes packed its 4-bit weight for inference"


@pytest.fixture
def quiet():
    """bitsandbytes logs a warning for every product of eight bits."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of tiny models: of an architecture, or with rows in multiples of 32."""

    @functools.cache
    def folder(name):
        path = tmp_path_factory.mktemp(name)
        # bitsandbytes packs for inference in blocks of 32 rows.
        model = tiny_model("llama", intermediate_size=128) if name == "wide" else tiny_model(name)
        model.save_pretrained(path)
        return path

    return folder


def load(saved, stored, *, name="llama", dtype=F32, prepare=False, **lora):
    model = AutoModelForCausalLM.from_pretrained(
        saved(name), quantization_config=BitsAndBytesConfig(**stored), dtype=dtype, device_map="cpu"
    )
    if prepare:
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return add_lora(model, **lora)


def same(reference, model, name="llama", seeds=(0, 1), **options):
    inputs = tiny_inputs(name, model)
    for seed in seeds:
        expected, found = (
            run(copied, inputs, seed=seed, input_gradients=True, **options) for copied in (reference, model)
        )
        findings = compare_runs(expected, found)
        assert findings.passed, (findings.problems, str(findings.worst))


OPTIONS = [
    {},
    {"lora_dropout": 0.3},
    {"use_dora": True},
    {"use_dora": True, "lora_dropout": 0.3},
    {"target_modules": ["q_proj", "v_proj", "up_proj"]},
    {"lora_bias": True, "use_rslora": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("stored", STORED)
def test_quantised_equals_peft(saved, stored, options):
    if stored == "int8" and options.get("use_dora"):
        pytest.skip("PEFT 0.21 itself fails at the second step of DoRA over 8 bits on a CPU; see the next test")
    model = load(saved, STORED[stored], **options).train()
    reference = copy.deepcopy(model)
    report = patchkit.apply(model)
    assert not [row for row in report.rows if row.level != "fused" and not row.expected], str(report)
    same(reference, model)


@pytest.mark.parametrize("stored", ["nf4", "int8"])
def test_a_layer_of_which_nothing_is_trained(saved, stored):
    """Its MLP has no adapter, its input no gradient, and its weights cannot have any."""
    # In training: in evaluation bitsandbytes packs weights on some CPUs, which it cannot do with sizes as small as these.
    model = load(saved, STORED[stored], target_modules=["q_proj"], layers_to_transform=[1]).train()
    reference = copy.deepcopy(model)
    patchkit.apply(model)
    inputs = tiny_inputs("llama", model)
    assert compare_runs(run(reference, inputs), run(model, inputs)).passed
    (row,) = [row for row in patchkit.report(model).rows if row.name.endswith("layers.0.mlp")]
    assert row.reason == NO_GRADIENT


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_dora_over_8_bits_in_its_first_step(saved, dropout):
    model = load(saved, INT8, use_dora=True, lora_dropout=dropout).train()
    reference = copy.deepcopy(model)
    assert patchkit.apply(model).counts == {"fused": 6}
    same(reference, model, seeds=(0,))


@pytest.mark.parametrize("stored", ["nf4", "int8"])
def test_biases_of_the_base_layers(saved, stored):
    model = load(saved, STORED[stored], name="qwen2", bias="all").train()
    reference = copy.deepcopy(model)
    assert patchkit.apply(model).counts == {"fused": 6}
    same(reference, model, "qwen2")


@pytest.mark.parametrize("stored", ["nf4", "fp4 double", "int8"])
def test_eval(saved, stored):
    """On some CPUs bitsandbytes stores a 4-bit weight anew in eval mode, which training cannot read: upstream runs."""
    model = load(saved, STORED[stored], name="wide").eval()
    reference = copy.deepcopy(model)
    report = patchkit.apply(model)
    packs = stored != "int8" and getattr(bnb.nn.Linear4bit(8, 8), "support_avx512bf16_for_cpu", False)
    assert report.counts == ({"upstream": 6} if packs else {"fused": 6})
    assert not packs or all(PACKED_IN_EVAL in row.reason for row in report.rows)
    inputs = tiny_inputs("llama", model)
    with torch.no_grad():
        expected, found = (run(copied, inputs, backward=False) for copied in (reference, model))
    assert compare_runs(expected, found).passed
    trained = patchkit.report(model.train())  # what was packed stays packed
    assert trained.counts == report.counts
    assert not packs or all(PACKED in row.reason for row in trained.rows)


@pytest.mark.parametrize("stored", ["nf4", "int8"])
def test_disabled_merged_and_second_adapters(saved, stored):
    model = load(saved, STORED[stored]).train()
    reference = copy.deepcopy(model)
    patchkit.apply(model)
    for copied in (reference, model):
        copied.base_model.disable_adapter_layers()
    same(reference, model, seeds=(0,))
    for copied in (reference, model):
        copied.base_model.enable_adapter_layers()
    same(reference, model, seeds=(0,))


def dequantised(model):
    """The same function in float64, with ordinary layers that hold what bitsandbytes dequantises to."""
    exact = copy.deepcopy(model)
    for wrapper in exact.modules():
        base = getattr(wrapper, "base_layer", None)
        if isinstance(base, bnb.nn.Linear4bit):
            weight = bnb.functional.dequantize_4bit(base.weight.data, base.weight.quant_state)
        elif isinstance(base, bnb.nn.Linear8bitLt):
            weight = bnb.functional.int8_vectorwise_dequant(base.weight.data, base.weight.SCB)
        else:
            continue
        wrapper.base_layer = torch.nn.Linear(base.in_features, base.out_features, bias=False)
        wrapper.base_layer.weight.data = weight.double()
        wrapper.base_layer.requires_grad_(False)
    return exact.to(torch.float64)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("stored", ["nf4", "int8"])
def test_prepared_for_training(saved, stored, autocast):
    """``prepare_model_for_kbit_training`` leaves norms in float32, so that inputs are wider than the products.

    The error against float64 is at most 1.1 times PEFT's own.
    """
    setting = four_bits("nf4", True, torch.bfloat16) if stored == "nf4" else INT8
    model = load(saved, setting, dtype=torch.bfloat16, prepare=True, lora_dropout=0.1).train()
    reference, exact = copy.deepcopy(model), dequantised(model)
    assert patchkit.apply(model).counts == {"fused": 6}
    inputs, tally = tiny_inputs("llama", model), ErrorTally()
    for seed in range(4):
        truth = run(exact, inputs, seed=seed)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            expected, found = (run(copied, inputs, seed=seed) for copied in (reference, model))
        tally.add(truth, expected, found)
        assert expected.outputs["logits"].dtype == found.outputs["logits"].dtype
        assert {k: g.dtype for k, g in expected.gradients.items()} == {k: g.dtype for k, g in found.gradients.items()}
    failed = [str(measurement) for measurement in tally.measurements() if not measurement.passed]
    assert not failed


@pytest.mark.parametrize(("stored", "level"), [("nf4", "fused"), ("fp4 double", "fused"), ("int8", "upstream")])
def test_compiled_in_one_graph(saved, stored, level):
    """An 8-bit layer sets its own weight at each call: while compiling it runs upstream, which compiles."""
    torch._dynamo.reset()  # else it generalises over what the case before compiled
    model = load(saved, STORED[stored], lora_dropout=0.2).train()
    reference = copy.deepcopy(model)
    patchkit.apply(model)
    inputs = tiny_inputs("llama", model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    plain = torch.compile(reference, fullgraph=True, backend="aot_eager")
    with fused_calls() as calls:
        found = run(model, inputs, seed=1, forward=compiled)
    findings = compare_runs(run(reference, inputs, seed=1, forward=plain), found)
    assert findings.passed, (findings.problems, str(findings.worst))
    assert bool(calls) == (level == "fused")


def test_nothing_dequantised_is_kept(saved):
    """Between forward and backward a fused block keeps no matrix of its weights' size."""
    model = load(saved, STORED["nf4"]).train()
    patchkit.apply(model)
    inputs = tiny_inputs("llama", model)
    sizes = {(m.out_features, m.in_features) for n, m in model.named_modules() if n.endswith("base_layer")}
    trained = {p.data_ptr() for p in model.parameters()}
    kept = []
    layer = model.base_model.model.model.layers[0].mlp
    x = torch.randn(3, inputs["input_ids"].shape[1], layer.gate_proj.in_features, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = layer(x)
    dense = [t for t in kept if tuple(t.shape) in sizes and t.data_ptr() not in trained]
    assert not dense
    assert torch.autograd.grad(y.sum(), x)[0].isfinite().all()
