"""Blocks that no architecture file names: described by their own source, proven on the spot, or left layer by layer."""

from __future__ import annotations

import copy
import importlib.util
import sys
import textwrap

import pytest
import torch
import transformers

import patchkit
from patchkit.binding import classes
from patchkit.binding.patch import patch_of
from patchkit.derivation import known
from patchkit.errors import PatchkitWarning
from patchkit.testing import add_lora, compare_runs, fused_calls, run
from patchkit.testing.tiny_models import initialise
from patchkit.trust import policy

_SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
_ENCODER = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

CONFIGS = {
    "qwen3": lambda: transformers.Qwen3Config(intermediate_size=48, num_key_value_heads=2, head_dim=12, **_SMALL),
    "phi3": lambda: transformers.Phi3Config(intermediate_size=48, num_key_value_heads=2, **_SMALL),
    "bert": lambda: transformers.BertConfig(intermediate_size=48, is_decoder=True, **_ENCODER, **_SMALL),
}
EXPECTED = {
    "qwen3": {
        ("Qwen3Attention", "qkv"): "fused",
        ("Qwen3Attention", "o"): "fused",
        ("Qwen3MLP", "mlp"): "fused",
    },
    "phi3": {
        ("Phi3MLP", "mlp"): "fused",
        ("Phi3Attention.qkv_proj", "linear"): "fused",
        ("Phi3Attention.o_proj", "linear"): "fused",
    },
    "bert": {
        ("BertSelfAttention", "qkv"): "fused",
        ("BertSelfOutput.dense", "linear"): "fused",
        ("BertIntermediate.dense", "linear"): "fused",
        ("BertOutput.dense", "linear"): "fused",
        ("BertPredictionHeadTransform.dense", "linear"): "fused",
    },
}
CALLS = {
    "qwen3": {"lora_projections": 2, "lora_linear": 2, "lora_gated_mlp": 2},
    "phi3": {"lora_gated_mlp": 2, "lora_linear": 4},
    "bert": {"lora_projections": 2, "lora_linear": 7},
}


@pytest.fixture(autouse=True)
def _own_ledger(tmp_path, monkeypatch):
    """Nothing is proven before a test but what ships."""
    monkeypatch.setenv("PATCHKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(policy, "_decided", {})


def build(name, **config):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]())
    initialise(model)
    return add_lora(model, r=4, target_modules="all-linear", **config).train()


def inputs():
    ids = torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "labels": ids.clone()}


def levels(report):
    return {(row.module_class, row.part): row.level for row in report.rows}


@pytest.mark.parametrize("trust", ["verify", "always"])
@pytest.mark.parametrize("name", CONFIGS)
def test_derived_blocks_run_fused_and_equal(name, trust):
    reference = build(name)
    model = copy.deepcopy(reference)
    report = patchkit.apply(model, trust=trust)
    assert levels(report) == EXPECTED[name]
    with fused_calls() as calls:
        model(**inputs())
    assert {call: calls.count(call) for call in calls} == CALLS[name]
    assert compare_runs(run(reference, inputs()), run(model, inputs())).passed
    assert patchkit.report(model) == report
    assert levels(patchkit.report(copy.deepcopy(model))) == EXPECTED[name]
    patchkit.revert(model)
    assert [type(module) for module in model.modules()] == [type(module) for module in reference.modules()]


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_verified_is_remembered(name, monkeypatch):
    patchkit.apply(build(name))
    monkeypatch.setattr(policy, "_decided", {})
    monkeypatch.setattr(policy, "_verify", lambda model, unknown: pytest.fail("asked again") if unknown else {})
    assert levels(patchkit.apply(build(name))) == EXPECTED[name]


def test_the_report_says_before_what_apply_would_do():
    report = patchkit.report(build("qwen3"))
    assert {row.reason for row in report.rows} == {"not patched; call patchkit.apply(model)"}
    assert set(levels(report)) == set(EXPECTED["qwen3"])


@pytest.mark.parametrize("off", ["qkv", "o", "mlp"])
def test_each_switch_works_alone(off):
    model = build("qwen3")
    report = patchkit.apply(model, trust="always", **{off: False})
    expected = {key: "upstream" if key[1] == off else level for key, level in EXPECTED["qwen3"].items()}
    assert levels(report) == expected
    assert not any(patch_of(module) for name, module in model.named_modules() if name.endswith("_proj"))


def test_without_adapters_nothing_is_derived():
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS["qwen3"]())
    with pytest.warns(PatchkitWarning, match="no layer with an adapter"):
        assert patchkit.apply(model).rows == ()


