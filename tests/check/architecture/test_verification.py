"""verify_architecture: the example plugin, a user's own model, and each fault that there can be, named."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from edited_upstream import swapping_rewriter
from installed_packages import install_package
from own_model import OWN_MODEL

from patchkit.arch.spec import MLP, Architecture, Attention, GatedMLP
from patchkit.binding import classes
from patchkit.check.architecture import verification as room
from patchkit.check.architecture.verification import NUMBERS, verification
from patchkit.check.numeric import worker
from patchkit.check.numeric.outcomes import ArchitectureOutcome
from patchkit.check.numeric.proving import versions
from patchkit.errors import ArchitectureError, ReleaseError, UnknownArchitectureError
from patchkit.testing import verify_architecture

pytest_plugins = ["example_plugin"]

QWEN3 = "transformers.models.qwen3.modeling_qwen3"
PHI3 = "transformers.models.phi3.modeling_phi3"


@pytest.fixture
def no_numbers(monkeypatch):
    """No model is run: for tests that are about source."""

    def nothing(architecture, model, inputs):
        return ArchitectureOutcome(architecture.name, versions())

    monkeypatch.setattr(room, "_numbers", nothing)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Makes a package of one file with a user's own model, edited, and its architecture."""

    def make(*edits):
        source = OWN_MODEL
        for old, new in edits:
            assert old in source
            source = source.replace(old, new)
        install_package(tmp_path, "own-net", {"own_net.py": source})
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "own_net", raising=False)
        import own_net

        blocks = (
            Attention("Attention", "to_query", "to_key", "to_value", "to_out"),
            MLP("FeedForward", "wide", "narrow", activation_function="F.gelu"),
        )
        return Architecture("own", (), "own_net", blocks), own_net.Net()

    yield make
    sys.modules.pop("own_net", None)


TOKENS = {"tokens": torch.arange(20).reshape(2, 10)}


def test_the_example_is_verified(acme):
    found = verify_architecture("acme")
    assert [(one.block, one.what) for one in found.verdicts] == [
        ("AcmeAttention", "qkv"), ("AcmeAttention", "o"), ("AcmeFeedForward", "mlp"),
        ("AcmeAttention", NUMBERS), ("AcmeFeedForward", NUMBERS),
    ]  # fmt: skip
    assert found.of("AcmeAttention", "qkv")[0].said.startswith(
        "rewritten by qkv-together (acme_models/modeling_acme.py:"
    )
    for verdict in found.of("AcmeFeedForward", NUMBERS):
        assert verdict.said.startswith("passed in AcmeForCausalLM (mlp fused): 16 of 16 checks, worst error ")
    assert str(found).startswith("architecture 'acme', acme_models 1.0: verified\n")


def test_a_users_own_model_that_is_none_of_transformers(own):
    architecture, net = own()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = verify_architecture(architecture, net, TOKENS)
    assert {one.what for one in found.verdicts} == {"qkv", "o", "mlp", NUMBERS}
    assert all("passed in Net" in one.said for one in found.verdicts if one.what == NUMBERS)
    assert net.state_dict().keys() == before.keys(), "only a copy gets adapters"
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_rewrite_that_is_wrong_is_found(own, monkeypatch):
    architecture, net = own()
    monkeypatch.setattr(classes, "rewrite", swapping_rewriter)
    monkeypatch.setattr(worker, "NUMERIC_CHECKS", ("forward_backward", "eval"))
    with pytest.raises(AssertionError, match="1 of 5 verdicts are faults") as caught:
        verify_architecture(architecture, net, TOKENS)
    lines = str(caught.value).splitlines()
    (fault,) = [index for index, line in enumerate(lines) if line.startswith("Attention numbers: failed in Net")]
    assert "gradient of" in lines[fault + 1]


# ---- what is wrong with a description


def qwen3(*blocks, **words):
    return Architecture("mine", ("qwen3",), QWEN3, blocks, **words)


WRONG = {
    # the description; the verdict that has the fault; a line of it
    "gate and up": (
        qwen3(GatedMLP("Qwen3MLP", gate="up_proj", up="gate_proj")),
        ("Qwen3MLP", "mlp"),
        "gate and up look swapped: the source gives `gate_proj` to self.act_fn, and not `up_proj`",
    ),
    "q and k, with equal numbers": (
        qwen3(Attention("Qwen3Attention", q="k_proj", k="q_proj")),
        ("Qwen3Attention", "qkv"),
        "q and k look swapped: q is said to be `k_proj`, k is said to be `q_proj`",
    ),
    "a name": (
        qwen3(Attention("Qwen3Attention", o="dense")),
        ("Qwen3Attention", "o"),
        "o: 'dense' is described, the source says 'o_proj'",
    ),
    "some of a whole": (
        qwen3(GatedMLP("Qwen3MLP", activation="activation_fn")),
        ("Qwen3MLP", "mlp"),
        "activation: 'activation_fn' is described, the source says 'act_fn'",
    ),
    "another kind": (
        qwen3(MLP("Qwen3MLP")),
        ("Qwen3MLP", "mlp"),
        "it is described as MLP, and its source reads as GatedMLP()",
    ),
    "one projection for three": (
        Architecture("mine", ("phi3",), PHI3, (Attention("Phi3Attention"),)),
        ("Phi3Attention", "qkv"),
        "`qkv_proj` is one projection for q, k and v: no rule of qkv; "
        "leave Phi3Attention out of the architecture: its layers are patched one by one",
    ),
    "a class": (
        qwen3(GatedMLP("Qwen3MPL")),
        ("Qwen3MPL", "mlp"),
        'GatedMLP("Qwen3MLP") instead of GatedMLP("Qwen3MPL") would be rewritten',
    ),
    "a module": (
        replace(qwen3(GatedMLP("Qwen3MLP")), module=f"{QWEN3}x"),
        ("Qwen3MLP", "mlp"),
        f'module="{QWEN3}" instead of module="{QWEN3}x" would be rewritten',
    ),
}


