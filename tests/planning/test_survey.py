"""What one look at a model shows: which modules are blocks, which are layers, where they stand, and whose they are."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.pixtral.modeling_pixtral import PixtralMLP, PixtralVisionConfig

import patchkit
from patchkit.arch.discovery import find_blocks
from patchkit.planning import survey as looking
from patchkit.planning.survey import NOT_CALLED, Candidate, Place, survey


def adapted(model, targets, **config):
    return inject_adapter_in_model(LoraConfig(r=2, target_modules=targets, **config), model)


def llama_mlp():
    return LlamaMLP(LlamaConfig(hidden_size=8, intermediate_size=12, num_attention_heads=2))


def pixtral_mlp():
    return PixtralMLP(PixtralVisionConfig(hidden_size=8, intermediate_size=12))


class Mixer(nn.Module):
    """Its source says that it is an attention block."""

    def __init__(self):
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        q, k, v = self.to_q(x), self.to_k(x), self.to_v(x)
        return q * k * v


class OwnMLP(nn.Module):
    """It has the projections of a block of llama, and a source that is none."""

    def __init__(self):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        return self.down_proj(self.gate_proj(x) - self.up_proj(2 * x))


class LessMLP(OwnMLP):
    """It lacks one of them."""

    def __init__(self):
        super().__init__()
        del self.up_proj


def told(model):
    """Every block with whether it is derived, and every layer with its part and place."""
    found = survey(model)
    blocks = [(one.name, one.derived) for one in found.blocks]
    return blocks, [(one.name, *one.parts, one.place) for one in found.layers]


MLP_LAYERS = [(f"{name}_proj", "linear", f"LlamaMLP.{name}_proj") for name in ("gate", "up", "down")]


def under(prefix, layers):
    return [(f"{prefix}.{name}", part, place) for name, part, place in layers]


class TestLayers:
    def test_where_they_stand(self):
        """Containers hold nothing: the module that owns them does; a container at the top is its own owner."""

        class Holder(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc, self.fc1 = nn.Linear(8, 8), nn.Linear(8, 8)
                self.steps = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
                self.named = nn.ModuleDict({"a": nn.ModuleList([nn.Linear(8, 8)])})

        expected = [
            (name, "linear", f"Holder.{name}") for name in ("fc", "fc1", "steps.0", "steps.2", "named.a.0")
        ]  # fmt: skip
        targets = ["fc", "fc1", "steps.0", "steps.2", "a.0"]
        assert told(adapted(Holder(), targets)) == ([], expected)
        inside = adapted(nn.Sequential(nn.Identity(), Holder()), targets)
        assert told(inside) == ([], under("1", expected))
        assert told(adapted(nn.Sequential(nn.ReLU(), nn.Linear(8, 8)), ["1"])) == (
            [],
            [("1", "linear", "Sequential.1")],
        )

    def test_a_container_of_ones_own_class_is_a_holder(self):
        class Steps(nn.Sequential):
            pass

        model = adapted(nn.ModuleDict({"body": Steps(nn.Linear(8, 8))}), ["0"])
        assert told(model) == ([], [("body.0", "linear", "Steps.0")])

    def test_a_model_that_is_one_layer(self):
        """What stands inside it, and what is called like the inside of another, is its own concern."""
        whole = adapted(nn.Sequential(nn.Linear(8, 8)), ["0"])[0]
        assert told(whole) == ([], [("", "linear", "Linear")])

    def test_what_stands_inside_an_adapted_layer_is_its_own_concern(self):
        model = adapted(nn.ModuleDict({"fc": nn.Linear(8, 8), "fc1": nn.Linear(8, 8), "z": nn.Linear(8, 8)}), ["fc"])
        model.fc.base_layer = adapted(nn.Sequential(nn.Linear(8, 8)), ["0"])[0]
        model.fc1 = copy.deepcopy(model.fc)
        assert told(model)[1] == [("fc", "linear", "ModuleDict.fc"), ("fc1", "linear", "ModuleDict.fc1")]

    def test_the_output_projection_that_torch_reads_is_never_called(self):
        """Of torch's own attention, and of a heir that keeps its forward; one that calls it has an ordinary layer."""

        class Reads(nn.MultiheadAttention):
            pass

        class Calls(nn.MultiheadAttention):
            def forward(self, x):
                return self.out_proj(x)

        kinds = {"a": nn.MultiheadAttention, "b": Reads, "c": Calls, "d": nn.Module}
        model = nn.ModuleDict({name: kind(8, 2) if kind is not nn.Module else kind() for name, kind in kinds.items()})
        model.d.out_proj = nn.Linear(8, 8)
        for part in model.values():
            part.out_proj = adapted(nn.ModuleList([nn.Linear(8, 8)]), ["0"])[0]
        owners = {one.name: one.owner for one in survey(model).layers}
        assert owners == {name + ".out_proj": NOT_CALLED if name in "ab" else None for name in "abcd"}

    def test_a_stack_of_matrices_is_the_part_of_experts(self):
        class Bank(nn.Module):
            def __init__(self):
                super().__init__()
                self.stack = nn.Parameter(torch.randn(3, 8, 8))
                self.flat = nn.Parameter(torch.randn(8, 8))

            def forward(self, x):
                return x @ self.stack[0]

        banks = {
            name: adapted(nn.ModuleDict({"bank": Bank()}), [], target_parameters=[f"bank.{name}"])
            for name in ("stack", "flat")
        }
        parts = {name: [(one.name, *one.parts) for one in survey(model).layers] for name, model in banks.items()}
        assert parts == {"stack": [("bank", "experts")], "flat": [("bank", "linear")]}


