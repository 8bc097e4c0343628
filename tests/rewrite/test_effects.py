"""Every word by which a call is judged, in every spelling, alone."""

from __future__ import annotations

import itertools

import pytest

from patchkit.arch.spec import Attention
from patchkit.rewrite import effects
from patchkit.rewrite.rewriter import rewrite

SPELLINGS = {"lower": str.lower, "UPPER": str.upper, "Title": str.title}

REASONS = {
    "_DRAWING": "may draw random numbers",
    "_STATE": "may change how projections are computed",
    "_RUNNING": "may run another projection",
}


def over(between: str):
    """What becomes of projections that a statement stands between."""
    lines = ["a = self.q_proj(x)", "b = self.k_proj(x)", between, "c = self.v_proj(x)"]
    body = "".join(f"        {line}\n" for line in lines)
    return rewrite(f"class Block:\n    def forward(self, x, y):\n{body}", Attention("Block"))


@pytest.mark.parametrize("call", ["torch.a{}b(y)", "y.a{}b()", "a{}b(y)", "self.norm.a{}b(y)"])
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("table", REASONS)
def test_each_word_that_is_unsafe(table, spelling, call):
    for word in getattr(effects, table):
        if any(word in other and word != other for other in effects._DRAWING) and table != "_DRAWING":
            continue  # said by the other table
        found = over(f"z = {call.format(SPELLINGS[spelling](word))}")
        assert {site.rule for site in found.sites} == {"call-alone"}, word
        assert any(REASONS[table] in skip.reason for skip in found.skips), (word, found.skips)


@pytest.mark.parametrize(
    ("spelling", "call"),
    list(itertools.product(SPELLINGS, ["self.a{}b(y)", "self.inner.a{}b(y)", "self.a{}b.inner(y)"])),
)
def test_each_word_that_is_quiet(spelling, call):
    for word in effects._QUIET_ON_SELF:
        assert {site.rule for site in over(f"z = {call.format(SPELLINGS[spelling](word))}").sites} == {
            "qkv-together"
        }, word


@pytest.mark.parametrize("method", sorted(effects.HARMLESS_METHODS))
def test_each_harmless_method(method):
    for between in (f"z = x.{method}()", f"z = self.weight.{method}()"):
        assert {site.rule for site in over(between).sites} == {"qkv-together"}
    assert {site.rule for site in over("z = x.other()").sites} == {"call-alone"}


@pytest.mark.parametrize("attribute", sorted(effects.HARMLESS_ATTRIBUTES))
def test_each_harmless_attribute(attribute):
    assert {site.rule for site in over(f"z = x.{attribute}").sites} == {"qkv-together"}
    assert {site.rule for site in over(f"z = x.{attribute}\n        change(z)").sites} == {"qkv-together"}


@pytest.mark.parametrize("attribute", ["data", "T", "mT", "H", "mH", "grad", "real", "imag", "storage", "_base"])
def test_attributes_that_share_memory(attribute):
    assert {site.rule for site in over(f"z = x.{attribute}").sites} == {"call-alone"}


@pytest.mark.parametrize("function", sorted(effects.HARMLESS_FUNCTIONS))
def test_each_harmless_function(function):
    assert {site.rule for site in over(f"z = {function}(x)").sites} == {"qkv-together"}
    assert {site.rule for site in over(f"z = other.{function}(x)").sites} == {"call-alone"}


NAMES = {
    # calls whose names have one such word each, and why nothing is moved past them
    "may draw random numbers": (
        "F.dropout", "torch.rand", "torch.bernoulli", "torch.multinomial", "torch.normal", "y.normal_", "torch.log_normal",
        "torch.uniform", "y.exponential_", "y.geometric_", "y.cauchy_", "torch.poisson", "torch.binomial", "F.rrelu",
        "F.gumbel_softmax", "y.rsample", "add_noise", "router_jitter", "stochastic_depth",
    ),
    "may change how projections are computed": (
        "torch.manual_seed", "torch.fork_rng", "torch.set_default_dtype", "torch.is_grad_enabled",
        "torch.is_autocast_enabled", "y.train", "y.eval", "y.register_hook", "y.load_state_dict", "y.requires_grad_",
    ),
    "may run another projection": ("y.in_proj", "y.forward", "apply_lora", "y.__call__"),
    "may run another module": ("self.gate", "self.inner.gate", "self.quiet", "self.dense.linear"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "why"), [(name, why) for why, names in NAMES.items() for name in names])
def test_each_name_that_is_unsafe(name, why):
    found = over(f"z = {name}(y)")
    assert {site.rule for site in found.sites} == {"call-alone"}
    assert any(f"`{name}(y)` stands between and {why}" in skip.reason for skip in found.skips)


