"""Unusual but legal Python: ``apply`` patches it exactly or leaves it upstream and says why, and never raises.

Each case is the text of a module with a class ``Block``, which derives from a registered class and has a ``forward`` of
its own. It is imported from a file, patched, and compared with a copy made before.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
import linecache
import pickle
import sys
import traceback
import warnings

import pytest
import torch
from transformers import LlamaConfig

import patchkit
from patchkit.adapters.scaled_embedding import is_scaled_embedding
from patchkit.binding.patch import patch_of
from patchkit.testing import add_lora

MLP = "return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))"
HEAD = "from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP\n"
PLAIN = f"""{HEAD}
class Block(LlamaMLP):
    def forward(self, x):
        {MLP}
"""
ATTENTION = f"""{HEAD}
class Block(LlamaAttention):
    def forward(self, x):
        q = self.q_proj(x)
        k = self.k_proj(x)
        v = self.v_proj(x)
        return self.o_proj((q * k.softmax(-1)).sigmoid() * v)
"""


def with_body(body, parameters="x"):
    lines = "".join(f"        {line}\n" for line in body.split("\n"))
    return f"{HEAD}\nclass Block(LlamaMLP):\n    def forward(self, {parameters}):\n{lines}"


def edited(old, new, text=PLAIN):
    assert old in text
    return text.replace(old, new)


BODY = "    def forward(self, x):\n"

PATCHED = {
    "plain": PLAIN,
    "attention": ATTENTION,
    "text at column 0": edited(BODY, f'{BODY}        note = """first\nsecond at column 0\n"""\n'),
    "docstring at column 0": edited(BODY, f'{BODY}        """Runs.\n\nMore at column 0.\n        """\n'),
    "comment at column 0": edited(BODY, f"{BODY}# a comment at column 0\n        x = x + 0.5\n# and another one\n"),
    "column 0 in an attention": edited("        k = ", '        note = """\nat column 0"""\n        k = ', ATTENTION),
    "column 0 in parentheses": edited("(x)) *", "(\nx\n)) *"),
    "continued line at column 0": edited("return self", "return \\\nself"),
    "form feed on its own line": edited(BODY, f"{BODY}\f\n"),
    "form feed before the method": edited(BODY, f"\f\n{BODY}"),
    "form feed in a string": edited(BODY, f'{BODY}        note = "a\fb"\n'),
    "other separators in a string": edited(BODY, f'{BODY}        note = "a\x0bb\x1cc\x85d\u2028e"\n'),
    "windows line ends": PLAIN.replace("\n", "\r\n"),
    "tabs": PLAIN.replace("    ", "\t"),
    "byte order mark": "\ufeff" + PLAIN,
    "no newline at the end": PLAIN.rstrip("\n"),
    "annotations not evaluated": f"from __future__ import annotations\n{edited('self, x)', 'self, x: Nothing) -> Nor.This')}",
    "walrus": with_body(f"if (y := x.dim()) > 1:\n    {MLP}\nreturn y"),
    "match": with_body(f"match x.dim():\n    case 2 | 3:\n        {MLP}\n    case _:\n        return x"),
    "one line": edited(f"{BODY}        {MLP}", f"    def forward(self, x): {MLP}"),
    "semicolons": with_body(f"note = 1; other = 2; {MLP}"),
    "names of other alphabets": with_body("größe = self.up_proj(x)\nreturn self.down_proj(self.act_fn(self.gate_proj(x)) * größe)"),
    "lambda default": edited("self, x)", "self, x, key=lambda y, /, *, z=3: y * z)"),
    "keyword only and positional only": edited("self, x)", "self, x, /, *, scale=1.0, **kwargs)"),
    "private names": edited(BODY, f"    __shift = 0.25\n\n{BODY}        x = x + self.__shift\n"),
    "super without arguments": edited(BODY, f"    def shift(self, x):\n        return x\n\n{BODY}        super().train(self.training)\n"),
    "the class's cell": edited(BODY, f"    shift = 0.25\n\n{BODY}        x = x + __class__.shift\n"),
    "self under another name": PLAIN.replace("self", "this"),
    "nested class": f"{HEAD}\nclass Outer:\n    class Block(LlamaMLP):\n        def forward(self, x):\n            {MLP}\n\nBlock = Outer.Block\n",
    "under a condition": f"{HEAD}\nif True:\n    class Block(LlamaMLP):\n        def forward(self, x):\n            {MLP}\n",
    "defined twice": edited("class Block", "class Block(LlamaMLP):\n    def forward(self, x):\n        return x\n\n\nclass Block"),
    "method defined twice": edited(BODY, f"    def forward(self, x):\n        return x\n\n{BODY}"),
    "generic": edited("class Block(LlamaMLP)", "import typing\nT = typing.TypeVar('T')\n\nclass Block(LlamaMLP, typing.Generic[T])"),
    "abstract base": edited("class Block(LlamaMLP)", "import abc\n\nclass Block(LlamaMLP, abc.ABC)"),
    "slots": edited("class Block(LlamaMLP):", "class Block(LlamaMLP):\n    __slots__ = ('extra',)\n"),
    "frozen": edited(BODY, f"    def __setattr__(self, name, value):\n        raise TypeError('frozen')\n\n{BODY}"),
    "another class by its word": edited(BODY, f"    @property\n    def __class__(self):\n        return LlamaMLP\n\n{BODY}"),
    "own equality": edited(BODY, f"    def __eq__(self, other):\n        raise TypeError\n\n    __hash__ = object.__hash__\n\n{BODY}"),
    "own constructor": edited(BODY, f"    def __new__(cls, config):\n        return super().__new__(cls)\n\n    def __getnewargs__(self):\n        return (None,)\n\n{BODY}"),
    "own state": edited(BODY, f"    def __getstate__(self):\n        return {{**self.__dict__, 'loaded': False}}\n\n    def __setstate__(self, state):\n        self.__dict__.update(state, loaded=True)\n\n{BODY}"),
    "huge method": with_body("\n".join(f"note_{i} = {i}" for i in range(1500)) + f"\n{MLP}"),
    "cookie": "# -*- coding: latin-1 -*-\n" + edited(BODY, f'{BODY}        note = "\xe9\xff"\n'),
}  # fmt: skip
"""Texts that are patched."""
if sys.version_info >= (3, 14):  # before, these are evaluated when the class is made
    PATCHED["annotations that nobody asks for"] = edited("self, x)", "self, x: Nothing) -> Nor.This")

DEEP = "+".join(["0"] * 990)
WATCHED = """
SEEN = []
class Watches:
    def __init_subclass__(cls, {parameters}**kwargs):
        {body}
