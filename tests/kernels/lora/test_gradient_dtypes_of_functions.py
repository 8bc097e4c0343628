"""Each gradient has the dtype of what it is of when the backward returns it, and each output its own.

Autograd would convert it in silence, from whatever dtype it was rounded to before.
"""

from __future__ import annotations

import pytest
import torch
from embedding_cases import IDS
from embedding_cases import make as make_table
from projection_cases import Extra, make

from patchkit_kernels.lora.cross_entropy import Form, lora_cross_entropy
from patchkit_kernels.lora.embedding import lora_embedding
from patchkit_kernels.lora.gated_mlp import lora_gated_mlp
from patchkit_kernels.lora.linear import lora_projections
from patchkit_kernels.lora.mlp import lora_mlp
from patchkit_kernels.lora.projection import Precision

F32, BF16 = torch.float32, torch.bfloat16
DTYPES = {
    # of W and x, of A and B, and those in which is computed
    "adapters in float32": (BF16, F32, Precision(BF16, F32, BF16, F32)),
    "adapters in bfloat16": (F32, BF16, Precision(F32, BF16, F32, BF16)),
    "fast": (BF16, F32, Precision(BF16, BF16, BF16, F32)),
    "autocast": (F32, F32, Precision(BF16, BF16, BF16, F32)),
}
EXTRAS = {
    "lora": (Extra(),),
    "bias": (Extra(bias=True),),
    "dropout": (Extra(dropout=0.4),),
    "dora": (Extra(dora=True),),
    "dora dropout": (Extra(dora=True, bias=True, dropout=0.4),),
    "several": (Extra(), Extra(bias=True, dropout=0.4), Extra(dora=True)),
}


def layers(count, name, *, base_grad):
    base, lora, _ = DTYPES[name[0]]
    options = {"bias": True, "base_grad": base_grad, "dtype": base, "lora_dtype": lora, "extras": EXTRAS[name[1]]}
    return [make(6, 6, 2, seed=i, **options) for i in range(count)]


def given(name):
    return torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(1)).to(DTYPES[name[0]][0]).requires_grad_()


def of_one(x, name, precision, **how):
    return lora_projections(x, layers(1, name, **how), precision)


def of_several(x, name, precision, **how):
    return lora_projections(x, layers(3, name, **how), precision)


def of_a_gated_mlp(x, name, precision, **how):
    *inputs, down = layers(3, name, **how)
    return (lora_gated_mlp(x, inputs, down, "silu", precision),)


def of_an_mlp(x, name, precision, **how):
    return (lora_mlp(x, *layers(2, name, **how), "gelu_erf", precision, dropout=0.3),)


def returned(output, grads):
    """What a backward returns, beside the dtype of the leaf that each is of; what is computed itself is left out."""
    function = output.grad_fn
    with torch.no_grad():
        found = function.apply(*grads)
    wanted = [grad for grad, needed in zip(found, function.needs_input_grad, strict=True) if needed]
    nodes = [node for node, _ in function.next_functions if node is not None]
    for grad, node in zip(wanted, nodes, strict=True):
        if hasattr(node, "variable"):
            yield grad.dtype, node.variable.dtype


@pytest.mark.parametrize("base_grad", [False, True])
@pytest.mark.parametrize("extras", EXTRAS)
@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("function", [of_one, of_several, of_a_gated_mlp, of_an_mlp], ids=lambda one: one.__name__)
def test_of_functions_of_an_input(function, dtypes, extras, base_grad):
    precision = DTYPES[dtypes][2]
    outputs = function(given((dtypes, extras)), (dtypes, extras), precision, base_grad=base_grad)
    assert {y.dtype for y in outputs} == {precision.output}
    pairs = list(returned(outputs[0], [torch.ones_like(y) for y in outputs]))
    assert len(pairs) > 2
    assert all(found == expected for found, expected in pairs)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("dtypes", DTYPES)
def test_of_an_embedding(dtypes, dora):
    base, lora, precision = DTYPES[dtypes]
    table, norm = make_table((2,), dtype=base, lora_dtype=lora, dora=dora, scaled=True, train_weight=True)
    y = lora_embedding(IDS, table, precision.lora, norm)
    assert y.dtype == base
    pairs = list(returned(y, [torch.ones_like(y)]))
    assert len(pairs) == 3
    assert all(found == expected for found, expected in pairs)


@pytest.mark.parametrize("extras", EXTRAS)
@pytest.mark.parametrize("dtypes", DTYPES)
def test_of_a_loss(dtypes, extras):
    precision = DTYPES[dtypes][2]
    (made,) = layers(1, (dtypes, extras), base_grad=True)
    target = torch.randint(0, 6, (2, 3), generator=torch.Generator().manual_seed(2))
    loss = lora_cross_entropy(given((dtypes, extras)), target, made, precision, form=Form(exact=False))
    pairs = list(returned(loss, [torch.ones_like(loss)]))
    assert len(pairs) > 2
    assert all(found == expected for found, expected in pairs)
