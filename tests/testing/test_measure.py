"""Costs whose exact value is known."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from patchkit.testing import add_lora, count_flops, count_ops, measure_step, saved_bytes, tiny_inputs, tiny_model

M, K, N = 3, 5, 7  # [M, K] @ [K, N]
FLOAT = 4


def linear(*, frozen):
    module = nn.Linear(K, N)
    return module.requires_grad_(not frozen)


def leaf(*shape):
    return torch.randn(*shape, requires_grad=True)


class TestSavedBytes:
    def test_a_trainable_linear_keeps_its_input(self):
        module, x = linear(frozen=False), torch.randn(M, K)
        assert saved_bytes(lambda: module(x), exclude=[module]) == M * K * FLOAT

    def test_a_frozen_linear_keeps_nothing_but_its_weight(self):
        module, x = linear(frozen=True), leaf(M, K)
        assert saved_bytes(lambda: module(x), exclude=[module]) == 0
        assert saved_bytes(lambda: module(x)) == K * N * FLOAT

    def test_inputs_can_be_excluded_too(self):
        module, x = linear(frozen=False), torch.randn(M, K)
        assert saved_bytes(lambda: module(x), exclude=[module, x]) == 0

    def test_a_storage_counts_once_and_whole(self):
        x = leaf(M, K)

        def forward():
            y = x + 1  # the sum itself keeps nothing
            return y[0] * y[1], y * y, y.T * y.T

        assert saved_bytes(forward) == M * K * FLOAT

    def test_a_gated_activation_keeps_gate_up_and_the_activation(self):
        gate, up = leaf(M, K), leaf(M, K)
        assert saved_bytes(lambda: F.silu(gate) * up) == 3 * M * K * FLOAT
        assert saved_bytes(lambda: F.silu(gate) * up, exclude=[gate, up]) == M * K * FLOAT

    def test_an_autograd_function_is_seen(self):
        class KeepsDouble(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                ctx.save_for_backward(x.double())
                return x * 2

            @staticmethod
            def backward(ctx, gradient):
                return gradient * 2

        x = leaf(M, K)
        assert saved_bytes(lambda: KeepsDouble.apply(x)) == M * K * 8

    def test_a_graph_that_is_gone_keeps_nothing(self):
        x = leaf(M, K)

        def forward():
            (x * 2).sin().sum()
            return x + 1

        assert saved_bytes(forward) == 0

    def test_dtypes(self):
        x = torch.randn(M, K, dtype=torch.bfloat16, requires_grad=True)
        assert saved_bytes(lambda: x.sin()) == M * K * 2


class TestFlops:
    PRODUCT = 2 * M * K * N

    @pytest.mark.parametrize(
        ("frozen", "input_gradient", "products"),
        [(True, False, 1), (True, True, 2), (False, False, 2), (False, True, 3)],
    )
    def test_linear(self, frozen, input_gradient, products):
        module, x = linear(frozen=frozen), torch.randn(M, K, requires_grad=input_gradient)

        def step():
            y = module(x).sum()
            if y.requires_grad:
                y.backward()

        assert count_flops(step) == products * self.PRODUCT

    @pytest.mark.parametrize(
        ("function", "flops"),
        [
            (lambda: torch.randn(M, K) @ torch.randn(K, N), 2 * M * K * N),
            (lambda: torch.randn(2, M, K) @ torch.randn(2, K, N), 2 * 2 * M * K * N),
            (lambda: torch.zeros(M, N).addmm_(torch.randn(M, K), torch.randn(K, N), alpha=2), 2 * M * K * N),
            (lambda: torch.addmm(torch.zeros(N), torch.randn(M, K), torch.randn(K, N)), 2 * M * K * N),
            (lambda: torch.zeros(2, M, N).baddbmm_(torch.randn(2, M, K), torch.randn(2, K, N)), 2 * 2 * M * K * N),
            (lambda: torch.randn(M, K) @ torch.randn(K), 2 * M * K),
            (lambda: torch.randn(K) @ torch.randn(K), 2 * K),
            (lambda: torch.einsum("bij,jk->bik", torch.randn(2, M, K), torch.randn(K, N)), 2 * 2 * M * K * N),
            (lambda: torch.randn(M, K).sin() * 2, 0),
        ],
    )
    def test_forms_of_products(self, function, flops):
        assert count_flops(function) == flops

    def test_attention(self):
        query, key, value = (torch.randn(2, 4, 6, 8, requires_grad=True) for _ in range(3))
        product = 2 * 2 * 4 * 6 * 6 * 8

        assert count_flops(lambda: F.scaled_dot_product_attention(query, key, value)) == 2 * product
        with_backward = count_flops(lambda: F.scaled_dot_product_attention(query, key, value).sum().backward())
        assert with_backward == (2 + 5) * product

    def test_no_global_module_hooks(self):
        from torch.nn.modules import module as internals

        seen = []

        def look():
            seen.extend([*internals._global_forward_hooks, *internals._global_forward_pre_hooks])

        count_flops(look)
        assert not seen


class TestOps:
    def test_views_are_no_compute(self):
        x = torch.randn(M, K)
        count = count_ops(lambda: x.view(K, M).t().unsqueeze(0))
        assert (count.ops, count.compute_ops) == (3, 0)

    def test_compute(self):
        x = torch.randn(M, K)
        count = count_ops(lambda: (x + 1).sin_().t())
        assert (count.ops, count.compute_ops) == (3, 2)

    def test_reading_a_value_is_compute_and_allocating_is_not(self):
        x = torch.randn(1)
        assert count_ops(lambda: x.item()).compute_ops == 1
        assert count_ops(lambda: torch.empty_like(x)).compute_ops == 0

    def test_backward_counts(self):
        x = leaf(M, K)
        forward = count_ops(lambda: x.sin().sum()).compute_ops
        assert forward == 2
        assert count_ops(lambda: x.sin().sum().backward()).compute_ops > forward


class TestStep:
    def test_it_is_reproducible_and_leaves_no_gradients(self):
        model = add_lora(tiny_model("llama"))
        inputs = tiny_inputs("llama", model)
        cost = measure_step(model, inputs)
        assert cost == measure_step(model, inputs)
        assert all(value > 0 for value in (cost.bytes_kept, cost.flops, cost.compute_ops))
        assert cost.ops > cost.compute_ops
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_its_parts_agree_with_the_single_counts(self):
        model = add_lora(tiny_model("llama"))
        inputs = tiny_inputs("llama", model)
        cost = measure_step(model, inputs)
        exclude = [model, *inputs.values()]
        assert cost.bytes_kept == saved_bytes(lambda: model(**inputs, use_cache=False).loss, exclude=exclude)
        assert cost.flops == count_flops(lambda: model(**inputs, use_cache=False).loss.backward())

    def test_adapters_cost_what_their_products_cost(self):
        plain = tiny_model("llama").requires_grad_(False)
        plain.get_input_embeddings().weight.requires_grad_(True)  # so that gradients flow through all layers
        lora = add_lora(tiny_model("llama"), target_modules=["down_proj"])
        lora.get_input_embeddings().weight.requires_grad_(True)
        inputs = tiny_inputs("llama", plain)
        tokens, hidden, intermediate, rank, layers = 24, 64, 112, 4, 2
        # Forward x A' B', backward dA, dB and the input gradient through both.
        expected = layers * 3 * 2 * tokens * rank * (hidden + intermediate)
        assert measure_step(lora, inputs).flops - measure_step(plain, inputs).flops == expected