"""

LEFT = {
    "deep nesting": (with_body(f"note = {DEEP}\n{MLP}"), "nested too deeply"),
    "registers its subclasses": (
        edited("class Block(LlamaMLP)", WATCHED.format(parameters="", body="SEEN.append(cls)") + "\nclass Block(LlamaMLP, Watches)"),
        "the __init_subclass__ of unusual.Watches would run",
    ),
    "wants arguments": (
        edited("class Block(LlamaMLP)", WATCHED.format(parameters="name, ", body="SEEN.append(name)") + "\nclass Block(LlamaMLP, Watches, name='x')"),
        "the __init_subclass__ of unusual.Watches would run",
    ),
    "allows no subclass": (
        edited(BODY, f"    def __init_subclass__(cls):\n        raise TypeError('final')\n\n{BODY}"),
        "the __init_subclass__ of unusual.Block would run",
    ),
    "metaclass": (
        edited("class Block(LlamaMLP)", "SEEN = []\nclass Meta(type):\n    def __init__(cls, *args):\n        SEEN.append(cls)\n\nclass Block(LlamaMLP, metaclass=Meta)"),
        "the metaclass of unusual.Meta would run",
    ),
    "name taken": (edited(BODY, f"    apply_mlp = 1\n\n{BODY}"), "it already has an attribute apply_mlp"),
    "name taken by a descriptor that raises": (
        edited(BODY, f"    class Raises:\n        def __get__(self, *_):\n            raise OSError\n\n    apply_mlp = Raises()\n\n{BODY}"),
        "it already has an attribute apply_mlp",
    ),
    "in a function": (
        f"{HEAD}\ndef make(factor):\n    class Block(LlamaMLP):\n        def forward(self, x):\n            {MLP[:-1]}) * factor\n    return Block\n\nBlock = make(2.0)\n",
        "is defined in a function",
    ),
    "static method": (
        edited(BODY, "    @staticmethod\n    def forward(x):\n        return x\n\n    def other(self, x):\n"), "",
    ),
    "a lambda": (f"{HEAD}\nclass Block(LlamaMLP):\n    forward = lambda self, x: {MLP.removeprefix('return ')}\n", "replaced by unusual.Block.<lambda>"),
    "a partial method": (
        f"{HEAD}\nimport functools\n\nclass Block(LlamaMLP):\n    def run(self, x):\n        {MLP}\n\n    forward = functools.partialmethod(run)\n",
        "partialmethod",
    ),
    "made by exec": (f"{HEAD}\nexec(compile('''class Block(LlamaMLP):\\n    def forward(self, x):\\n        {MLP}''', '<no file>', 'exec'))\n", "there is no source"),
    "under a condition that the text does not decide": (
        f"{HEAD}\nimport sys\n\nclass Block(LlamaMLP):\n    if sys.argv:\n        def forward(self, x):\n            {MLP}\n    else:\n        def forward(self, x):\n            return x\n",
        "",
    ),
}  # fmt: skip
"""Texts that are left upstream, and why."""


@pytest.fixture
def load(tmp_path, monkeypatch):
    def load(text):
        path = tmp_path / "unusual.py"
        path.write_bytes(text.encode("latin-1" if "latin-1" in text else "utf-8"))
        spec = importlib.util.spec_from_file_location("unusual", path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "unusual", module)
        spec.loader.exec_module(module)
        return module

    return load


def instances(cls):
    """An untouched module of a class with adapters, and one to be patched. Both are made as upstream's, then changed."""
    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=8, intermediate_size=12, num_attention_heads=2, num_key_value_heads=2)
    base = next(base for base in cls.__mro__ if base.__module__.startswith("transformers."))
    base = cls if "__slots__" in vars(cls) else base  # its instances have another layout
    module = base(config, 0) if base.__name__ == "LlamaAttention" else base(config)
    targets = [name for name in module._modules if name.endswith("_proj")]
    module = add_lora(module, target_modules=targets, task_type=None).base_model.model
    reference = copy.deepcopy(module)
    for one in (reference, module):
        vars(object)["__class__"].__set__(one, cls)
    return reference, module


