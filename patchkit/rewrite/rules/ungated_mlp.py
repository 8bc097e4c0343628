"""An ungated MLP: ``down(activation(up(x)))``, in however many statements it is written.

The call of down becomes ``self.apply_mlp(x)``, as for a gated one. What comes after it (dropout, a residual) stays.
"""

from __future__ import annotations

from typing import Any

from patchkit.arch.spec import MLP, Block, Part
from patchkit.rewrite.edits import Edits
from patchkit.rewrite.mlp_match import METHOD, Match, Matcher, plan_mlp
from patchkit.rewrite.parsed_method import ParsedMethod
from patchkit.rewrite.rules.rule import Rule
from patchkit.rewrite.sites import Site

VALID = (
    ("return self.fc2(self.activation_fn(self.fc1(x)))", "return self.apply_mlp(x)"),
    (
        "return y + self.drop(self.fc2(self.activation_fn(self.fc1(x + y))))",
        "return y + self.drop(self.apply_mlp(x + y))",
    ),
    (
        "x = self.fc1(x)\nx = self.activation_fn(x)\nx = self.fc2(x)\nreturn self.drop(x)",
        "x = self.apply_mlp(x)\nreturn self.drop(x)",
    ),
    (
        "h = self.activation_fn(self.fc1(x))\nz = y.shape\nreturn self.fc2(h), z",
        "z = y.shape\nreturn self.apply_mlp(x), z",
    ),
    ("h = self.activation_fn(self.fc1(x))\nreturn self.drop(self.fc2(h))", "return self.drop(self.apply_mlp(x))"),
)

INVALID = (
    ("return self.fc2(self.drop(self.activation_fn(self.fc1(x))))", "`self.drop("),
    ("return self.fc2(self.activation_fn(self.fc1(x).clamp(max=y)))", "`self.fc1(x).clamp(max=y)`"),
    ("return self.fc2(self.activation_fn(self.fc1(x), y))", "`self.activation_fn(self.fc1(x), y)`"),
    ("return self.fc2(self.fc1(x))", "`self.fc1(x)` stands in between"),
    ("return self.fc2(self.activation_fn(self.fc1(x)) * y)", "stands in between"),
    ("return self.fc2(self.activation_fn(x))", "`x` is not computed in the same straight line"),
    ("return self.activation_fn(self.fc1(x))", "`self.fc2` is not called"),
    ("return map(lambda x: self.fc2(self.activation_fn(self.fc1(x))), y)", "stands in a nested function"),
    ("h = self.activation_fn(self.fc1(x))\nreturn self.fc2(h), h", "is used elsewhere, too"),
    ("h = self.activation_fn(self.fc1(x + y))\nreturn self.fc2(h)", "takes something else than a variable"),
    ("h = self.activation_fn(self.fc1(x))\nreturn f(self.drop(y), self.fc2(h))", "may draw random numbers"),
    ("h = self.fc1(x)\nx = y\nreturn self.fc2(self.activation_fn(h))", "is bound again"),
    ("h = self.fc1(x)\nif y:\n    h = self.activation_fn(h)\nreturn self.fc2(h)", "`if y: h = self.activation_fn(h)`"),
    ("h = self.activation_fn(self.fc1(x))\nh = F.dropout(h, 0.1)\nreturn self.fc2(h)", "`F.dropout(h, 0.1)`"),
)


def _plan(method: ParsedMethod, block: Block, part: Part, edits: Edits) -> None:
    assert isinstance(block, MLP)
    plan_mlp(method, block, part, edits, "an MLP", RULE.name, lambda down: _UngatedMatcher(method, block, down).match())


class _UngatedMatcher(Matcher):
    """Compares what one call of down is given with what an MLP gives it."""

    def match(self) -> Match:
        """The MLP.

        Raises:
            NoMatchError: it is none.
        """
        activated = self.given_to_down()
        if not self.is_activated(activated):
            self.fail(activated)
        (up,) = self.block.inputs
        self.sources.append(self.match_projection(self.follow_activation(activated), up))
        return self.result()


def _arguments(block: Block, site: Site) -> dict[str, Any]:
    assert isinstance(block, MLP)
    return {"up": block.up, "down": block.down, "activation": block.activation_function or block.activation}


RULE = Rule(
    name="ungated-mlp",
    parts=("mlp",),
    whole=True,
    valid=VALID,
    invalid=INVALID,
    plan=_plan,
    method=METHOD,
    arguments=_arguments,
    blocks=(MLP,),
    maker="apply_ungated_mlp",
)
