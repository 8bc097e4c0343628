"""The loss of a language model: ``self.apply_loss(x)`` computes it from what the head is given, without logits.

Upstream's lines, from the call of the head to that of the loss function, stay as they are under a condition: they run
where there are no labels, and where the new call gives None, because it cannot be proven to compute the same. Then and
only then are there logits, and nothing but the loss function and the output of the model may read them.
"""

from __future__ import annotations

from typing import Any

from patchkit.arch.spec import Block, LanguageModel, Part
from patchkit.rewrite.edits import Edits
from patchkit.rewrite.loss_match import METHOD, LossMatcher, NoLossError
from patchkit.rewrite.loss_text import rebuild
from patchkit.rewrite.parsed_method import ParsedMethod
from patchkit.rewrite.rules.rule import Rule
from patchkit.rewrite.sites import Site

_LOSS = "loss = None\nif y is not None:\n    loss = self.loss_function(logits, y, self.size)\n"
_LEFT = "    loss = None\n    if y is not None:\n        loss = self.loss_function(logits, y, self.size)\n"
_END = "return Output(loss=loss, logits=logits)"

VALID = (
    (
        f"logits = self.lm_head(x)\n{_LOSS}{_END}",
        "logits = loss = None\nif y is not None:\n    loss = self.apply_loss(x)(labels=y, vocab_size=self.size)\n"
        f"if loss is None:\n    logits = self.lm_head(x)\n{_LEFT}{_END}",
    ),
    (
        f"logits = self.lm_head(x[:, 1:]) * self.scale\n{_LOSS}{_END}",
        "states = x[:, 1:]\nlogits = loss = None\nif y is not None:\n"
        "    loss = self.apply_loss(states, multiplied=self.scale)(labels=y, vocab_size=self.size)\n"
        f"if loss is None:\n    logits = self.lm_head(states) * self.scale\n{_LEFT}{_END}",
    ),
)

INVALID = (
    (f"logits = self.lm_head(x)\nlogits[:, 0] = 0\n{_LOSS}{_END}", "`logits[:, 0] = 0` stands between"),
    (f"logits = self.lm_head(x)\n{_LOSS}return Output(loss=loss, logits=logits, top=logits.amax())", "uses the logits"),
    (f"logits = self.lm_head(x) + self.lm_head(y)\n{_LOSS}{_END}", "`self.lm_head` is called 2 times"),
    (f"logits = self.lm_head(x) + 1\n{_LOSS}{_END}", "`self.lm_head(x) + 1` is not known"),
    (f"logits = self.lm_head(x).tanh()\n{_LOSS}{_END}", "is not a soft cap"),
    ("logits = self.lm_head(x)\nreturn Output(logits=logits)", "`return Output(logits=logits)` stands between"),
    ("return self.lm_head(x)", "`self.lm_head(x)` is not assigned to a variable in a line of its own"),
)


def _plan(method: ParsedMethod, block: Block, part: Part, edits: Edits) -> None:
    assert isinstance(block, LanguageModel)
    calls = edits.untaken(method.calls_of(block.head))
    try:
        match = LossMatcher(method, calls).match()
    except NoLossError as error:
        edits.leave(calls, part, f"no loss: {error.obstacle.text}", error.obstacle.line)
        return
    rebuild(method, match, edits)
    edits.take(calls, Site(part, RULE.name, method.line(match.call.node), (block.head,)))


def _arguments(block: Block, site: Site) -> dict[str, Any]:
    assert isinstance(block, LanguageModel)
    return {"head": block.head}


RULE = Rule(
    name="loss-of-logits",
    parts=("loss",),
    whole=True,
    valid=VALID,
    invalid=INVALID,
    plan=_plan,
    method=METHOD,
    arguments=_arguments,
    blocks=(LanguageModel,),
)