@pytest.mark.usefixtures("no_numbers")
@pytest.mark.parametrize(("architecture", "place", "said"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_with_a_description(architecture, place, said):
    found = verification(architecture)
    (verdict,) = [one for one in found.failed if (one.block, one.what) == place]
    assert said in verdict.problems
    with pytest.raises(ArchitectureError) as caught:
        found.require()
    assert f"    {said}" in str(caught.value).splitlines()


@pytest.mark.usefixtures("no_numbers")
def test_what_no_rule_takes_whole_is_no_fault_of_the_description(own):
    """Nothing that its author could write makes it whole."""
    architecture, _ = own(("F.gelu(self.wide(x))", "F.gelu(self.wide(x).clamp(max=7.0))"))
    found = verification(architecture)
    assert not [one for one in found.failed if one.what == "mlp"]
    assert "rewritten by call-alone, not whole: " in found.of("FeedForward", "mlp")[0].said


@pytest.mark.usefixtures("no_numbers")
def test_what_is_not_described_is_noted():
    """phi3 is green without its attention, and what becomes of that is said."""
    block = GatedMLP("Phi3MLP", gate_up="gate_up_proj", activation="activation_fn")
    notes = verification(Architecture("mine", ("phi3",), PHI3, (block,))).notes
    assert notes == (
        "Phi3Attention is not described: `qkv_proj` is one projection for q, k and v: no rule of qkv; "
        "its layers are patched one by one",
    )
    found = verification(qwen3(Attention("Qwen3Attention")))
    assert found.notes == ('Qwen3MLP is not described; it is taken for GatedMLP("Qwen3MLP") by its source',)


# ---- what is wrong with its model


MODELS = {
    "no such type": ({"model_types": ("qwen3x",)}, "transformers has no model type 'qwen3x'; name a class"),
    "nothing named": ({"model_types": ()}, "architecture 'mine' has no model; name a class in the architecture"),
    "no such class": ({"model": "Qwen3ForNothing"}, f"names the model {QWEN3}:Qwen3ForNothing, which cannot be imported"),
    "no such module": ({"model": "nowhere.at_all:Model"}, "nowhere.at_all:Model, which cannot be imported: ModuleNotFo"),
    "no model": ({"model": "Qwen3MLP"}, f"{QWEN3}:Qwen3MLP, which is neither a PreTrainedModel"),
    "a model without it": ({"model": "transformers.models.bert.modeling_bert:BertModel"}, "it holds none of Qwen3MLP with its projections"),
}  # fmt: skip


@pytest.mark.parametrize(("words", "said"), MODELS.values(), ids=MODELS)
def test_models_that_cannot_be_had(words, said):
    found = verification(replace(qwen3(GatedMLP("Qwen3MLP")), **words))
    assert [one.what for one in found.failed] == [NUMBERS]
    assert said in found.failed[0].problems[0]


def test_a_model_that_does_not_run(own):
    architecture, net = own()
    found = verification(architecture, net, {"token": TOKENS["tokens"]})
    assert [one.said for one in found.failed] == ["Net: not shown"]
    assert "Net does not run: TypeError: " in found.failed[0].problems[0]


def test_a_block_that_no_model_shows(own):
    architecture, _ = own()
    import own_net

    found = verification(architecture, own_net.FeedForward(32), {"x": torch.randn(2, 40, 32)})
    assert [(one.block, one.what) for one in found.failed] == [("Attention", NUMBERS)]
    assert found.failed[0].problems == ("it is rewritten, but no model showed its numbers",)


# ---- what is no verdict at all


def test_no_such_architecture():
    with pytest.raises(UnknownArchitectureError, match="did you mean llama"):
        verify_architecture("lama")


def test_a_package_that_is_not_installed():
    with pytest.raises(ReleaseError, match="acme_nowhere is not installed"):
        verify_architecture(Architecture("mine", (), "acme_nowhere.modeling", (MLP("A"),)))


def test_a_collision():
    with pytest.raises(
        ArchitectureError, match=r"'llama' describes transformers\.models\.llama\.modeling_llama\.LlamaMLP"
    ):
        verify_architecture(Architecture("mine", (), "transformers.models.llama.modeling_llama", (MLP("LlamaMLP"),)))


def test_an_architecture_of_nothing():
    with pytest.raises(ArchitectureError, match="nothing to verify: it has no blocks"):
        verify_architecture(qwen3())
