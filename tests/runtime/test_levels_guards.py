"""Each guard of a projection alone, and the one precision of several: on tensors, without a model."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from patchkit.runtime import levels
from patchkit.runtime.levels import UNFIT_VECTOR, Input, Ready, common_precision, examine
from patchkit.runtime.precision import PRECISIONS
from patchkit_kernels.lora.projection import Adapter, Precision, Projection

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
FEATURES, OUTPUTS, RANK = 4, 6, 2


class Subclass(torch.Tensor):
    """A tensor with rules of its own."""


class Stored:
    """A weight that is no tensor."""

    shape, device = (OUTPUTS, FEATURES), torch.device("cpu")

    def __init__(self, compute=None):
        self.compute = compute

    def compute_dtype(self, given):
        return self.compute or given


def ones(*shape, dtype=F32, device="cpu", cls=torch.Tensor):
    tensor = torch.ones(*shape, dtype=dtype, device=device)
    return nn.Parameter(tensor) if cls is nn.Parameter else tensor.as_subclass(cls)


def given(**changed):
    usual = Input(FEATURES, F32, torch.device("cpu"), None, "peft", 3, PRECISIONS)
    return usual._replace(**changed)


def adapter(**changed):
    return Adapter(ones(RANK, FEATURES), ones(OUTPUTS, RANK), 2.0)._replace(**changed)


def look(projection, **changed):
    """What is found of a projection, with the table of precisions and without: they say the same."""
    found, computed = (
        examine(nn.Module(), given(**changed | table), lambda module: projection) for table in ({}, {"table": {}})
    )
    assert found == computed
    return found


WEIGHTS = {
    "a parameter": (ones(OUTPUTS, FEATURES, cls=nn.Parameter), None),
    "a tensor": (ones(OUTPUTS, FEATURES), None),
    "stored": (Stored(), None),
    "sparse": (ones(OUTPUTS, FEATURES).to_sparse(), "its weight is sparse"),
    "a subclass": (ones(OUTPUTS, FEATURES, cls=Subclass), "its weight is a test_levels_guards.Subclass"),
    "other features": (ones(OUTPUTS, 3), "its weight has shape (6, 3) for 4 features (sharded, or not a matrix)"),
    "transposed": (ones(FEATURES, OUTPUTS), "its weight has shape (4, 6) for 4 features (sharded, or not a matrix)"),
    "a vector": (ones(FEATURES), "its weight has shape (4,) for 4 features (sharded, or not a matrix)"),
    "a stack": (ones(1, OUTPUTS, FEATURES), "its weight has shape (1, 6, 4) for 4 features (sharded, or not a matrix)"),
    "elsewhere": (ones(OUTPUTS, FEATURES, device="meta"), "it is on another device than its input"),
    "of integers": (
        ones(OUTPUTS, FEATURES, dtype=torch.int8),
        "its weight is torch.int8, its adapter torch.float32, its input torch.float32",
    ),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights(name):
    weight, reason = WEIGHTS[name]
    projection = Projection(weight, None, (adapter(),))
    assert look(projection) == (reason or Ready(projection, Precision(F32, F32, F32, F32)))


def test_what_cannot_be_read_says_why():
    assert look("it is odd") == "it is odd"


UNFIT_BIAS = "its bias does not fit its weight"
BIASES = {
    "none": (None, {}, None),
    "one": (ones(OUTPUTS), {}, None),
    "a parameter": (ones(OUTPUTS, cls=nn.Parameter), {}, None),
    "a subclass": (ones(OUTPUTS, cls=Subclass), {}, UNFIT_BIAS),
    "elsewhere": (ones(OUTPUTS, device="meta"), {}, UNFIT_BIAS),
    "too short": (ones(1), {}, UNFIT_BIAS),
    "a matrix": (ones(1, OUTPUTS), {}, UNFIT_BIAS),
    "narrower": (ones(OUTPUTS, dtype=BF16), {}, UNFIT_BIAS),
    "wider": (ones(OUTPUTS, dtype=F64), {}, UNFIT_BIAS),
    "narrower under autocast": (ones(OUTPUTS, dtype=BF16), {"autocast": BF16}, None),
}


@pytest.mark.parametrize("name", BIASES)
def test_biases(name):
    bias, changed, reason = BIASES[name]
    found = look(Projection(ones(OUTPUTS, FEATURES), bias, ()), **changed)
    assert found == reason if reason else isinstance(found, Ready)


def test_the_bias_of_a_stored_weight_may_have_any_dtype():
    assert isinstance(look(Projection(Stored(BF16), ones(OUTPUTS), ())), Ready)


UNFIT, NO_MATRIX = "its A and B do not fit together", "its A or B is not a matrix"
ADAPTERS = {
    "A of a parameter": (adapter(lora_a=ones(RANK, FEATURES, cls=nn.Parameter)), None),
    "B of a parameter": (adapter(lora_b=ones(OUTPUTS, RANK, cls=nn.Parameter)), None),
    "A of a subclass": (
        adapter(lora_a=ones(RANK, FEATURES, cls=Subclass)),
        "its adapter is a test_levels_guards.Subclass",
    ),
    "B of a subclass": (
        adapter(lora_b=ones(OUTPUTS, RANK, cls=Subclass)),
        "its adapter is a test_levels_guards.Subclass",
    ),
    "A elsewhere": (
        adapter(lora_a=ones(RANK, FEATURES, device="meta")),
        "its adapter is on another device than its input",
    ),
    "B elsewhere": (
        adapter(lora_b=ones(OUTPUTS, RANK, device="meta")),
        "its adapter is on another device than its input",
    ),
    "A a vector": (adapter(lora_a=ones(FEATURES)), NO_MATRIX),
    "B a vector": (adapter(lora_b=ones(OUTPUTS)), NO_MATRIX),
    "A of other features": (adapter(lora_a=ones(RANK, 3)), UNFIT),
    "B of other outputs": (adapter(lora_b=ones(5, RANK)), UNFIT),
    "another rank": (adapter(lora_b=ones(OUTPUTS, 3)), UNFIT),
    "B of another dtype": (adapter(lora_b=ones(OUTPUTS, RANK, dtype=BF16)), UNFIT),
    "magnitude": (adapter(magnitude=ones(OUTPUTS)), None),
    "magnitude of another dtype": (adapter(magnitude=ones(OUTPUTS, dtype=BF16)), None),
    "magnitude too short": (adapter(magnitude=ones(1)), UNFIT_VECTOR),
    "magnitude elsewhere": (adapter(magnitude=ones(OUTPUTS, device="meta")), UNFIT_VECTOR),
    "magnitude of a subclass": (adapter(magnitude=ones(OUTPUTS, cls=Subclass)), UNFIT_VECTOR),
    "bias": (adapter(bias=ones(OUTPUTS)), None),
    "bias too short": (adapter(bias=ones(1)), UNFIT_VECTOR),
    "bias elsewhere": (adapter(bias=ones(OUTPUTS, device="meta")), UNFIT_VECTOR),
    "bias of a subclass": (adapter(bias=ones(OUTPUTS, cls=Subclass)), UNFIT_VECTOR),
    "bias of another dtype": (adapter(bias=ones(OUTPUTS, dtype=BF16)), "the bias of its B does not have B's dtype"),
}


@pytest.mark.parametrize("others", ["alone", "first", "last"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters(name, others):
    one, reason = ADAPTERS[name]
    adapters = {"alone": (one,), "first": (one, adapter()), "last": (adapter(), one)}[others]
    projection = Projection(ones(OUTPUTS, FEATURES), None, adapters)
    assert look(projection) == (reason or Ready(projection, Precision(F32, F32, F32, F32)))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_dora_of_one_vector_is_upstreams(dims):
    lora, dora = (
        look(Projection(ones(OUTPUTS, FEATURES), None, (adapter(magnitude=magnitude),)), dims=dims)
        for magnitude in (None, ones(OUTPUTS))
    )
    assert isinstance(lora, Ready)
    assert isinstance(dora, Ready) if dims > 1 else dora == "DoRA makes a matrix of a single vector"


def test_under_autocast_the_bias_of_b_may_have_another_dtype():
    one = adapter(bias=ones(OUTPUTS, dtype=BF16))
    assert isinstance(look(Projection(ones(OUTPUTS, FEATURES), None, (one,)), autocast=BF16), Ready)


def of_dtype(dtype):
    return Adapter(ones(RANK, FEATURES, dtype=dtype), ones(OUTPUTS, RANK, dtype=dtype))


@pytest.mark.parametrize("dtypes", itertools.product([BF16, F32], repeat=3), ids=str)
def test_adapters_have_one_dtype_which_need_not_be_the_weights(dtypes):
    adapters = tuple(map(of_dtype, dtypes))
    found = look(Projection(ones(OUTPUTS, FEATURES, dtype=BF16), None, adapters), dtype=BF16)
    if len(set(dtypes)) == 1:
        assert found.precision == Precision(BF16, dtypes[0], BF16, dtypes[0])
    else:
        assert found == "its adapters differ in dtype"


@pytest.mark.parametrize("changes", [{}, {"autocast": BF16}, {"precision": "fast"}, {"autocast": F16, "precision": "fast"}], ids=str)  # fmt: skip
@pytest.mark.parametrize("stored", [False, True])
def test_the_precision_is_that_of_what_is_given(stored, changes):
    """The columns of the key in their order: input, autocast, weight, adapter, stored, option."""
    weight = Stored(F16) if stored else ones(OUTPUTS, FEATURES, dtype=F16)
    found = look(Projection(weight, None, (of_dtype(F32),)), dtype=F16, **changes)
    key = (F16, changes.get("autocast"), F16, F32, stored, changes.get("precision", "peft"))
    expected = PRECISIONS[key]
    assert (found if isinstance(expected, str) else found.precision) == expected


@pytest.mark.parametrize("casts", [False, True])
@pytest.mark.parametrize("autocast", [None, BF16])
@pytest.mark.parametrize("dropouts", [(0.0, 0.0), (0.1, 0.0), (0.0, 0.1)])
def test_dropout_is_drawn_for_the_input_that_the_library_gives_it(dropouts, autocast, casts, monkeypatch):
    monkeypatch.setattr(levels, "casts_input", lambda cls: casts)
    adapters = tuple(of_dtype(F32)._replace(dropout=dropout) for dropout in dropouts)
    found = look(Projection(ones(OUTPUTS, FEATURES, dtype=BF16), None, adapters), dtype=BF16, autocast=autocast)
    drawn = F32 if casts or autocast is None or not any(dropouts) else BF16
    assert found.precision.drawn == drawn


# ---- several that are computed together


def ready(precision, *, with_adapter):
    return Ready(Projection(ones(OUTPUTS, FEATURES), None, (adapter(),) * with_adapter), precision)


USUAL = Precision(BF16, F32, BF16, F32)
OF_PLAIN = Precision(BF16, BF16, BF16, BF16)
"""Of a projection without adapter beside that one: its products and outputs are the same."""

PLAIN, ADAPTED = ready(OF_PLAIN, with_adapter=False), ready(USUAL, with_adapter=True)
COMMON = {
    "of one": ((ADAPTED,), USUAL),
    "of one without adapter": ((PLAIN,), OF_PLAIN),
    "of several": ((ADAPTED,) * 3, USUAL),
    "equal and not the same": ((ADAPTED, ready(Precision(*USUAL), with_adapter=True)), USUAL),
    "the adapters', last": ((PLAIN, PLAIN, ADAPTED), USUAL),
    "the adapters', first": ((ADAPTED, PLAIN, PLAIN), USUAL),
    "the adapters', between": ((PLAIN, ADAPTED, PLAIN), USUAL),
    "of several without adapter": ((PLAIN, ready(USUAL, with_adapter=False)), OF_PLAIN),
    "other adapters": ((ADAPTED, ready(OF_PLAIN, with_adapter=True)), None),
    "other adapters beside a plain one": ((ADAPTED, PLAIN, ready(OF_PLAIN, with_adapter=True)), None),
    "dropout that is drawn for another dtype": (
        (ADAPTED, ready(USUAL._replace(drawn=BF16), with_adapter=True)),
        None,
    ),
    "other products": ((ADAPTED, ready(OF_PLAIN._replace(base=F32), with_adapter=False)), None),
    "other outputs": ((ready(OF_PLAIN._replace(output=F32), with_adapter=False), ADAPTED), None),
    "other products without any adapter": ((PLAIN, ready(Precision(F32, F32, F32, F32), with_adapter=False)), None),
}


@pytest.mark.parametrize("name", COMMON)
def test_the_precision_of_several(name):
    readings, expected = COMMON[name]
    assert common_precision(readings) == (expected or "the projections differ in dtype")


@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_that_cannot_be_read_says_why_for_all(place):
    readings = [PLAIN, ADAPTED]
    readings.insert(place, "it is odd")
    assert common_precision(readings) == "it is odd"
