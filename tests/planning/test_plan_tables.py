"""What is to become of one block and one layer: each state, each option, each reason, on models of a few numbers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP

import patchkit
from patchkit.adapters.peft_parameters import ParamWrapper
from patchkit.binding.patch import Patch, Refusal, patch_of
from patchkit.errors import MetaModelError, RevertError
from patchkit.options import Options
from patchkit.planning import levels, plan
from patchkit.planning.levels import NOT_LORA, NOT_PATCHED, rows_of
from patchkit.planning.plan import class_changes, current, with_current_layers, with_layers
from patchkit.planning.survey import Candidate, survey

pytestmark = pytest.mark.filterwarnings("ignore::patchkit.errors.PatchkitWarning")

CONFIG = LlamaConfig(hidden_size=8, intermediate_size=12, num_attention_heads=2, num_key_value_heads=2)
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "alone"]


_SCOPE: dict = {"__name__": "nowhere"}
exec("def forward(self, x):\n    return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))\n", _SCOPE)


class Refused(LlamaMLP):
    """Its forward has no source."""

    forward = _SCOPE["forward"]


def model_of(targets=ALL, *, mlp=LlamaMLP, dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.ModuleDict({"attn": LlamaAttention(CONFIG, 0), "mlp": mlp(CONFIG), "alone": nn.Linear(8, 8)}).to(dtype)
    return inject_adapter_in_model(LoraConfig(r=2, target_modules=list(targets)), model) if targets else model


def told(plans):
    """Level, reason and whether it is expected, of each row."""
    return {(row.name, row.part): (row.level, row.reason, row.expected) for one in plans for row in one.rows}


def planned(model, **options):
    found, chosen = survey(model), Options(**options)
    return with_layers(found, plan.plan(found, chosen), chosen)


def reported(model):
    found = survey(model)
    return with_current_layers(found, current(found))


FUSED = ("fused", "", False)
EVERYTHING = {("attn", "qkv"): FUSED, ("attn", "o"): FUSED, ("mlp", "mlp"): FUSED, ("alone", "linear"): FUSED}


class TestOptions:
    @pytest.mark.parametrize("off", [("qkv",), ("o",), ("mlp",), ("linear",), ("qkv", "o"), ("mlp", "linear")], ids=str)
    def test_what_is_switched_off_is_upstream_and_expected_there(self, off):
        expected = {
            key: ("upstream", f"switched off ({key[1]}=False)", True) if key[1] in off else FUSED for key in EVERYTHING
        }
        model = model_of()
        plans = planned(model, **dict.fromkeys(off, False))
        assert told(plans) == expected
        changed = {id(module) for module, _ in class_changes(plans)}
        parts = {"attn": {"qkv", "o"} - set(off), "mlp": {"mlp"} - set(off), "alone": {"linear"} - set(off)}
        assert changed == {id(model[name]) for name, left in parts.items() if left}

    def test_nothing_is_asked_of_a_model_before(self):
        assert told(reported(model_of())) == dict.fromkeys(EVERYTHING, ("upstream", NOT_PATCHED, False))

    def test_the_same_again_changes_nothing_and_another_precision_changes_every_class(self):
        model = model_of()
        patchkit.apply(model, trust="always")
        before = {name: type(module) for name, module in model.named_modules()}
        plans = planned(model)
        assert class_changes(plans) == []
        assert told(plans) == told(reported(model)) == EVERYTHING
        for one in (*plans, *reported(model)):
            module = one.candidate.module
            assert one.target is type(module)
            assert one.original is (type(module) if patch_of(module) is None else patch_of(module).original)
        changes = class_changes(planned(model, precision="base"))
        assert {id(module) for module, _ in changes} == {id(model[name]) for name in ("attn", "mlp", "alone")}
        assert all(cls not in before.values() for _, cls in changes)
        assert all(vars(cls)["__patchkit__"].precision == "base" for _, cls in changes)

    def test_switched_off_afterwards_it_gets_its_own_class_again(self):
        model = model_of()
        before = {name: type(model[name]) for name in ("attn", "mlp", "alone")}
        patchkit.apply(model, trust="always")
        plans = planned(model, mlp=False, linear=False, o=False)
        changes = {name: cls for name in before for module, cls in class_changes(plans) if module is model[name]}
        assert {name: changes[name] for name in ("mlp", "alone")} == {name: before[name] for name in ("mlp", "alone")}
        assert vars(changes["attn"])["__patchkit__"].parts == {"qkv"}
        assert {one.candidate.name: one.original for one in plans if one.candidate.name in before} == before


class TestRefusals:
    def test_one_that_is_refused_keeps_its_first_reason(self):
        (block,) = [one for one in planned(model_of(mlp=Refused)) if one.candidate.name == "mlp"]
        assert isinstance(block.outcome, Refusal)
        assert block.refused("another") is block

    @pytest.mark.parametrize("asked", [True, False])
    def test_a_plan_that_is_refused_has_this_reason_for_every_part(self, asked):
        model = model_of()
        plans = planned(model, o=False) if asked else reported(model)
        (block,) = [one.refused("no proof") for one in plans if one.candidate.name == "attn"]
        off = ("upstream", "switched off (o=False)", True)
        said = ("upstream", "no proof", False)
        assert told([block]) == {("attn", "qkv"): said, ("attn", "o"): off if asked else said}
        assert (block.target, block.original) == (LlamaAttention, LlamaAttention)

    def test_a_block_that_is_refused_tells_how_its_layers_run(self):
        """Some of them patched where they stand, or none."""
        model = model_of(mlp=Refused)
        row = told(planned(model))["mlp", "mlp"]
        assert row[0] == "alone"
        assert row[1]
        assert told(planned(model, linear=False))["mlp", "mlp"] == ("upstream", row[1], False)
        assert ("mlp.up_proj", "linear") not in told(planned(model))
        patchkit.apply(model, trust="always")
        assert told(reported(model))["mlp", "mlp"] == row
        assert {name for name, one in model.mlp.named_children() if patch_of(one)} == {
            "gate_proj",
            "up_proj",
            "down_proj",
        }

    def test_a_layer_of_no_block_hides_none_of_a_block(self):
        """It stands before the block, whose row speaks for what is in it."""
        model = nn.ModuleDict({"first": nn.Linear(8, 8), "mlp": Refused(CONFIG), "last": nn.Linear(8, 8)})
        found = told(
            planned(inject_adapter_in_model(LoraConfig(r=2, target_modules=["first", "up_proj", "last"]), model))
        )
        assert {key: row[0] for key, row in found.items()} == {
            ("mlp", "mlp"): "alone", ("first", "linear"): "fused", ("last", "linear"): "fused",
        }  # fmt: skip

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_what_another_library_set_on_an_instance_owns_it(self, when):
        model = model_of()
        if when == "after":
            patchkit.apply(model, trust="always")
        for name in ("mlp", "alone"):
            model[name].forward = lambda x: x
        owns = "its forward was replaced on the instance by "
        found = told(planned(model))
        for plans in (found, told(reported(model))):
            for key in (("mlp", "mlp"), ("alone", "linear")):
                assert plans[key][1].startswith(owns), plans
                lifted = key[0] == "mlp" and plans is found and when == "before"
                assert plans[key][::2] == ("alone" if lifted else "upstream", False)
            assert plans["attn", "qkv"] == (
                FUSED if when == "after" or plans is found else ("upstream", NOT_PATCHED, False)
            )

    def test_what_replaced_a_class_since_is_named_and_planned_anew(self, monkeypatch):
        model = model_of()
        patchkit.apply(model, trust="always")
        original = LlamaMLP.forward
        monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: original(self, x))
        level, reason, expected = told(reported(model))["mlp", "mlp"]
        assert (level, expected) == ("upstream", False)
        assert reason.startswith("its forward was replaced by ")
        (block,) = [one for one in planned(model) if one.candidate.name == "mlp"]
        assert isinstance(block.outcome, Refusal)
        assert block.target is LlamaMLP
        linear = type(model["alone"]).__mro__[1]
        forward = linear.forward
        monkeypatch.setattr(linear, "forward", lambda self, x: forward(self, x))
        level, reason, expected = told(reported(model))["alone", "linear"]
        assert (level, expected) == ("upstream", False)
        assert reason.startswith("its forward was replaced by ")

    def test_a_class_on_top_of_a_patched_one_cannot_be_planned(self):
        model = model_of()
        patchkit.apply(model, trust="always")
        model["mlp"].__class__ = type("OnTop", (type(model["mlp"]),), {})
        assert told(planned(model))["mlp", "mlp"] == FUSED  # as it is
        with pytest.raises(RevertError):
            planned(model, precision="base")

    @pytest.mark.parametrize("options", [{}, {"qkv": False}], ids=str)
    def test_what_cannot_be_looked_at_is_left_with_the_rest_of_it(self, options, monkeypatch):
        """The error is told, of the parts that were asked for; other modules are planned as ever."""
        real = plan.patched_class

        def raising(cls, *arguments):
            if cls is LlamaAttention:
                raise ValueError("no such thing")
            return real(cls, *arguments)

        monkeypatch.setattr(plan, "patched_class", raising)
        said = ("alone", "it cannot be examined (ValueError: no such thing)", False)
        qkv = ("upstream", "switched off (qkv=False)", True) if options else said
        assert told(planned(model_of(), **options)) == EVERYTHING | {("attn", "qkv"): qkv, ("attn", "o"): said}

    def test_what_cannot_be_told_is_left(self, monkeypatch):
        real = levels._choose

        def raising(module, *arguments):
            if isinstance(module, LlamaAttention):
                raise ValueError("no such thing")
            return real(module, *arguments)

        monkeypatch.setattr(levels, "_choose", raising)
        plans = planned(model_of())
        said = ("alone", "it cannot be examined (ValueError: no such thing)", False)
        assert told(plans) == EVERYTHING | {("attn", "qkv"): said, ("attn", "o"): said}
        assert {one.target for one in plans if one.candidate.name == "attn"} == {LlamaAttention}


class TestReasons:
    """Of blocks and of layers that could be patched and have nothing to fuse, or not all of it."""

    @pytest.mark.parametrize(
        ("targets", "expected"),
        [
            (["q_proj"], {"qkv": FUSED, "o": ("upstream", "it has no adapter", True), "mlp": FUSED}),
            (["o_proj"], {"qkv": ("upstream", "it has no adapter", True), "o": FUSED, "mlp": FUSED}),
            (
                ["down_proj"],
                {"qkv": ("upstream", "it has no adapter", True), "o": ("upstream", "it has no adapter", True)},
            ),
        ],
        ids=str,
    )
    def test_without_an_adapter_upstream_is_where_it_belongs(self, targets, expected):
        found = told(planned(model_of(targets)))
        for part, row in expected.items():
            (said,) = [one for (_, name), one in found.items() if name == part]
            assert (said[0], said[2]) == (row[0], row[2])
            assert bool(said[1]) == bool(row[1])

    @pytest.mark.parametrize("name", ["q_proj", "k_proj", "v_proj"])
    def test_one_that_must_be_called_is_named_with_its_reason(self, name):
        model = model_of()
        getattr(model.attn, name).register_forward_hook(lambda *_: None)
        level, reason, expected = told(planned(model))["attn", "qkv"]
        assert (level, expected) == ("alone", False)
        assert reason.startswith(f"{name}: ")

    def test_two_with_one_reason_are_named_together(self):
        model = model_of()
        for name in ("q_proj", "v_proj"):
            getattr(model.attn, name).register_forward_hook(lambda *_: None)
        model.attn.k_proj.merge()
        _, reason, _ = told(planned(model))["attn", "qkv"]
        first, second = reason.split("; ")
        assert first.startswith("q_proj, v_proj: ")
        assert second.startswith("k_proj: ")

    def test_all_of_them_called_is_upstream(self):
        model = model_of()
        for name in ("q_proj", "k_proj", "v_proj"):
            getattr(model.attn, name).register_forward_hook(lambda *_: None)
        level, reason, expected = told(planned(model))["attn", "qkv"]
        assert (level, expected) == ("upstream", False)
        assert reason.startswith("q_proj, k_proj, v_proj: ")

    @pytest.mark.parametrize("lacking", ["gate_proj", "down_proj"])
    @pytest.mark.parametrize("how", ["gone", "no module"])
    def test_a_block_that_lacks_a_projection(self, lacking, how):
        model = model_of(["q_proj"])
        delattr(model.mlp, lacking)
        if how == "no module":
            model.mlp.__dict__[lacking] = lambda x: x
        assert told(planned(model))["mlp", "mlp"] == ("upstream", "it lacks a projection", False)

    @pytest.mark.parametrize("fed", [True, False])
    def test_a_plain_mlp_is_fused_where_something_before_it_is_trained(self, fed):
        model = model_of(["o_proj"] if fed else ["alone"]).requires_grad_(False)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora" in name)
        level, reason, expected = told(planned(model))["mlp", "mlp"]
        assert (level, bool(reason), expected) == (("fused", False, False) if fed else ("upstream", True, True))

    def test_it_is_told_of_training_also_where_gradients_are_off(self):
        with torch.no_grad():
            assert told(planned(model_of(["o_proj"])))["mlp", "mlp"] == FUSED

    def test_a_copy_that_is_trained_has_nothing_to_fuse(self):
        from peft import get_peft_model

        model = get_peft_model(
            nn.Sequential(nn.Linear(8, 8), nn.Embedding(9, 8)), LoraConfig(target_modules=["0"], modules_to_save=["1"])
        )
        inner = model.base_model.model
        candidate = Candidate("1", inner[1], ("embedding",))
        for outcome in (None, Refusal.of(["embedding"], "another")):
            (row,) = rows_of(candidate, outcome)
            assert (row.level, row.reason, row.expected, row.module_class) == (
                "upstream", NOT_LORA, True, "ModulesToSaveWrapper"
            )  # fmt: skip
        (row,) = rows_of(candidate, Refusal.of((), ""))
        assert row.reason == "switched off (embedding=False)"

    def test_a_layer_that_must_be_called(self):
        model = model_of()
        model.alone.lora_A["default"].register_forward_hook(lambda *_: None)
        level, reason, expected = told(planned(model))["alone", "linear"]
        assert (level, expected) == ("upstream", False)
        assert reason
        patchkit.apply(model, trust="always")
        assert told(reported(model))["alone", "linear"] == (level, reason, expected)


class TestInputs:
    """An empty input like those that a layer is made for."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
    def test_of_a_linear_layer(self, dtype):
        for targets in ([], ["alone"]):
            x = levels._input_of_layer(model_of(targets, dtype=dtype)["alone"], "linear")
            assert (x.shape, x.dtype, x.requires_grad) == ((0, 8), dtype, True)

    def test_of_projections_the_first_that_can_be_read_counts(self):
        scripted, module = nn.Identity(), nn.Linear(5, 3, dtype=torch.float64)
        assert levels._input_like([scripted, module, nn.Linear(7, 7)]).shape == (0, 5)
        assert levels._input_like([scripted]).shape == (0, 0)
        whole = nn.Linear(5, 3)
        whole.weight = nn.Parameter(torch.zeros(3, 5, dtype=torch.int8), requires_grad=False)
        assert levels._input_like([whole, module]).dtype == torch.float64

    def test_of_a_layer_that_does_not_say_how_wide_its_input_is(self):
        layer = nn.Module()
        layer.weight = nn.Parameter(torch.zeros(3, 5))
        assert levels._input_like([layer]).shape == (0, 5)
        layer.in_features = 4  # its weight may be stored in its own way
        assert levels._input_like([layer]).shape == (0, 4)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_of_a_weight_that_is_not_kept_as_a_tensor(self, dtype, monkeypatch):
        """A quantised one says in what it is computed with, for an input in float32."""
        asked = []
        weight = SimpleNamespace(
            shape=(3, 5), device=torch.device("cpu"), compute_dtype=lambda given: asked.append(given) or dtype
        )
        module = nn.Linear(7, 7)
        monkeypatch.setattr(levels, "read_projection", lambda one: SimpleNamespace(weight=weight))
        x = levels._input_like([module])
        assert (x.shape, x.dtype, x.requires_grad, asked) == ((0, 5), dtype, True, [torch.float32])

    def test_of_an_embedding(self):
        for table in (
            nn.Embedding(9, 8),
            inject_adapter_in_model(LoraConfig(target_modules=["0"]), nn.Sequential(nn.Embedding(9, 8)))[0],
        ):
            x = levels._input_of_layer(table, "embedding")
            assert (x.shape, x.dtype) == ((0,), torch.int64)

    def test_of_an_adapted_parameter(self):
        class Bank(nn.Module):
            def __init__(self):
                super().__init__()
                self.stack = nn.Parameter(torch.randn(3, 8, 6, dtype=torch.float64))

            def forward(self, x):
                return x @ self.stack[0]

        model = inject_adapter_in_model(
            LoraConfig(r=2, target_modules=[], target_parameters=["bank.stack"]), nn.ModuleDict({"bank": Bank()})
        )
        assert isinstance(model.bank, ParamWrapper)
        x = levels._input_of_layer(model.bank, "experts")
        assert (x.shape, x.dtype) == ((0, 6), torch.float64)


