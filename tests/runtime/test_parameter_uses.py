"""Which uses of a parameter are known, form by form, and what is said of the others."""

from __future__ import annotations

import functools
from types import MethodType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import bmm, matmul, nn

from patchkit.adapters.protocol import Reason
from patchkit.runtime import parameter_uses
from patchkit.runtime.parameter_uses import unfit_uses


class Base(nn.Module):
    """One matrix and one stack."""

    def __init__(self):
        super().__init__()
        self.w, self.s, self.b = (nn.Parameter(torch.ones(*shape)) for shape in ((3, 3), (2, 3, 3), (3,)))
        self.count = 2


class Indexed(Base):
    VALID = True

    def forward(self, x, i):
        return (
            F.linear(x, self.s[i]) + nn.functional.linear(x, self.w, self.b) + torch.nn.functional.linear(x, self.s[0])
        )


class Multiplied(Base):
    VALID = True

    def forward(self, x, i):
        y = x @ self.w + torch.matmul(x, self.s[i]) + matmul(x, self.w.t())
        return y + torch.bmm(x[None], self.s)[0] + bmm(x[None], self.s.transpose(1, 2))[0] + x @ self.s[i].T


class Cast(Base):
    VALID = True

    def forward(self, x):
        scores = F.linear(x.float(), self.w.float()) + F.linear(x.type(torch.float32), self.w.type(torch.float32))
        return scores + x.to(self.w.dtype) @ self.s[0].to(x.dtype).mT


class LookedAt(Base):
    VALID = True

    def forward(self, x):
        if self.s is not None and self.w is None:
            return x.view(self.s.shape[0], -1).to(self.w.device)
        return x


class InMethods(Base):
    VALID = True

    def forward(self, x):
        return self.up(x) * (self.count if self.training else 1)

    def up(self, x):
        return self.twice(F.linear(x, self.w))

    def twice(self, x):
        return 2 * x


class InAFunction(Base):
    VALID = True

    def forward(self, x):
        return sum(map(lambda i: F.linear(x, self.s[i]), range(2)))  # noqa: C417


class Handed(Base):
    VALID = "what its forward does with w is not known"

    def forward(self, x):
        return torch.autograd.Function.apply(x, self.w)


class Named(Base):
    VALID = "what its forward does with w is not known"

    def forward(self, x):
        weight = self.w
        return F.linear(x, weight)


class AddedTo(Base):
    VALID = "what its forward does with s is not known"

    def forward(self, x):
        return x @ (self.s[0] + 1)


class OnTheLeft(Base):
    VALID = "what its forward does with w is not known"

    def forward(self, x):
        return self.w @ x


class FirstArgument(Base):
    VALID = "what its forward does with w is not known"

    def forward(self, x):
        return F.linear(self.w, x)


class AsABias(Base):
    VALID = "what its forward does with w is not known"

    def forward(self, x):
        return F.linear(x, x, self.w)


class OfAnotherFunction(Base):
    VALID = "what its forward does with w is not known"

    def forward(self, x):
        linear = F.linear
        return linear(x, self.w)


class OfAnotherMethod(Base):
    VALID = "what its forward does with w is not known"

    def forward(self, x):
        return x @ self.w.detach()


class Assigned(Base):
    VALID = "what its forward does with w is not known"

    def forward(self, x):
        self.w = x
        return x


class Compared(Base):
    VALID = "what its forward does with w is not known"

    def forward(self, x):
        return x if self.w == 1 else -x


class InAMethod(Base):
    VALID = "what its up does with w is not known"

    def forward(self, x):
        return self.up(x)

    def up(self, x):
        return x * self.w


class InAMethodBehindOneCalledTwice(Base):
    VALID = "what its scale does with w is not known"

    def forward(self, x):
        return self.scale(self.twice(self.twice(x)))

    def scale(self, x):
        return x * self.w

    def twice(self, x):
        return 2 * x


class HandsItselfOn(Base):
    VALID = "its forward hands itself on"

    def forward(self, x):
        return torch.relu(x) if hasattr(self, "w") else x


class AsksAbove(Indexed):
    VALID = "its forward hands itself on"

    def forward(self, x, i):
        return super().forward(x, i)


class AsksTheModule(Base):
    VALID = "its forward uses nn.Module.parameters"

    def forward(self, x):
        return x * next(self.parameters())


class OfAProperty(Base):
    VALID = "its weight is a property"

    @property
    def weight(self):
        return self.w

    def forward(self, x):
        return x @ self.weight


class OwnLookup(Base):
    VALID = "its class has a __getattr__ of its own"

    def __getattr__(self, name):
        return super().__getattr__(name)

    def forward(self, x):
        return x


FORMS = [
    cls
    for cls in list(globals().values())
    if isinstance(cls, type) and issubclass(cls, Base) and cls is not Base and "VALID" in vars(cls)
]


@pytest.mark.parametrize("cls", FORMS, ids=lambda cls: cls.__name__)
def test_forms(cls):
    found = unfit_uses(cls(), ("w", "s"))
    if cls.VALID is True:
        assert found is None
    else:
        assert found is not None
        assert found.endswith(cls.VALID)


def test_a_place_is_named():
    found = unfit_uses(Handed(), ("w",))
    line = Handed.forward.__code__.co_firstlineno + 1
    assert found == f"{__file__}:{line}: what its forward does with w is not known"


