"""The contract of PEFT's layers finds a reader that reads something wrong, and says why it proves nothing."""

from __future__ import annotations

import logging

import pytest

from patchkit.adapters import peft, peft_embedding, peft_known, peft_parameters
from patchkit.adapters.peft_sources import READERS
from patchkit.check.numeric.peft_contract import CASES, ContractCase, check_case, check_reader
from patchkit.check.numeric.reader_outcomes import ReaderOutcome

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def logs():
    yield
    logging.disable(logging.NOTSET)


def test_every_reader_has_cases():
    assert set(CASES) == set(READERS)
    assert all(case.checks[0] == "forward_backward" for cases in CASES.values() for case in cases)


@pytest.mark.parametrize("reader", ["Embedding", "ModulesToSaveWrapper"])
def test_what_passes_is_a_proof_of_the_text_that_ran(reader):
    outcome = ReaderOutcome.from_json(check_reader(reader).to_json().encode())
    assert (outcome.status, outcome.reason) == ("passed", "")
    assert outcome.proof is not None
    assert peft_known.find_reader_proof(reader, outcome.source) is not None, "the shipped one is of the same text"
    assert {name.partition(":")[0] for name in outcome.proof.checks} == {case.name for case in CASES[reader]}


def other_scaling(monkeypatch, name):
    """A reader that reads a scaling that is wrong in its sixth digit: less than float32 would show."""

    def wrong(kind):
        def make(lora_a, lora_b, scaling, *rest, **named):
            return kind(lora_a, lora_b, scaling * (1 + 1e-6), *rest, **named)

        return make

    if name == "Linear":
        quick = peft.quick
        monkeypatch.setattr(
            peft,
            "quick",
            lambda kind, values: quick(
                kind, (*values[:2], values[2] * (1 + 1e-6), *values[3:]) if kind is peft.Adapter else values
            ),
        )
    elif name == "Embedding":
        monkeypatch.setattr(peft_embedding, "EmbeddingAdapter", wrong(peft_embedding.EmbeddingAdapter))
    else:
        monkeypatch.setattr(peft_parameters, "ParameterAdapter", wrong(peft_parameters.ParameterAdapter))


@pytest.mark.parametrize("name", ["Linear", "Embedding", "ParamWrapper"])
def test_a_reader_that_reads_something_else_fails(name, monkeypatch):
    other_scaling(monkeypatch, name)
    case = CASES[name][0]
    outcome = check_case(case)
    assert outcome.status == "failed"
    assert outcome.reason.startswith("forward_backward: ")


def test_what_peft_itself_cannot_do_proves_nothing():
    outcome = check_case(ContractCase("no such option", {"no_such_option": True}))
    assert outcome.status == "inapplicable"
    assert outcome.reason.startswith("PEFT itself cannot do it: TypeError: ")


def test_what_runs_upstream_proves_nothing():
    outcome = check_case(ContractCase("VB", {"target_modules": ["q_proj"], "alora_invocation_tokens": [1]}))
    assert outcome.status == "inapplicable"
    assert outcome.reason.startswith(("it runs at upstream level: ", "PEFT itself cannot do it: "))
