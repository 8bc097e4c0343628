"""Relative errors, runs and comparisons."""

import math

import pytest
import torch

from patchkit.testing import Findings, Run, add_lora, compare_runs, relative_error, run, tiny_inputs, tiny_model


@pytest.mark.parametrize(
    ("candidate", "reference", "error"),
    [
        ([3.0, 4.0], [3.0, 4.0], 0.0),
        ([3.0, 4.5], [3.0, 4.0], 0.1),
        ([0.0], [0.0], 0.0),
        ([1.0], [0.0], math.inf),
        ([math.nan], [1.0], math.inf),
        ([1.0], [math.nan], math.inf),
        ([1.0, 1.0], [1.0], math.inf),
        ([], [], 0.0),
    ],
)
def test_relative_error(candidate, reference, error):
    assert relative_error(torch.tensor(candidate), torch.tensor(reference)) == pytest.approx(error)


class TestCompareRuns:
    ONE = torch.tensor([1.0])

    def test_equal(self):
        assert compare_runs(Run({"loss": self.ONE}), Run({"loss": self.ONE})).passed

    def test_nothing_compared_is_no_pass(self):
        assert not Findings().passed
        assert not compare_runs(Run({}), Run({})).passed

    def test_tolerance_and_worst(self):
        reference = Run({"loss": self.ONE}, {"w": self.ONE})
        candidate = Run({"loss": self.ONE + 1e-6}, {"w": self.ONE + 1e-3})
        assert compare_runs(reference, candidate, 1e-2).passed
        findings = compare_runs(reference, candidate, 1e-4, stage="train")
        assert not findings.passed
        assert findings.worst.name == "train: gradient of w"

    def test_sets_of_gradients(self):
        reference = Run({"loss": self.ONE}, {"a": self.ONE}, frozenset({"b"}))
        problems = compare_runs(reference, Run({"loss": self.ONE}, {"c": self.ONE}, frozenset({"a"}))).problems
        assert len(problems) == 3
        assert any("gradients of a missing" in problem for problem in problems)
        assert any("gradients of c found" in problem for problem in problems)
        assert any("b is trainable on one side only" in problem for problem in problems)

    def test_dtype_and_shape(self):
        reference = Run({"loss": self.ONE})
        assert "float64" in compare_runs(reference, Run({"loss": self.ONE.double()})).problems[0]
        assert not compare_runs(reference, Run({"loss": self.ONE[None]})).passed

    def test_tokens(self):
        reference = Run({"tokens": torch.tensor([1, 2, 3])})
        assert compare_runs(reference, Run({"tokens": torch.tensor([1, 2, 3])})).passed
        assert compare_runs(reference, Run({"tokens": torch.tensor([1, 5, 3])})).worst.error == 1
        assert not compare_runs(reference, Run({"tokens": torch.tensor([1, 2])})).passed


class TestRun:
    def test_parameters_without_gradient_are_listed(self):
        model = tiny_model("llava")
        inputs = tiny_inputs("llava", model)
        found = run(model, inputs)
        assert found.without_gradient  # the last vision layer: features are taken from the one before
        assert not found.without_gradient & set(found.gradients)
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_input_gradients(self):
        model = add_lora(tiny_model("gemma3_mm"))
        inputs = tiny_inputs("gemma3_mm", model)
        found = run(model, inputs, input_gradients=True)
        assert found.gradients["inputs_embeds"].shape == (*inputs["input_ids"].shape, 64)
        assert found.gradients["pixel_values"].shape == inputs["pixel_values"].shape
        assert not inputs["pixel_values"].requires_grad

    def test_a_frozen_model_has_them_too(self):
        model = tiny_model("llama").requires_grad_(False)
        assert set(run(model, tiny_inputs("llama", model), input_gradients=True).gradients) == {"inputs_embeds"}

    def test_padding_is_left_out_of_the_logits(self):
        model = tiny_model("llama")
        inputs = tiny_inputs("llama", model, padding="left")
        assert run(model, inputs).outputs["logits"].shape == (int(inputs["attention_mask"].sum()), 128)

    def test_the_seed_fixes_dropout(self):
        model = add_lora(tiny_model("llama"), lora_dropout=0.5)
        inputs = tiny_inputs("llama", model)
        logits = [run(model, inputs, seed=seed).outputs["logits"] for seed in (0, 0, 1)]
        assert torch.equal(logits[0], logits[1])
        assert not torch.equal(logits[0], logits[2])

    def test_loss_scale(self):
        model = add_lora(tiny_model("llama"))
        inputs = tiny_inputs("llama", model)
        plain, scaled = run(model, inputs), run(model, inputs, loss_scale=4.0)
        assert torch.equal(plain.outputs["loss"], scaled.outputs["loss"])
        name = next(iter(plain.gradients))
        assert torch.equal(plain.gradients[name] * 4, scaled.gradients[name])

    def test_a_backward_needs_labels(self):
        model = tiny_model("llama")
        inputs = tiny_inputs("llama", model)
        del inputs["labels"]
        with pytest.raises(ValueError, match="labels"):
            run(model, inputs)
        assert set(run(model, inputs, backward=False).outputs) == {"logits"}