def test_what_differs_is_left_layer_by_layer(monkeypatch):
    """A description that is wrong, or a rule with a fault: the numbers decide."""
    reference = build("bert")
    real = classes._methods

    def wrong(*arguments):
        methods = real(*arguments)
        if "apply_qkv" not in methods:
            return methods

        def swapped(self, x, apply=methods["apply_qkv"]):
            q, k, v = apply(self, x)
            return q, v, k

        return methods | {"apply_qkv": swapped}

    monkeypatch.setattr(classes, "_methods", wrong)
    monkeypatch.setattr(classes, "_cache", {})
    model = copy.deepcopy(reference)
    with pytest.warns(
        PatchkitWarning, match="BertSelfAttention qkv: .*verified on the spot it is not equal to upstream"
    ):
        report = patchkit.apply(model)
    assert levels(report) == EXPECTED["bert"] | {("BertSelfAttention", "qkv"): "alone"}
    assert patchkit.report(model) == report
    assert compare_runs(run(reference, inputs()), run(model, inputs())).passed
    # The fault is real.
    patchkit.apply(model, trust="always")
    assert not compare_runs(run(reference, inputs()), run(model, inputs())).passed


def test_the_ledger_alone_leaves_them_layer_by_layer():
    model = build("qwen3")
    with pytest.warns(PatchkitWarning, match="its source is not in the ledger; trust='verify' verifies it"):
        report = patchkit.apply(model, trust="ledger")
    assert set(levels(report).values()) == {"alone"}