def test_parameters_that_are_not_adapted_may_be_used():
    assert unfit_uses(AddedTo(), ("w",)) is None
    assert unfit_uses(OfAnotherMethod(), ("s",)) is None


STATES = {
    "a hook": (lambda module: module.register_forward_hook(print), "a forward hook is registered on it"),
    "forward": (
        lambda module: vars(module).update(forward=MethodType(lambda self, x: x, module)),
        "forward was replaced on the instance",
    ),
    "the parameter": (lambda module: vars(module).update(w=1), "w was replaced on the instance"),
    "a method": (lambda module: vars(module).update(twice=print), "twice was replaced on the instance"),
}


@pytest.mark.parametrize("name", STATES)
def test_states_of_an_instance(name):
    change, reason = STATES[name]
    module = InMethods()
    assert unfit_uses(module, ("w",)) is None
    change(module)
    assert unfit_uses(module, ("w",)) == reason


def test_a_method_that_is_replaced_on_the_class_is_read_anew(monkeypatch):
    module = InMethods()
    assert unfit_uses(module, ("w",)) is None
    monkeypatch.setattr(InMethods, "twice", InAMethod.up)
    found = unfit_uses(module, ("w",))
    assert found is not None
    assert found.endswith("what its up does with w is not known")
    monkeypatch.setattr(InMethods, "forward", functools.partial(print))
    assert unfit_uses(module, ("w",)) == "its forward is a partial"


def test_a_product_that_is_replaced(monkeypatch):
    module = Multiplied()
    assert unfit_uses(module, ("w",)) is None
    monkeypatch.setattr(torch, "bmm", lambda *args: None)
    assert "torch.bmm was replaced" in (unfit_uses(module, ("w",)) or "")


def test_a_function_without_source():
    namespace: dict[str, type] = {"Base": Base}
    exec("class Made(Base):\n def forward(self, x):\n  return x", namespace)
    assert "there is no source of" in (unfit_uses(namespace["Made"](), ("w",)) or "")


class TestImplementations:
    """What the configuration of transformers' experts chooses."""

    @pytest.fixture
    def experts(self):
        cases = pytest.importorskip("experts_cases")
        return cases.KINDS["plain"](SimpleNamespace(_experts_implementation="eager"))

    def reason(self, experts, name) -> Reason | None:
        experts.config._experts_implementation = name
        return unfit_uses(experts, ("gate_up_proj", "down_proj"))

    @pytest.mark.parametrize("name", [None, "eager", "batched_mm", "grouped_mm"])
    def test_known(self, experts, name):
        assert self.reason(experts, name) is None

    def test_others(self, experts):
        moe = pytest.importorskip("transformers.integrations.moe")
        others = set(moe.ALL_EXPERTS_FUNCTIONS.valid_keys()) - {"eager", "batched_mm", "grouped_mm"}
        for name in others:
            assert f"its experts are computed by {name!r}" in self.reason(experts, name)
        assert self.reason(experts, "unheard") == "its experts are computed by 'unheard', nothing"

    def test_a_users_own(self, experts, monkeypatch):
        moe = pytest.importorskip("transformers.integrations.moe")
        monkeypatch.setitem(moe.ALL_EXPERTS_FUNCTIONS._global_mapping, "grouped_mm", bmm_experts)
        assert self.reason(experts, "grouped_mm") == f"its experts are computed by 'grouped_mm', {__name__}.bmm_experts"

    def test_a_function_that_is_replaced(self, experts, monkeypatch):
        monkeypatch.setattr("transformers.integrations.moe._grouped_linear", lambda *args, **kwargs: None)
        assert "_grouped_linear was replaced" in self.reason(experts, "grouped_mm")
        assert self.reason(experts, "eager") is None

    def test_expert_parallel(self, experts):
        experts._is_expert_parallel = True
        for name in ("eager", "batched_mm"):
            assert self.reason(experts, name) == "its experts are spread over processes"

    def test_a_gate_that_uses_the_weights(self, experts, monkeypatch):
        monkeypatch.setattr(type(experts), "_apply_gate", gate_with_weights)
        for name in ("batched_mm", "grouped_mm"):
            assert "down_proj is not known" in self.reason(experts, name)

    def test_a_method_behind_the_default_gate(self, monkeypatch):
        moe = pytest.importorskip("transformers.integrations.moe")
        monkeypatch.setattr(InAMethodBehindAGate, "_apply_gate", moe._default_apply_gate, raising=False)
        assert "what its scale does with w is not known" in (unfit_uses(InAMethodBehindAGate(), ("w",)) or "")


class InAMethodBehindAGate(Base):
    def forward(self, x):
        return self.scale(self._apply_gate(x))

    def scale(self, x):
        return x * self.w


def gate_with_weights(self, x):
    return x * self.down_proj.sum()


def bmm_experts(self, hidden_states, top_k_index, top_k_weights):
    return hidden_states


def test_a_class_with_an_attribute_of_that_name(monkeypatch):
    module = LookedAt()
    assert unfit_uses(module, ("w",)) is None
    monkeypatch.setattr(LookedAt, "w", property(lambda self: self.s[0]), raising=False)
    assert unfit_uses(module, ("w",)) == "its class has a w of its own"


def test_what_was_read_is_kept(monkeypatch):
    module = Indexed()
    assert unfit_uses(module, ("s",)) is None
    monkeypatch.setattr(parameter_uses, "definition_of", lambda function: pytest.fail("read again"))
    assert unfit_uses(Indexed(), ("s",)) is None