class Embedded(nn.Module):
    """A model with embeddings that it names."""

    def __init__(self, *, asks=lambda found: found):
        super().__init__()
        self.first, self.table, self.body = nn.Embedding(9, 8), nn.Embedding(9, 8), nn.Linear(8, 8)
        self.head, self.other = nn.Linear(8, 9), nn.Linear(8, 9)
        self.asks = asks

    def get_input_embeddings(self):
        return self.asks(self.table)

    def get_output_embeddings(self):
        return self.asks(self.head)


def failing(found):
    raise NotImplementedError


class TestEmbeddingsAndHeads:
    @pytest.mark.parametrize(
        ("config", "expected"),
        [
            ({"targets": ["table"]}, [("table", "embedding")]),
            ({"targets": ["first"]}, [("first", "embedding")]),
            ({"targets": ["head"]}, [("head", "head")]),
            ({"targets": ["other"]}, [("other", "linear")]),
            ({"targets": ["body"]}, [("body", "linear")]),
            ({"targets": ["body"], "modules_to_save": ["table"]}, [("table", "embedding"), ("body", "linear")]),
            ({"targets": ["body"], "modules_to_save": ["head"]}, [("body", "linear"), ("head", "head")]),
            ({"targets": ["body"], "modules_to_save": ["first", "other"]}, [("body", "linear")]),
        ],
        ids=str,
    )
    def test_which_layer_is_which(self, config, expected):
        """Named by the model, adapted by LoRA or kept as a copy; without either they are nobody's concern."""
        from peft import get_peft_model

        targets = config.pop("targets")
        model = get_peft_model(Embedded(), LoraConfig(r=2, target_modules=targets, **config))
        layers = [(one.name.removeprefix("base_model.model."), *one.parts) for one in survey(model).layers]
        assert layers == expected

    def test_a_model_that_cannot_say_hides_no_other(self):
        """One that raises comes before one that answers."""
        model = nn.ModuleDict({"bad": Embedded(asks=failing), "good": Embedded()})
        adapted(model, ["head"])
        found = {one.name: one.parts for one in survey(model).layers}
        assert found == {"bad.head": ("linear",), "good.head": ("head",)}

    def test_a_module_without_the_methods_hides_no_model_after_it(self):
        model = adapted(nn.Sequential(nn.ReLU(), Embedded()), ["head"])
        assert [(one.name, *one.parts) for one in survey(model).layers] == [("1.head", "head")]