def results(module):
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = module(x)
    y.square().sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in module.parameters() if p.grad is not None)]


def assert_equal(reference, module):
    expected, found = results(reference), results(module)
    assert len(expected) == len(found)
    for a, b in zip(expected, found, strict=True):
        assert (a - b).norm() <= 1e-5 * a.norm()


@pytest.mark.parametrize("name", PATCHED)
def test_it_is_patched(name, load):
    reference, module = instances(load(PATCHED[name]).Block)
    before = type(module)
    report = patchkit.apply(module, trust="always")
    assert {row.level for row in report.rows} == {"fused"}, str(report)
    assert patch_of(module) is not None
    assert_equal(reference, module)
    for clone in (copy.deepcopy(module), copy.copy(module)):
        module.zero_grad()
        reference.zero_grad()
        clone.zero_grad()
        assert_equal(reference, clone)
    assert type(copy.deepcopy(module)) is type(module)
    assert patchkit.revert(module) == 1
    assert type(module) is before


@pytest.mark.parametrize("name", PATCHED)
def test_the_patched_source_is_shown_line_by_line(name, load):
    _, module = instances(load(PATCHED[name]).Block)
    patchkit.apply(module, trust="always")
    function = type(module).forward
    lines = linecache.getlines(function.__code__.co_filename)
    assert sum("self.apply_" in line or "this.apply_" in line for line in lines) >= 1
    assert "def forward" in lines[function.__code__.co_firstlineno - 1]
    try:
        module(torch.zeros(2, 5))
    except RuntimeError:
        text = traceback.format_exc()
    assert "apply_mlp(x)" in text or "apply_qkv(x)" in text
    assert "def forward" in inspect.getsource(function)


