"""Modules of Python that are weird and legal: a network whose attention and MLP are written as nobody writes them.

``network(draw)`` gives the text of a file with ``Attention``, ``MLP`` and ``Net``. Names of helpers are honest (a helper
that draws is called so), since code is judged by names where its proof is not asked for.
"""

from __future__ import annotations

import textwrap
from typing import NamedTuple

from hypothesis import strategies as st

HEAD = '''\
import functools

import torch
import torch.nn.functional as F
from torch import nn

CALLS = []
OWN = {}


def counted(function):
    """A decorator that leaves a trace each time it is applied, and each time its function is called."""
    CALLS.append("applied")

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        CALLS.append("called")
        return function(*args, **kwargs)

    return wrapper


def halved(function):
    @functools.wraps(function)
    def wrapper(self, *args, **kwargs):
        return 0.5 * function(self, *args, **kwargs)

    return wrapper


def with_factor(factor):
    def decorate(function):
        @functools.wraps(function)
        def wrapper(self, *args, **kwargs):
            return factor * function(self, *args, **kwargs)

        return wrapper

    return decorate


def rotate(tensor):
    return tensor.roll(1, -1)


def drop_some(tensor):
    return F.dropout(tensor, 0.25)


class Registering:
    """A base whose heirs are written down."""

    HEIRS = []

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        Registering.HEIRS.append(cls.__name__)


class Insisting:
    """A base whose heirs have to say something."""

    def __init_subclass__(cls, *, reason=None, **kwargs):
        super().__init_subclass__(**kwargs)
        if reason is None:
            raise TypeError("an heir needs a reason")


class Meta(type):
    def __call__(cls, *args, **kwargs):
        return super().__call__(*args, **kwargs)


class Helpful:
    def shape_of(self, tensor):
        return tensor.shape

    def drop_helper(self, tensor):
        return F.dropout(tensor, 0.1)
'''

TAIL = """

class Net(nn.Module):
    def __init__(self, act_fn):
        super().__init__()
        self.config = None
        self.embedding = nn.Embedding(19, 12)
        self.attention = Attention()
        self.mlp = MLP()
        self.mlp.act_fn = act_fn
        self.head = nn.Linear(12, 5)

    def forward(self, ids):
        hidden = self.embedding(ids)
        hidden = hidden + self.attention(hidden)
        hidden = hidden + self.mlp(hidden)
        return self.head(hidden)
"""

INIT = {
    "Attention": dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), (12, 12)),
    "MLP": {"gate_proj": (12, 10), "up_proj": (12, 10), "down_proj": (10, 12)},
}

DECORATORS = ("@counted", "@halved", "@with_factor(1.5)", "@torch.no_grad()", "@torch.autocast('cpu', enabled=False)")
BASES = {
    "nn.Module": 12,
    "Helpful, nn.Module": 2,
    "nn.Module, Helpful": 2,
    "Registering, nn.Module": 1,
    "Insisting, nn.Module, reason=1": 1,
    "nn.Module, metaclass=Meta": 1,
}
SIGNATURES = (
    "self, x",
    "self, x, *, flag=True",
    "self, x, scale=(lambda: 2.0)()",
    "self, x: torch.Tensor, /",
    "self, x, *_, **__",
)

# What may stand between the calls of the projections. {0} is a local variable that holds a tensor.
NOISE = (
    "pass  # a comment",
    "# a comment alone",
    '"a string alone"',
    "'''a string\nof several lines, at column 0\n'''",
    "{0} = {0} * 1.0",
    "{0} = rotate({0})",
    "{0} = drop_some({0})",
    "{0} = F.dropout({0}, 0.2)",
    "{0} = {0}.view({0}.shape)",
    "{0} += 1",
    "{0}, other = {0}, 1",
    "other = [{0} for _ in range(2)][0]",
    "other = (lambda: {0})()",
    "other = ({0} if {0}.shape[0] else x)",
    "for _ in range(2): {0} = {0} + 1",
    "if x.shape[0] > 100: return x",
    "assert x.dim() == 3, 'never'",
    "with torch.no_grad(): other = {0} * 2",
    "try:\n    other = {0}\nfinally:\n    pass",
    "def inner(value={0}):\n    return value",
    "self.seen = {0}.shape",
    "(other := {0})",
    "del other\nother = 1",
    "match {0}.dim():\n    case 3:\n        other = 3\n    case _:\n        other = 4",
    "globals()['TRACE'] = 1",
    "other = __class__.__name__",
    "other = super().__repr__",
    "other = self.__secret",
    "other = locals()",
    "x = x.clone()",
)

PROJECTED = (
    "{p}", "{p}", "{p}", "({p})", "{p}.view(x.shape)", "rotate({p})", "{p} * 2", "2 * {p}", "[{p}][0]", "({p}, 1)[0]",
    "{p}.transpose(0, 1).transpose(0, 1)", "({p} if x.dim() else x)", "(lambda: {p})()", "F.dropout({p}, 0.1)",
)  # fmt: skip


class Source(NamedTuple):
    """The text of a file, and what it has of the rarer things, for the reader of a failure."""

    text: str
    features: tuple[str, ...]


def one_in(draw: st.DrawFn, count: int) -> bool:
    return draw(st.integers(1, count)) == count


def noise(draw: st.DrawFn, names: list[str]) -> list[str]:
    if not one_in(draw, 4):
        return []
    return draw(st.sampled_from(NOISE)).format(draw(st.sampled_from(names))).split("\n")