class TestBlocks:
    def test_registered_then_displaced_then_derived(self):
        """Each in the order of the model; each module once."""
        model = nn.ModuleDict(
            {"mixer": Mixer(), "own": OwnMLP(), "llama": llama_mlp(), "later": OwnMLP(), "b": Mixer()}
        )
        adapted(model, r".*(proj|to_[qkv])")
        blocks, layers = told(model)
        assert blocks == [("llama", False), ("own", False), ("later", False), ("mixer", True), ("b", True)]
        assert len(layers) == 4 * 3 - 3 + 3 + 3
        owners = {one.name: one.owner for one in survey(model).blocks}
        said = "a test_survey.OwnMLP stands in place of LlamaMLP and owns the block"
        assert owners == {"llama": None, "own": said, "later": said, "mixer": None, "b": None}

    @pytest.mark.parametrize("beside", ["llama", "mixer", "nothing"])
    def test_a_block_is_displaced_only_in_a_model_of_its_architecture(self, beside):
        model = nn.ModuleDict({"own": OwnMLP()})
        if beside != "nothing":
            model["beside"] = llama_mlp() if beside == "llama" else Mixer()
        adapted(model, ["gate_proj"])
        assert ("own", False) in told(model)[0] if beside == "llama" else told(model)[0] == []

    def test_a_class_of_transformers_is_in_no_ones_place(self, monkeypatch):
        """Another architecture's class with the same names is upstream's."""
        model = nn.ModuleDict({"own": OwnMLP(), "llama": llama_mlp()})
        monkeypatch.setattr(OwnMLP, "__module__", "transformers.models.acme.modeling_acme")
        assert told(model)[0] == [("llama", False)]

    def test_what_lacks_a_projection_is_in_no_ones_place(self):
        model = nn.ModuleDict({"less": LessMLP(), "own": OwnMLP(), "llama": llama_mlp()})
        adapted(model, ["gate_proj"])
        assert told(model)[0] == [("llama", False), ("own", False)]

    @pytest.mark.parametrize("adapter", [True, False])
    def test_of_a_vision_tower_only_what_carries_adapters(self, adapter):
        """Upstream's class and one in its place alike; text blocks always."""
        model = nn.ModuleDict({"vision": pixtral_mlp(), "own": OwnMLP(), "text": nn.Linear(8, 8)})
        adapted(model, ["text", *(["gate_proj"] if adapter else [])])
        assert told(model)[0] == ([("vision", False), ("own", False)] if adapter else [])
        assert told(nn.ModuleDict({"text": llama_mlp(), "own": OwnMLP()}))[0] == [("text", False), ("own", False)]

    @pytest.mark.filterwarnings("ignore::patchkit.errors.PatchkitWarning")
    def test_a_block_of_a_vision_tower_that_is_patched_stays_one_without_its_adapter(self):
        model = adapted(nn.ModuleDict({"vision": pixtral_mlp()}), ["gate_proj"])
        patchkit.apply(model, trust="always")
        model.vision.gate_proj = model.vision.gate_proj.base_layer
        assert told(model) == ([("vision", False)], [])
        patchkit.revert(model)
        assert told(model) == ([], [])

    @pytest.mark.parametrize("missing", [None, "to_q", "to_v"])
    def test_a_derived_block_has_every_projection_that_its_source_names(self, missing):
        model = nn.ModuleDict({"mixer": Mixer(), "after": Mixer()})
        adapted(model, ["to_k"])
        if missing:
            delattr(model.mixer, missing)
        assert told(model)[0] == [("mixer", True)] * (not missing) + [("after", True)]

    def test_a_class_that_cannot_be_looked_at_hides_no_other(self, monkeypatch):
        class Odd(Mixer):
            pass

        def described(cls):
            if cls is Odd:
                raise RuntimeError("not yours")
            return real(cls)

        real = looking.described
        monkeypatch.setattr(looking, "described", described)
        model = adapted(nn.ModuleDict({"odd": Odd(), "mixer": Mixer()}), ["to_q"])
        assert told(model) == (
            [("mixer", True)],
            [("odd.to_q", "linear", "Odd.to_q"), ("mixer.to_q", "linear", "Mixer.to_q")],
        )

    @pytest.mark.filterwarnings("ignore::patchkit.errors.PatchkitWarning")
    def test_a_derived_block_that_is_patched_stays_one_with_another_forward(self, monkeypatch):
        """Its class got that since, from somebody else: the block is known by its patch."""
        model = adapted(nn.ModuleDict({"mixer": Mixer()}), ["to_q"])
        patchkit.apply(model, trust="always")
        assert [one.derived for one in survey(model).blocks] == [True]
        monkeypatch.setattr(Mixer, "forward", lambda self, x: x)
        assert told(model)[0] == [("mixer", True)]
        patchkit.revert(model)
        assert told(model)[0] == []

    def test_of_a_block_alone_nothing_more_is_known(self):
        """It is taken to be fed with a gradient, which is what makes it fused where nothing else does."""
        (found,) = find_blocks(llama_mlp())
        one = Candidate.of(found)
        assert (one.fed, one.owner, one.derived, one.place) == (True, None, False, "")
        assert one.found == found

    def test_only_what_holds_an_adapted_layer_is_derived(self):
        model = nn.ModuleDict({"plain": Mixer(), "mixer": Mixer()})
        adapted(model, ["mixer.to_q"])
        assert told(model)[0] == [("mixer", True)]

    def test_where_the_layers_of_blocks_stand(self):
        """Registered, displaced and derived blocks; of layers without an adapter nothing is said."""
        model = nn.ModuleDict({"mixer": Mixer(), "own": OwnMLP(), "llama": llama_mlp(), "alone": nn.Linear(8, 8)})
        adapted(model, ["to_q", "to_v", "up_proj", "down_proj", "alone"])
        assert survey(model).places == {
            "mixer.to_q": Place("mixer", "qkv", "to_q"),
            "mixer.to_v": Place("mixer", "qkv", "to_v"),
            **{f"{name}.{one}_proj": Place(name, "mlp", f"{one}_proj") for name in ("own", "llama") for one in ("up", "down")},
        }  # fmt: skip

    def test_a_layer_that_two_blocks_share_is_of_the_last(self):
        model = nn.ModuleDict({"first": llama_mlp(), "second": llama_mlp()})
        adapted(model, ["up_proj"])
        model.second.up_proj = model.first.up_proj
        assert survey(model).places == {"first.up_proj": Place("second", "mlp", "up_proj")}