@pytest.mark.parametrize("name", LEFT)
def test_it_is_left_upstream_with_the_reason(name, load):
    text, reason = LEFT[name]
    loaded = load(text)
    reference, module = instances(loaded.Block)
    seen = list(getattr(loaded, "SEEN", ()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = patchkit.apply(module, trust="always", linear=False)
    assert {row.level for row in report.rows} == {"upstream"}, str(report)
    assert all(reason in row.reason and row.reason for row in report.rows), str(report)
    assert type(module) is loaded.Block
    assert seen == list(getattr(loaded, "SEEN", ()))
    if name != "static method":
        assert_equal(reference, module)


def test_a_frozen_module_is_never_asked(load):
    """Neither when it is patched, nor when it is given back."""
    module = instances(load(PATCHED["frozen"]).Block)[1]
    with pytest.raises(TypeError, match="frozen"):
        module.anything = 1
    with patchkit.patched(module, trust="always") as report:
        assert report.counts == {"fused": 1}
    assert patch_of(module) is None


def test_copies_are_made_as_upstreams_are(load):
    loaded = load(PATCHED["own state"])
    _, module = instances(loaded.Block)
    patchkit.apply(module, trust="always")
    assert copy.deepcopy(module).loaded is True
    assert pickle.loads(pickle.dumps(module)).loaded is True
    assert type(pickle.loads(pickle.dumps(module))) is loaded.Block


SCALED = """from torch import nn

class Scaled(nn.Embedding):
    def forward(self, input_ids):
        {note}
        return super().forward(input_ids) * self.embed_scale.to(self.weight.dtype)
"""


@pytest.mark.parametrize("note", ['"""Text\nat column 0."""', "# a comment\n# at column 0", "\f", '"""a\x0cb"""'])
def test_a_scaled_embedding_is_read(note, load):
    assert is_scaled_embedding(load(SCALED.format(note=note)).Scaled)


@pytest.mark.parametrize("note", ["input_ids = input_ids + 1\n# at column 0", "if 1:\n            return None"])
def test_another_embedding_is_not(note, load):
    assert not is_scaled_embedding(load(SCALED.format(note=note)).Scaled)


def test_a_block_that_is_the_whole_model_is_copied_with_what_is_around_it(tmp_path, monkeypatch):
    """PEFT's model hands on what it lacks, ``__deepcopy__`` too, to the model within it."""
    path = tmp_path / "whole_model.py"
    path.write_text(
        "from torch import nn\n\nclass Whole(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.fc1, self.act, self.fc2 = nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)\n\n"
        "    def forward(self, x):\n        return self.fc2(self.act(self.fc1(x)))\n"
    )
    spec = importlib.util.spec_from_file_location("whole_model", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "whole_model", module)
    spec.loader.exec_module(module)
    model = add_lora(module.Whole(), target_modules=["fc1", "fc2"], task_type=None)
    patchkit.apply(model, trust="always")
    assert patch_of(model.base_model.model) is not None
    again = copy.deepcopy(model)
    assert type(again) is type(model)
    assert patch_of(again.base_model.model) is not None
    x = torch.randn(3, 8)
    assert torch.equal(again(x), model(x))
    inner = copy.deepcopy(model.base_model.model)
    assert patch_of(inner) is not None
    assert inner is not model.base_model.model
