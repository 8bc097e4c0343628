"""Every contender computes PEFT's gradients: to rounding where that is what it promises, and in float64 in any case."""

from __future__ import annotations

import pytest
import torch

from patchkit.testing.contenders import cell as cells
from patchkit.testing.contenders.cell import PRECISIONS, Cell, Precision
from patchkit.testing.contenders.kinds import CONTENDERS
from patchkit.testing.contenders.not_run import NotRunError

pytestmark = pytest.mark.filterwarnings("ignore")

OTHERS = [name for name, one in CONTENDERS.items() if one.adapters and name not in ("peft", "liger")]
EAGER = [name for name in OTHERS if not CONTENDERS[name].compiled]
FLOAT64 = Precision(torch.float64, torch.float64)


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setattr(cells, "PRECISIONS", {**PRECISIONS, "float64": FLOAT64})


def gradients(name, cell):
    torch.compiler.reset()
    run, levels = CONTENDERS[name].build(cell, backend="aot_eager")
    run.clear()
    torch.manual_seed(0)  # of dropout
    run.backward(run.forward())
    return run.gradients(), levels


def largest_error(found, expected):
    assert found.keys() == expected.keys()
    assert all(one.norm() > 0 for one in expected.values())
    return max(float((found[name] - one).norm() / one.norm()) for name, one in expected.items())


SETTINGS = {
    "blocks": {},
    "layers": {"layers": 2},
    "checkpointed": {"checkpointing": True},
    "checkpointed layers": {"layers": 2, "checkpointing": True},
    "dropout": {"dropout": 0.2},
    "dora": {"dora": True},
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", EAGER)
def test_in_float64_all_are_equal(name, setting):
    cell = Cell("host", 12, 4, "float64", **SETTINGS[setting])
    if name == "cast" and setting in ("dropout", "dora"):
        with pytest.raises(NotRunError, match="without dropout and DoRA"):
            gradients(name, cell)
        return
    found, levels = gradients(name, cell)
    assert largest_error(found, gradients("peft", cell)[0]) < 1e-11
    assert levels.keys() <= {"fused"}


@pytest.mark.parametrize("name", [name for name in OTHERS if CONTENDERS[name].compiled])
def test_compiled_too(name):
    cell = Cell("host", 12, 4, "float64")
    assert largest_error(gradients(name, cell)[0], gradients("peft", cell)[0]) < 1e-11


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", EAGER)
def test_each_keeps_what_it_states(name, precision):
    cell = Cell("host", 12, 4, precision)
    found, _ = gradients(name, cell)
    expected, _ = gradients("peft", cell)
    assert largest_error(found, expected) <= CONTENDERS[name].tolerance[precision]
    assert {name: one.dtype for name, one in found.items()} == {name: one.dtype for name, one in expected.items()}


@pytest.mark.parametrize("shape", ["gemma-3-1b", "qwen-0.5b"])
def test_other_activations_and_biases(shape, monkeypatch):
    """GeGLU and biases of q, k and v: the reference has both."""
    config_class, sizes = cells.SHAPES[shape]
    small = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    }
    monkeypatch.setattr(cells, "SHAPES", {**cells.SHAPES, shape: (config_class, {**sizes, **small})})
    cell = Cell(shape, 12, 4, "float64", layers=1)
    for name in ("cast", "patchkit"):
        assert largest_error(gradients(name, cell)[0], gradients("peft", cell)[0]) < 1e-11


def test_bases_in_four_bits():
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is Linux only")
    cell = Cell("host", 12, 4, "float32", nf4=True)
    expected, _ = gradients("peft", cell)
    for name in ("cast", "patchkit"):
        found, levels = gradients(name, cell)
        assert largest_error(found, expected) < 1e-5
        assert levels.keys() <= {"fused"}


def test_the_floor_has_no_adapters():
    run, levels = CONTENDERS["floor"].build(Cell("host", 12, 4, "float32"))
    run.clear()
    run.backward(run.forward())
    assert run.gradients().keys() == {"input 0", "input 1", "input 2"}
    assert levels == {}


def test_the_reference_is_really_cast():
    """In A its gradients of A and B are those of adapters in bfloat16, which PEFT's are not."""
    casts, peft = (gradients(name, Cell("host", 12, 4, "A"))[0] for name in ("cast", "peft"))
    rounded = {name: one.bfloat16().to(one.dtype) for name, one in casts.items()}
    assert all(torch.equal(rounded[name], one) for name, one in casts.items())
    assert not all(torch.equal(one.bfloat16().to(one.dtype), one) for one in peft.values())


def test_a_release_without_the_model_is_a_reason(monkeypatch):
    monkeypatch.setattr(cells, "SHAPES", {**cells.SHAPES, "new": ("NewConfig", {"hidden_size": 64})})
    with pytest.raises(NotRunError, match=r"transformers [\d.]+\S* has no NewConfig"):
        CONTENDERS["peft"].build(Cell("new", 8, 4, "float32"))


def test_liger_says_why_it_does_not_run():
    with pytest.raises(NotRunError, match=r"its kernels want a GPU|liger-kernel is not installed"):
        CONTENDERS["liger"].build(Cell("host", 12, 4, "float32"))