class TestWhatIsFedWithAGradient:
    def fed(self, model):
        return {one.name: one.fed for one in survey(model).blocks}

    @pytest.mark.parametrize(
        ("targets", "expected"),
        [
            (["a.up_proj"], {"a": False, "b": True, "mixer": True}),
            (["b.up_proj"], {"a": False, "b": False, "mixer": True}),
            (["before"], {"a": True, "b": True, "mixer": True}),
            (["after"], {"a": False, "b": False, "mixer": False}),
        ],
        ids=str,
    )
    def test_what_comes_after_something_trained(self, targets, expected):
        model = nn.ModuleDict(
            {"before": nn.Linear(8, 8), "a": llama_mlp(), "b": llama_mlp(), "mixer": Mixer(), "after": nn.Linear(8, 8)}
        ).requires_grad_(False)
        adapted(model, targets)
        if targets != ["after"]:
            adapted(model.mixer, ["to_q"])
        else:
            del model["mixer"], expected["mixer"]
        assert self.fed(model) == expected

    def test_a_parameter_that_is_none_is_passed_over(self):
        model = nn.ModuleDict({"before": nn.Linear(8, 8, bias=False), "a": llama_mlp()}).requires_grad_(False)
        model.before.register_parameter("first", None)
        assert self.fed(model) == {"a": False}
        model.before.weight.requires_grad_()
        assert self.fed(model) == {"a": True}

    def test_enable_input_require_grads_feeds_all(self):
        model = nn.ModuleDict({"a": llama_mlp(), "b": llama_mlp()}).requires_grad_(False)
        model.b._require_grads_hook = None
        assert self.fed(model) == {"a": True, "b": True}