def attention_body(draw: st.DrawFn) -> list[str]:
    lines, names = ["other = 0"], ["x"]
    order = draw(st.permutations(["q", "k", "v"]))
    for name in order:
        lines += noise(draw, names)
        call = draw(st.sampled_from(PROJECTED)).format(p=f"self.{name}_proj(x)")
        lines.append(f"{name} = {call}")
        names.append(name)
    lines += noise(draw, names)
    lines.append("mixed = torch.softmax(q @ k.transpose(-1, -2), -1) @ v")
    output = draw(st.sampled_from(("self.o_proj(mixed)", "self.o_proj(mixed) + x", "rotate(self.o_proj(mixed))")))
    return [*lines, f"return {output}"]


def mlp_body(draw: st.DrawFn) -> list[str]:
    """gate, up and the activation in any order that computes the same, in temporaries or not."""
    lines, names = ["other = 0"], ["x"]
    form = draw(st.integers(0, 4))
    if form == 0:
        lines.append("hidden = self.act_fn(self.gate_proj(x)) * self.up_proj(x)")
    elif form == 1:
        lines.append("hidden = self.up_proj(x) * self.act_fn(self.gate_proj(x))")
    else:
        up = [["up = self.up_proj(x)"], noise(draw, names)]
        gate = [["gate = self.gate_proj(x)"], noise(draw, names)]
        act = [["gate = self.act_fn(gate)"], noise(draw, names)]
        parts = {2: (up, gate, act), 3: (gate, up, act), 4: (gate, act, up)}[form]
        lines += [line for part in parts for group in part for line in group]
        lines.append(f"hidden = {draw(st.sampled_from(('gate * up', 'up * gate')))}")
    lines += noise(draw, ["x"])
    return [*lines, "return self.down_proj(hidden)"]


def class_text(draw: st.DrawFn, name: str, body: list[str], features: list[str]) -> str:
    bases = draw(st.sampled_from([base for base, weight in BASES.items() for _ in range(weight)]))
    decorators = draw(st.lists(st.sampled_from(DECORATORS), max_size=2)) if one_in(draw, 3) else []
    made = "\n".join(
        f"        self.{attribute} = nn.Linear({into}, {out})" for attribute, (into, out) in INIT[name].items()
    )
    lines = [f"class {name}({bases}):", "    def __init__(self):", "        super().__init__()", made]
    lines += ["        self.__secret = 3", ""]
    lines += [f"    {decorator}" for decorator in decorators]
    lines.append(f"    def forward({draw(st.sampled_from(SIGNATURES))}):")
    if one_in(draw, 5):
        lines.append('        """A docstring.\nIts second line stands at column 0.\n        """')
    # A string of several lines keeps its own first columns.
    lines += [line if line.endswith(("column 0", "'''")) and line[:3] != "'''" else f"        {line}" for line in body]
    if bases != "nn.Module":
        features.append(bases)
    features += decorators
    return "\n".join(lines) + "\n"


HEIRS = {
    "plain": "pass",
    "super": "def forward(self, x):\n        return 2 * super().forward(x)",
    "property": """@property
    def {first}(self):
        CALLS.append("looked up")
        return lambda x: 0.5 * self._modules["{first}"](x)""",
    "getattr": """def __getattr__(self, name):
        found = super().__getattr__(name)
        return (lambda x: 0.5 * found(x)) if name == "{first}" else found""",
    "getattribute": """def __getattribute__(self, name):
        found = super().__getattribute__(name)
        return (lambda x: 0.5 * found(x)) if name == "{first}" else found""",
    "wrapped": "pass",
}
"""Bodies of subclasses that inherit a block's forward, or call it, or hide one of its projections."""


def heir(draw: st.DrawFn, name: str, features: list[str]) -> str:
    """A subclass that the modules of a finished model are given, as users do who change what they did not write."""
    kind = draw(st.sampled_from(("none",) * 8 + tuple(HEIRS)))
    if kind == "none":
        return ""
    features.append(f"{name}: {kind}")
    body = HEIRS[kind].format(first=next(iter(INIT[name])))
    reason = ", reason=2" if "Insisting, nn.Module, reason=1" in features else ""
    wrapped = f"{name}.forward = halved({name}.forward)\n" if kind == "wrapped" else ""
    return f"\n\nclass Own{name}({name}{reason}):\n    {body}\n\n\n{wrapped}OWN[{name}] = Own{name}\n"


@st.composite
def network(draw: st.DrawFn) -> Source:
    """A file of a network."""
    features: list[str] = []
    attention = class_text(draw, "Attention", attention_body(draw), features)
    attention += heir(draw, "Attention", features)
    own: list[str] = []
    mlp = class_text(draw, "MLP", mlp_body(draw), own)
    mlp += heir(draw, "MLP", own)
    text = "\n\n".join((HEAD, attention, mlp)) + TAIL
    layout = draw(st.sampled_from(("",) * 5 + ("crlf", "tabs", "form feed", "future", "indented")))
    if layout == "crlf":
        text = text.replace("\n", "\r\n")
    elif layout == "tabs":
        text = text.replace("    ", "\t")
    elif layout == "form feed":
        text = text.replace("    def forward(", "\f\n    def forward(", 2)
    elif layout == "future":
        text = "from __future__ import annotations\n" + text
    elif layout == "indented":  # the classes stand under a condition
        head, rest = text.split("\n\nclass Attention", 1)
        inner, tail = ("class Attention" + rest).split("\n\nclass Net", 1)
        if "column 0" not in inner:
            text = f"{head}\n\nif True:\n{textwrap.indent(inner, '    ')}\n\nclass Net{tail}"
    return Source(text, (*features, *own, *([layout] if layout else [])))
