"""What becomes of a model type, part by part: each state, each count and each sentence, with models that are given."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

import patchkit
from patchkit.check.numeric import adapting, arbiter, model_types
from patchkit.check.numeric.adapting import Adapted
from patchkit.check.numeric.arbiter import Verdict
from patchkit.check.numeric.model_types import TypeOutcome, counted_layers, described_classes, examine
from patchkit.errors import NoModelError, TinyModelError
from patchkit.planning.row import Row
from patchkit.reporting import Report
from patchkit.testing.parity import Findings, Measurement, Run

pytestmark = pytest.mark.filterwarnings("ignore::patchkit.errors.PatchkitWarning")


def row(level, part="mlp", name="layers.0", cls="LlamaMLP", reason="", expected=False):
    return Row(name, cls, part, level, reason, expected)


# ---- building


@pytest.fixture
def built(monkeypatch):
    """Makes ``examine`` build this, or fail so; what it is given and what comes of it can be changed."""

    def build(model=None, *, linear=True, adapts=None, compared=None):
        def tiny_model_from(model_type, *, head):
            assert (model_type, head) == ("acme", "causal")
            if isinstance(model, Exception):
                raise model
            return nn.Linear(2, 2) if model is None else model

        monkeypatch.setattr("patchkit.testing.tiny_model_from", tiny_model_from)
        monkeypatch.setattr("patchkit.testing.tiny_inputs_for", lambda one: {"x": 1})
        monkeypatch.setattr(adapting, "has_linear_layers", lambda model_type, head: linear)

        def adapted(one, inputs):
            if isinstance(adapts, Exception):
                raise adapts
            return adapts or Adapted(one, Run({}))

        monkeypatch.setattr(adapting, "adapted", adapted)
        if compared is not None:
            monkeypatch.setattr(model_types, "_compared", lambda reference, inputs, expected, options: dict(compared))
        return examine("acme", "causal")

    return build


NO_LINEAR = "it has no linear layer that PEFT adapts"
MANY = Run({}, without_gradient=frozenset({"a.lora_A.x", "a.lora_B.x", "b.lora_A.x", "norm.weight"}))
EXAMINED = {
    "no class takes it": ({"model": NoModelError("no\n class")}, ("no model", "no class", "")),
    "it cannot be built": ({"model": TinyModelError("no tiny X:\n it wants\tmore")}, ("not built", "it wants more", "")),
    "it need not be built": ({"model": TinyModelError("no"), "linear": False}, ("nothing to patch", NO_LINEAR, "")),
    "without a linear layer": ({"model": nn.ReLU()}, ("nothing to patch", NO_LINEAR, "ReLU")),
    "plain PEFT fails": (
        {"adapts": ValueError("not\n so")}, ("not run", "plain PEFT fails: ValueError: not so", "Linear"),
    ),
    "verified": ({"compared": {"state": "verified", "reason": ""}}, ("verified", "", "Linear")),
    "verified, in part": (
        {"adapts": Adapted(nn.Identity(), MANY, "without\n x"), "compared": {"state": "verified", "reason": "some"}},
        ("verified", "without x; its inputs do not reach 2 of its adapted layers; some", "Linear"),
    ),
    "of another class": (
        {"compared": {"state": "different", "model_class": "Other", "reason": "no"}}, ("different", "no", "Linear"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", EXAMINED)
def test_each_state(case, built):
    given, expected = EXAMINED[case]
    found = built(**given)
    assert (found.state, found.reason, found.model_class) == expected
    assert (found.model_type, found.head) == ("acme", "causal")


def test_how_long_it_took(built, monkeypatch):
    clock = iter([100.0, 102.348])
    monkeypatch.setattr(model_types, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert built(model=NoModelError("no")).seconds == 2.35


# ---- comparing


def findings(passed, *problems, error=1.234e-6):
    measured = (Measurement("logits", error, 1e-5, passed),) if error is not None else ()
    return Findings(measured, problems)


@pytest.fixture
def compared(monkeypatch):
    def compare(result, *, verdict=None, counts=(1, 1, 0), rows=()):
        reference, expected, found = nn.Linear(2, 2), Run({}), Run({})
        asked = []
        monkeypatch.setattr(
            patchkit,
            "apply",
            lambda model, **options: asked.append((model, options)) or Report("Linear", rows or (row("fused"),)),
        )
        monkeypatch.setattr(
            model_types,
            "counted_layers",
            lambda model, report: dict(zip(("whole", "alone", "left"), counts, strict=True)),
        )
        monkeypatch.setattr(model_types, "described_classes", lambda model, report: ("m.A: MLP(): mlp",))
        monkeypatch.setattr(model_types, "_run", lambda model, inputs: found if model is asked[0][0] else None)
        monkeypatch.setattr(
            patchkit.testing, "compare_runs", lambda one, other: result if (one, other) == (expected, found) else None
        )

        def arbitrate(model, inputs, one, other, options):
            assert (model, one, other, options) == (reference, expected, found, {"memory": "tiled"})
            return verdict

        monkeypatch.setattr(arbiter, "arbitrate", arbitrate)
        told = model_types._compared(reference, {"x": 1}, expected, {"memory": "tiled"})
        assert [options for _, options in asked] == [{"trust": "always", "memory": "tiled"}]
        assert asked[0][0] is not reference
        return told

    return compare


FIELDS = {"whole": 1, "alone": 1, "left": 0, "blocks": ("LlamaMLP mlp",), "classes": ("m.A: MLP(): mlp",)}
COMPARED = {
    "equal": ((findings(True),), {"state": "verified", "judged_in": "float32", "error": 1.2e-6, "reason": ""}),
    "a problem before anything was measured": (
        (findings(False, "a shape", error=None),),
        {"state": "different", "judged_in": "float32", "error": 0.0, "reason": "a shape"},
    ),
    "a problem": ((findings(False, "dtype", "more"),), {"state": "different", "judged_in": "float32", "error": 1.2e-6, "reason": "dtype"}),
    "float64 says equal": (
        (findings(False), Verdict("equal", 3e-12)), {"state": "verified", "judged_in": "float64", "error": 3e-12, "reason": ""},
    ),
    "float64 says different": (
        (findings(False), Verdict("different", 3e-6, "so")),
        {"state": "different", "judged_in": "float64", "error": 3e-6, "reason": "so"},
    ),
    "float64 cannot say": (
        (findings(False), Verdict("undecided", 0.0, "no")), {"state": "not run", "judged_in": "float64", "error": 0.0, "reason": "no"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", COMPARED)
def test_each_comparison(case, compared):
    (result, *verdict), expected = COMPARED[case]
    assert compared(result, verdict=verdict[0] if verdict else None) == FIELDS | expected


@pytest.mark.parametrize(("counts", "state"), [
    ((0, 0, 0), "nothing to patch"), ((0, 0, 3), "upstream"), ((1, 0, 3), "verified"), ((0, 1, 3), "verified"),
])  # fmt: skip
def test_how_much_runs_fused(counts, state, compared):
    told = compared(findings(True), counts=counts)
    assert told["state"] == state
    assert told == {"state": state, "reason": NO_LINEAR} if not any(counts) else told["whole"] == counts[0]


def test_which_blocks_and_which_reasons(compared):
    """Each once; layers by themselves are no blocks, and what belongs upstream needs no reason."""
    rows = (
        row("fused", "o", cls="B"), row("fused", cls="A"), row("fused", cls="A", name="layers.1"),
        row("upstream", "linear", cls="C.fc", reason="a hook"), row("upstream", "linear", cls="C.fc", reason="a hook"),
        row("upstream", "experts", cls="D", reason="merged"), row("upstream", cls="E", reason="no adapter", expected=True),
        row("alone", cls="F", reason="a variant"),
    )  # fmt: skip
    told = compared(findings(True), rows=rows)
    assert told["blocks"] == ("A mlp", "B o", "E mlp", "F mlp")
    assert told["reason"] == "C.fc: a hook; D: merged"


@pytest.mark.parametrize(("names", "said"), [
    ((), ""), (("norm.weight",), ""), (("a.lora_A.x", "a.lora_B.x"), "its inputs do not reach 1 of its adapted layers"),
    (("a.lora_A.x", "b.lora_embedding_A.x"), "its inputs do not reach 2 of its adapted layers"),
])  # fmt: skip
def test_what_inputs_do_not_reach(names, said):
    assert model_types._unreached(Run({}, without_gradient=frozenset(names))) == said


# ---- counting


def patched(targets=("gate_proj", "up_proj", "down_proj", "fc", "table"), **options):
    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=8, intermediate_size=12, num_attention_heads=2)
    model = nn.ModuleDict({"mlp": LlamaMLP(config), "fc": nn.Linear(8, 8), "table": nn.Embedding(5, 8)})
    model = inject_adapter_in_model(LoraConfig(r=2, target_modules=list(targets)), model)
    return model, patchkit.apply(model, trust="always", **options)


def hooked(model):
    model.mlp.gate_proj.register_forward_hook(lambda *_: None)
    return model, patchkit.report(model)


@pytest.mark.parametrize(("made", "expected"), [
    (lambda: patched(), (3, 1, 0)),
    (lambda: patched(linear=False), (3, 0, 1)),
    (lambda: patched(mlp=False), (0, 1, 3)),
    (lambda: patched(mlp=False, linear=False), (0, 0, 4)),
    (lambda: patched(["fc"]), (0, 1, 0)),
    (lambda: patched(["table"]), (0, 0, 0)),
    (lambda: hooked(patched()[0]), (0, 4, 0)),
], ids=range(7))  # fmt: skip
def test_where_each_layer_runs(made, expected):
    model, report = made()
    assert tuple(counted_layers(model, report).values()) == expected
    assert list(counted_layers(model, report)) == ["whole", "alone", "left"]
    assert TypeOutcome("a", "b", "verified", whole=1, alone=20, left=300).layers == 321


def test_which_classes_run_fused():
    model, report = patched()
    said = "transformers.models.llama.modeling_llama.LlamaMLP: GatedMLP(): mlp"
    assert described_classes(model, report) == (said,)
    assert described_classes(*patched(mlp=False)) == ()
    assert described_classes(*hooked(patched()[0])) == ()
    two = nn.ModuleList([model, patched()[0]])
    assert described_classes(two, patchkit.report(two)) == (said,)
