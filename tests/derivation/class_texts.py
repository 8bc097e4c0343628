"""Classes made of text, for the tests of derivation: an ``__init__`` and the body of ``forward(self, x, y, flag)``."""

from __future__ import annotations

import re
import textwrap

LAYERS = {
    "drop": "nn.Dropout(0.1)", "norm": "nn.LayerNorm(8)", "act": "ACT2FN[config.hidden_act]", "act_fn": "nn.SiLU()",
    "activation": "make_activation(config)", "dropout": "torch.nn.Dropout(0.1)",
}  # fmt: skip
"""What ``__init__`` makes of attributes of these names; every other that is called is a linear layer."""


def class_of(body: str, *, linear: str = "nn.Linear(8, 8)", init: bool = True, name: str = "Block") -> str:
    """The text of a class.

    Args:
        body: of ``forward``.
        linear: what makes its linear layers.
        init: whether the text has an ``__init__``; without one, nothing says what the attributes are.
        name: of the class.
    """
    lines = [f"class {name}(nn.Module):"]
    if init:
        lines.append("    def __init__(self, config):")
        lines.append("        super().__init__()")
        for attribute in dict.fromkeys(re.findall(r"self\.(\w+)\(", body)):
            if attribute != "helper":
                lines.append(f"        self.{attribute} = {LAYERS.get(attribute, linear)}")
        lines.append("")
    lines.append("    def forward(self, x, y=None, flag=True):")
    return "\n".join(lines) + "\n" + textwrap.indent(body, " " * 8) + "\n"
