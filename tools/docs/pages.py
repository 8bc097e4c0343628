"""Generated pages: each from the code or the file that it is about, so that none can go stale."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from patchkit.advice import REMEDIES
from patchkit.arch.registry import find
from patchkit.arch.spec import BLOCK_PARTS, Block
from patchkit.cli.diff import diff_lines
from patchkit.rewrite.rewriter import rewrite
from patchkit.rewrite.rules.registry import rules
from patchkit.rewrite.rules.rule import Rule

ROOT = Path(__file__).parents[2]

GALLERY = ("llama", "gemma3", "qwen2", "pixtral", "qwen2_5_vl")
"""Whose rewrites are shown: one with nothing particular, norms after the projections, biases, two vision towers."""

_SECTIONS = {
    "extend/architecture.md": ("Adding an architecture", "Model types"),
    "extend/rule.md": ("Adding a rule",),
    "extend/reader.md": ("Adding a reader",),
}
"""Sections of CONTRIBUTING.md that are pages of their own."""


_BLOCKS: tuple[Block, ...] = tuple(kind("Block") for kind in get_args(Block))


def pages() -> dict[str, str]:
    """Markdown by the name of its page."""
    contributing = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    return {
        "rules.md": "\n".join(_rules()),
        "gallery.md": "\n".join(_gallery()),
        "compatibility.md": _without_links((ROOT / "compat_matrix.md").read_text("utf-8")),
        "models.md": _without_links((ROOT / "coverage.md").read_text("utf-8")),
        "performance.md": _without_links((ROOT / "benchmarks" / "README.md").read_text("utf-8")),
        "gpu.md": _without_links((ROOT / "benchmarks" / "gpu.md").read_text("utf-8")),
        "changelog.md": _without_links((ROOT / "CHANGELOG.md").read_text("utf-8")),
        "extend/contributing.md": _without_links(contributing),
        **{
            page: _without_links("\n".join(section_of(contributing, title) for title in titles))
            for page, titles in _SECTIONS.items()
        },
    }


def section_of(text: str, title: str) -> str:
    """A section of a Markdown text, with its heading as that of a page.

    Raises:
        ValueError: there is none of this title.
    """
    found = re.search(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise ValueError(f"there is no section {title!r}")
    return found[0].replace("## ", "# ", 1)


def _without_links(text: str) -> str:
    """Text whose links to files of the repository are names: on the site there are no such files."""
    return re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]*\)", r"\1", text)


def _rules() -> Iterator[str]:
    yield "# Rules"
    yield ""
    yield (
        "A rule recognises one form of code and says what it becomes. The examples are bodies of "
        "`forward(self, x, y)`. The test-suite runs each of them: what a rule takes, and what it leaves and why."
    )
    for rule in rules():
        yield from _rule(rule)


def _rule(rule: Rule) -> Iterator[str]:
    kind = "the whole part" if rule.whole else "what other rules have left"
    blocks = "" if rule.blocks == Rule.blocks else f" of {', '.join(block.__name__ for block in rule.blocks)}"
    yield f"\n## {rule.name}\n"
    yield f"{_first_paragraph(rule)}\n"
    yield f"For {', '.join(rule.parts)}{blocks}; it takes {kind}. The new code calls `self.{rule.method}(...)`.\n"
    yield "### Taken"
    for before, after in rule.valid:
        yield f"\n```diff\n{_marked('-', before)}\n{_marked('+', after)}\n```"
    yield "\n### Left\n"
    for body, part_of_reason in rule.invalid:
        yield f"```python\n{body}\n```\n\n{_reason(rule, body, part_of_reason)}.\n"


def _reason(rule: Rule, body: str, part: str) -> str:
    """The whole reason that the rewriter gives for an example, of which the rule has a part."""
    block = next(one for one in _BLOCKS if isinstance(one, rule.blocks) and set(rule.parts) & set(one.parts))
    source = f"class Block:\n    def forward(self, x, y):\n{textwrap.indent(body, ' ' * 8)}\n"
    return next(skip.reason for skip in rewrite(source, block).skips if part in skip.reason)


def _first_paragraph(rule: Rule) -> str:
    from importlib import import_module

    module = import_module(rule.plan.__module__)
    return re.sub(r"``", "`", (module.__doc__ or "").split("\n\n")[0].replace("\n", " "))


def _marked(sign: str, body: str) -> str:
    return "\n".join(f"{sign}{line}" for line in body.splitlines())


def _gallery() -> Iterator[str]:
    yield "# Gallery"
    yield ""
    yield (
        "What `patchkit diff` prints for some architectures of the installed transformers. "
        "Lines that begin with `#` say which rule took which call."
    )
    for name in GALLERY:
        yield f"\n## {name}\n\n```diff"
        yield from diff_lines(find(name), frozenset(BLOCK_PARTS), 3)
        yield "```"


def activations() -> str:
    """Rows of a table: every activation that is fused, and what it computes."""
    from patchkit_kernels.ops.activations import PLAIN, Activation

    names: tuple[Activation, ...] = get_args(Activation)
    return "\n".join(f"| `{name}` | {_formula(PLAIN[name].activation.value)} |" for name in names)


def remedies() -> str:
    """Rows of a table: every reason for which a part is not fused, and what to do about it."""
    return "\n".join(f"| `{one.reason}` | {one.text} |" for one in REMEDIES)


def _formula(function: Any) -> str:
    """What the docstring of an activation's Triton function says of it, in one sentence.

    Raises:
        ValueError: it begins with no formula.
    """
    documentation = str(getattr(function, "fn", function).__doc__)  # without Triton it is an ordinary function
    found = re.match(r"(``.+?``) of an fp32 block(.*?)\.$", documentation.split("\n\n")[0], re.DOTALL)
    if found is None:
        raise ValueError(f"no formula begins {documentation!r}")
    return (found[1] + found[2]).replace("``", "`").replace("\n", " ")