OWN = """
    import torch
    import torch.nn.functional as F
    from torch import nn

    class Mixer(nn.Module):
        def __init__(self, size=16):
            super().__init__()
            self.to_q, self.to_k, self.to_v = (nn.Linear(size, size) for _ in range(3))
            self.out = nn.Linear(size, size)

        def forward(self, x):
            q, k, v = self.to_q(x), self.to_k(x), self.to_v(x)
            return self.out(F.scaled_dot_product_attention(q, k, v))

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.mixer = Mixer()
            self.head = nn.Linear(16, 4)

        def forward(self, x):
            return self.head(self.mixer(x))
    """


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Loads remote code: its module has a name that no table can hold."""

    def _load(text):
        path = tmp_path / "modeling_own.py"
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        name = "transformers_modules.f00ba4.modeling_own"
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return _load


@pytest.fixture
def own(load):
    return load(OWN)


def adapted(module):
    torch.manual_seed(0)
    return add_lora(module.Own(), target_modules=["to_q", "to_k", "to_v", "out"], task_type=None, r=2).train()


def test_a_class_of_a_users_own(own):
    reference = adapted(own)
    model = copy.deepcopy(reference)
    with pytest.warns(PatchkitWarning, match="could not be verified on the spot .no transformers model is around it"):
        report = patchkit.apply(model)
    assert levels(report) == {("Mixer", "qkv"): "alone", ("Mixer", "o"): "alone"}
    x = torch.randn(2, 5, 16)
    torch.testing.assert_close(model(x), reference(x))
    report = patchkit.apply(model, trust="always")
    assert levels(report) == {("Mixer", "qkv"): "fused", ("Mixer", "o"): "fused"}
    torch.testing.assert_close(model(x), reference(x))


FUNCTIONS = """
    import torch
    import torch.nn.functional as F
    from torch import nn

    class Gated(nn.Module):
        def __init__(self, size=16, inner=20):
            super().__init__()
            self.w1, self.w3 = nn.Linear(size, inner), nn.Linear(size, inner)
            self.w2 = nn.Linear(inner, size)

        def forward(self, x):
            return self.w2(F.{gated}(self.w1(x)) * self.w3(x))

    class Plain(nn.Module):
        def __init__(self, size=16, inner=20):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(size, inner), nn.Linear(inner, size)

        def forward(self, x):
            return self.fc2({plain}(self.fc1(x)))

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.gated, self.plain = Gated(), Plain()

        def forward(self, x):
            return self.plain(self.gated(x))
    """


@pytest.mark.parametrize(
    ("gated", "plain", "levels_of_both"),
    [
        ("silu", "F.gelu", ("fused", "fused")),
        ("gelu", "torch.relu", ("fused", "fused")),
        ("mish", "F.elu", ("alone", "alone")),
    ],
)
def test_activations_that_are_functions(load, gated, plain, levels_of_both):
    """Outputs and every gradient, with adapters that contribute; one that is not fused is called between the layers."""
    module = load(FUNCTIONS.format(gated=gated, plain=plain))
    torch.manual_seed(0)
    targets = ["w1", "w2", "w3", "fc1", "fc2"]
    reference = add_lora(module.Own(), target_modules=targets, task_type=None, r=2).train()
    model = copy.deepcopy(reference)
    report = patchkit.apply(model, trust="always")
    assert levels(report) == dict(zip([("Gated", "mlp"), ("Plain", "mlp")], levels_of_both, strict=True))
    outcomes, x = [], torch.randn(3, 5, 16)
    for each in (reference, model):
        own = x.clone().requires_grad_()
        with fused_calls() as calls:
            y = each(own)
        y.square().sum().backward()
        outcomes.append([y, own.grad, *(p.grad for p in each.parameters() if p.requires_grad)])
    assert sorted(set(calls)) == (["lora_gated_mlp", "lora_mlp"] if "fused" in levels_of_both else ["lora_linear"])
    for expected, found in zip(*outcomes, strict=True):
        assert expected.abs().max() > 0
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_a_class_that_cannot_be_looked_at_has_layers_all_the_same(own, monkeypatch):
    def derive(cls):
        raise RuntimeError("not yours")

    monkeypatch.setattr(known, "derive", derive)
    report = patchkit.apply(adapted(own))
    assert {(row.part, row.level) for row in report.rows} == {("linear", "fused")}


BETWEEN = """
    import torch
    import torch.nn.functional as F
    from torch import nn

    class Dropping(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2, self.act, self.drop = nn.Linear(16, 20), nn.Linear(20, 16), nn.GELU(), nn.{dropout}

        def forward(self, x):
            return self.fc2(self.drop(self.act(self.fc1(x))))

    class Casting(nn.Module):
        def __init__(self):
            super().__init__()
            self.wi, self.wo, self.act = nn.Linear(16, 20), nn.Linear(20, 16).to(torch.{dtype}), nn.ReLU()

        def forward(self, x):
            h = self.act(self.wi(x))
            if isinstance(self.wo.weight, torch.Tensor) and h.dtype != self.wo.weight.dtype:
                h = h.to(self.wo.weight.dtype)
            return self.wo(h).to(x.dtype)

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.dropping, self.casting = Dropping(), Casting()

        def forward(self, x):
            return self.casting(self.dropping(x))
    """


@pytest.mark.parametrize(
    ("dropout", "dtype", "expected"),
    [
        ("Dropout(0.3)", "float32", {"Dropping": "", "Casting": ""}),
        (
            "AlphaDropout(0.3)",
            "float64",
            {
                "Dropping": "dropout before the down projection: its dropout is a AlphaDropout",
                "Casting": "wo: its weight is torch.float64, its input torch.float32",
            },
        ),
        (
            "Dropout(0.3, inplace=True)",
            "float32",
            {"Dropping": "dropout before the down projection: its dropout works in place", "Casting": ""},
        ),
    ],
)
def test_the_report_says_what_stands_before_the_last_projection(load, dropout, dtype, expected):
    module = load(BETWEEN.format(dropout=dropout, dtype=dtype))
    torch.manual_seed(0)
    model = add_lora(module.Own(), target_modules=["fc1", "fc2", "wi", "wo"], task_type=None, r=2).train()
    reference = copy.deepcopy(model)
    report = patchkit.apply(model, trust="always")
    assert {row.module_class: row.level for row in report.rows} == {
        name: "alone" if why else "fused" for name, why in expected.items()
    }
    assert all(expected[row.module_class] in row.reason for row in report.rows)
    x, outputs = torch.randn(3, 16), []
    for each in (reference, model):
        torch.manual_seed(1)
        outputs.append(each(x))
    torch.testing.assert_close(*outputs)


SINGLE = """
    import torch
    from torch import nn

    class Mixer(nn.Module):
        def __init__(self, size=16):
            super().__init__()
            self.to_q, self.to_k, self.to_v = (nn.Linear(size, size) for _ in range(3))
            self.noise = nn.Dropout(0.0)

        def forward(self, x):
            q = self.to_q(x)
            k = self.to_k(x)
            seen = self.noise(q)
            v = self.to_v(x)
            return seen * k.sigmoid() + v

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.mixer = Mixer()

        def forward(self, x):
            return self.mixer(x)
    """


def test_what_no_rule_takes_whole_is_no_block(load):
    """Three projections between which something may draw are called one by one: layers like any other."""
    module = load(SINGLE)
    assert not isinstance(known.derive(module.Mixer), str)
    model = add_lora(module.Own(), target_modules=["to_q", "to_k", "to_v"], task_type=None, r=2).train()
    reference = copy.deepcopy(model)
    report = patchkit.apply(model, trust="always")
    assert levels(report) == {(f"Mixer.{name}", "linear"): "fused" for name in ("to_q", "to_k", "to_v")}
    x = torch.randn(3, 16)
    torch.testing.assert_close(model(x), reference(x))