class TestOnMeta:
    """A model on meta is refused as a whole; what an offloading library keeps there runs."""

    def refused(self, model):
        with pytest.raises(MetaModelError) as error:
            plan.plan(survey(model), Options())
        return str(error.value).partition(" on the meta")[0]

    def fine(self, model):
        plan.plan(survey(model), Options())

    def test_all_blocks(self):
        model = model_of([]).to("meta")
        assert self.refused(model) == "the weights of all 2 blocks are"
        assert self.refused(model_of().to("meta")) == "the weights of all 2 blocks are"
        model.alone.to_empty(device="cpu")  # it is no block
        assert self.refused(model) == "the weights of all 2 blocks are"

    def test_a_block_alone(self):
        assert self.refused(LlamaMLP(CONFIG).to("meta")) == "the weights of all 1 blocks are"

    @pytest.mark.parametrize("name", ["attn.q_proj", "mlp.down_proj"])
    def test_all_but_one_weight(self, name):
        model = model_of([]).to("meta")
        model.get_submodule(name).to_empty(device="cpu")
        self.fine(model)

    def test_a_neighbour_with_a_longer_name(self):
        model = nn.ModuleDict({"mlp": LlamaMLP(CONFIG).to("meta"), "mlp2": nn.Linear(8, 8)})
        assert self.refused(model) == "the weights of all 1 blocks are"

    def test_what_stands_before_the_first_block(self):
        model = nn.ModuleDict({"before": nn.Linear(8, 8), "mlp": LlamaMLP(CONFIG).to("meta")})
        assert self.refused(model) == "the weights of all 1 blocks are"

    def test_layers_count_where_there_is_no_block(self):
        layers = inject_adapter_in_model(
            LoraConfig(target_modules=["0", "2"]), nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
        )
        self.fine(layers)
        layers[0].to("meta")
        self.fine(layers)
        layers[2].to("meta")
        assert self.refused(layers) == "the weights of all 2 adapted layers are"

    def test_without_blocks_and_layers_there_is_nothing_to_refuse(self):
        self.fine(nn.ReLU())
        self.fine(nn.Linear(8, 8).to("meta"))

    def test_what_another_library_owns_says_nothing(self):
        class Own(nn.Module):
            def __init__(self):
                super().__init__()
                self.gate_proj, self.up_proj, self.down_proj = (nn.Linear(8, 8) for _ in range(3))

        model = nn.ModuleDict({"mlp": LlamaMLP(CONFIG).to("meta"), "own": Own()})
        assert len(survey(model).blocks) == 2
        assert self.refused(model) == "the weights of all 1 blocks are"

    def test_an_offloading_library_is_known_by_its_hook(self):
        model = model_of().to("meta")
        model.attn.q_proj._hf_hook = object()
        self.fine(model)


def test_what_was_planned_is_a_patch_with_its_class():
    """Every plan says which class a module is to have, and what comes with it."""
    for one in planned(model_of()):
        if one.target is not type(one.candidate.module):
            assert isinstance(one.outcome, Patch)
            assert vars(one.target)["__patchkit__"] is one.outcome
            assert one.outcome.original is one.original is type(one.candidate.module)
