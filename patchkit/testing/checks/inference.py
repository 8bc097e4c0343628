"""Generation with a key/value cache, and compilation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from patchkit.testing.checks.base import (
    Case,
    InapplicableError,
    cast_inputs,
    cast_parameters,
    check,
    require_method,
    run_upstream,
    scenario,
)
from patchkit.testing.checks.training import pad
from patchkit.testing.fused_calls import fused_calls
from patchkit.testing.parity import Findings, Inputs, Run, compare_runs, run

_NEW_TOKENS = 6
_PADDING = 3

# The joint graph is traced and run op by op: what is tested is that there is one graph, not a code generator.
_COMPILE_BACKEND = "aot_eager"


@scenario("generate", "greedy generate() with a key/value cache: tokens and logits, with and without left padding")
def generate(model: nn.Module, inputs: Inputs) -> Iterator[tuple[str, Run]]:
    """The prompt is the whole input."""
    require_method(model.eval(), "generate", "a generative model")
    prompt = {key: value for key, value in inputs.items() if key != "labels"}
    yield "generate", _generate(model, prompt)
    yield "left padding", _generate(model, pad(prompt, _PADDING))


def _generate(model: Any, prompt: Inputs) -> Run:
    generated = model.generate(
        **prompt,
        max_new_tokens=_NEW_TOKENS,
        min_new_tokens=_NEW_TOKENS,
        do_sample=False,
        use_cache=True,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return Run({"tokens": generated.sequences, "logits": torch.stack(generated.logits)})


@check(
    "compile", "torch.compile(fullgraph=True) of forward and backward, fused as without it, against upstream uncompiled"
)
def compile_fullgraph(case: Case) -> Findings:
    """Inapplicable where upstream itself does not trace as one graph."""
    inputs = cast_inputs(case.inputs, torch.float32)
    reference = run_upstream(cast_parameters(case.unpatched(), torch.float32).train(), inputs)
    candidate = case.patched(cast_parameters(case.unpatched(), torch.float32)).train()
    try:
        with fused_calls() as traced:
            found = _run_compiled(candidate, inputs)
    except Exception:
        _require_compilable(case, inputs)
        raise
    with fused_calls() as eager:  # only now: what a model keeps of an eager call may spare the compiler what it lacks
        run(candidate, inputs)
    # What is traced twice is noted twice; what is missing was left upstream for the compiler alone.
    missing = Counter(eager) - Counter(traced)
    problems = tuple(f"{name}: {count} calls are not in the graph" for name, count in missing.items())
    return compare_runs(reference, found) + Findings(problems=problems)


def _run_compiled(model: nn.Module, inputs: Inputs) -> Run:
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=_COMPILE_BACKEND)
    try:
        return run(model, inputs, forward=compiled)
    finally:
        torch._dynamo.reset()


def _require_compilable(case: Case, inputs: Inputs) -> None:
    try:
        _run_compiled(cast_parameters(case.unpatched(), torch.float32).train(), inputs)
    except Exception as error:
        first_line = str(error).strip().partition("\n")[0]
        raise InapplicableError(f"upstream does not compile: {type(error).__name__}: {first_line}") from error