@pytest.mark.parametrize(
    "name",
    ["self.q_norm", "self._shape", "self.split_heads", "self.rotary_emb", "self.apply_rope", "self.transpose_for_scores",
     "self.view_of", "self.permute_for", "self.rescale", "y.inner", "helper", "torch.cat", "self.q_norm.inner"],
)  # fmt: skip
def test_each_name_that_is_safe(name):
    assert {site.rule for site in over(f"z = {name}(y)").sites} == {"qkv-together"}


SAYS_SOMETHING = (
    "x.shape", "x.dtype", "x.device", "x.ndim", "x.layout", "x.is_cuda", "x.is_cpu", "x.is_nested", "x.requires_grad",
    "x.itemsize", "x.size(0)", "x.dim()", "x.numel()", "x.nelement()", "x.ndimension()", "x.stride()", "x.get_device()",
    "x.element_size()", "x.is_contiguous()", "x.is_floating_point()", "x.storage_offset()", "len(x)", "isinstance(x, y)",
    "type(x)", "hasattr(x, y)", "id(x)", "x + y", "-x", "x > y", "y is x", "not x",
)  # fmt: skip


@pytest.mark.parametrize("read", SAYS_SOMETHING)
def test_each_read_that_only_says_something(read):
    """Of the input; what is made of it is no second name of it."""
    assert {site.rule for site in over(f"z = {read}\n        change(z)").sites} == {"qkv-together"}


ONCE = (
    # expressions that evaluate what is in them exactly once
    "f({})",
    "f(a={})",
    "f(*{})",
    "f(**{})",
    "{}.real",
    "{}[0]",
    "y[{}]",
    "y[{}:]",
    "y[1:{}]",
    "y[{}, 0]",
    "y + {}",
    "-{}",
    "({}, y)",
    "[{}, y]",
    "{{{}, y}}",
    "{{1: {}}}",
    "{{{}: 1}}",
    "(*{}, y)",
    "[*{}]",
    "(z := {})",
    "f(y)[0] @ {}.T",
)
LAZILY = (
    "{} if y else z", "y and {}", "y or {}", "lambda: {}", "[{} for z in y]", "(z for z in {})", "y < z < {}", "f'{{{}}}'",
    "f(a=y, *{})", "{{**{}}}", "await {}",
)  # fmt: skip


@pytest.mark.parametrize("expression", [*ONCE, *LAZILY])
def test_where_a_projection_may_stand(expression):
    """Taken out of what is evaluated lazily or repeatedly, or in another order, it would run where upstream's does not."""
    body = f"a = {expression.format('self.q_proj(x)')}\n        b = self.k_proj(x)\n        c = self.v_proj(x)"
    word = "async def" if "await" in expression else "def"
    found = rewrite(f"class Block:\n    {word} forward(self, x, y):\n        {body}\n", Attention("Block"))
    assert {site.rule for site in found.sites} == {"qkv-together" if expression in ONCE else "call-alone"}


SECOND_NAMES = {
    # what stands above the projections of x: whether z may be the same memory then
    "z = x": True, "z = x.view(1)": True, "z = x.chunk(2)[0]": True, "z, w = x.chunk(2)": True, "z = x[0]": True,
    "z = x.data": True, "z = x.view(1).transpose(0, 1)": True, "z = y if flag else x": True, "z = y or x": True,
    "z = (x, y)": True, "z = [y, x]": True, "z: object = x": True, "w = (z := x)": True, "z[0] = x": True,
    "z.held = x": True, "w = x\n        z = w": True, "for z in x: pass": True, "x = z": True, "x = z.view(1)": True,
    "z = x.size(0)": False, "z = x.shape[0]": False, "z = x.dim()": False, "z = x + 1": False, "z = -x": False,
    "z = self.norm(x)": False, "z = self.norm.inner(x)": False, "z = helper(x)": False, "x = self.norm(z)": False,
    "z = self.norm(x).view(1)": False, "z = x.shape": False, "z = x == y": False, "z = y": False, "z: object": False,
    "x = z + 1": False, "z = [w for w in y]": False, "w = x\n        z = y": False,
}  # fmt: skip


@pytest.mark.parametrize("above", SECOND_NAMES)
def test_each_way_to_a_second_name(above):
    """What may be the input by another name is not given to anybody between the projections; what is new may be."""
    lines = [above, "a = self.q_proj(x)", "change(z)", "b = self.k_proj(x)", "c = self.v_proj(x)"]
    body = "".join(f"        {line}\n" for line in lines)
    found = rewrite(f"class Block:\n    def forward(self, x, y, z, w, flag):\n{body}", Attention("Block"))
    assert {site.rule for site in found.sites} == {"call-alone" if SECOND_NAMES[above] else "qkv-together"}
