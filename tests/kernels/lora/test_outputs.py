"""What the fused functions return is what upstream's operations return: a tensor that may be used in every way."""

from __future__ import annotations

import pytest
import torch
from structures import STRUCTURES, assert_equal, backward, cotangents, train

each_structure = pytest.mark.parametrize("name", STRUCTURES)
CALLS = {
    "eager": lambda function: function,
    "compiled": lambda function: torch.compile(function, fullgraph=True, backend="aot_eager"),
}


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("call", CALLS)
@each_structure
def test_same_kind_of_tensor(name, call, grad):
    structure = STRUCTURES[name]()
    torch._dynamo.reset()
    for trained in (set(structure.tensors), set(), {next(n for n in structure.tensors if n.endswith("B0"))}):
        train(structure, trained)
        with torch.set_grad_enabled(grad):
            expected = structure.upstream()
            found = CALLS[call](structure.fused)()
        for wanted, y in zip(expected, found, strict=True):
            assert (y.requires_grad, y.is_leaf, y.grad_fn is None) == (
                wanted.requires_grad,
                wanted.is_leaf,
                wanted.grad_fn is None,
            )
            assert (y.shape, y.stride(), y.dtype) == (wanted.shape, wanted.stride(), wanted.dtype)
            assert y.is_contiguous()
            assert not y._is_view()
            assert y.untyped_storage().nbytes() == y.numel() * y.element_size()
        assert len({y.untyped_storage().data_ptr() for y in found}) == len(found)


@pytest.mark.parametrize("frozen", [False, True])
@each_structure
def test_written_with_gradients_after_no_grad(name, frozen):
    """Soft prompts, and features of images written into embeddings."""
    structure = STRUCTURES[name]()
    train(structure, set() if frozen else set(structure.tensors))
    with torch.no_grad():
        outputs = structure.fused()
    for y in outputs:
        rows = torch.randn(y.shape[-1], dtype=y.dtype, requires_grad=True)
        y[0, 0] = rows
        y.masked_scatter_(torch.ones_like(y, dtype=torch.bool).tril(), torch.randn_like(y).requires_grad_())
        y.sum().backward()
        assert rows.grad is not None


@pytest.mark.parametrize("index", [0, -1])
@pytest.mark.parametrize("call", CALLS)
@each_structure
def test_in_place_on_one_output(name, call, index):
    structure = STRUCTURES[name]()
    torch._dynamo.reset()
    train(structure, set(structure.tensors))

    def scaled(function):
        def run():
            outputs = list(function())
            outputs[index].mul_(2.0).add_(1.0)
            return outputs

        return run

    results = []
    for function in (scaled(structure.upstream), CALLS[call](scaled(structure.fused))):
        for tensor in structure.tensors.values():
            tensor.grad = None
        backward(function())
        results.append({n: tensor.grad for n, tensor in structure.tensors.items()})
    if "drop" in name or "mixed" in name or name == "all":  # inside the compiler, dropout draws other masks
        results = results if call == "eager" else [{}, {}]
    assert_equal(*results, name)


@each_structure
def test_detached_in_place(name):
    structure = STRUCTURES[name]()
    train(structure, set(structure.tensors))
    for y in structure.fused():
        assert y.detach_() is y
        assert not y.requires_grad
        y.add_(1)


@each_structure
def test_an_output_without_a_gradient_beside_one_with(name):
    """Each requires one exactly if upstream's does, and gradients flow through the others."""
    structure = STRUCTURES[name]()
    chosen = next(n for n in structure.tensors if n.endswith("B0"))
    train(structure, {chosen})
    outputs, expected = structure.fused(), structure.upstream()
    assert [y.requires_grad for y in outputs] == [y.requires_grad for y in expected]
    for y, cotangent in zip(outputs, cotangents(outputs), strict=True):
        if not y.requires_grad:
            y.mul_(2.0)
            with pytest.raises(RuntimeError, match="does not require grad"):
                y.backward(cotangent)
