"""Golden pairs: a class before, the class after, and in its header what the rewriter is to report.

``golden/attention``, ``golden/mlp``, ``golden/shared`` and ``golden/loss`` hold a pair for each idiom, under its name.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from patchkit.arch.spec import BLOCKS, Block, LanguageModel
from patchkit.rewrite.rewriter import rewrite
from patchkit.rewrite.rules.registry import rule_named
from patchkit.rewrite.sites import Rewritten

GOLDEN = Path(__file__).parents[1] / "golden"
PAIRS = sorted(path.relative_to(GOLDEN).as_posix().removesuffix(".before.py") for path in GOLDEN.glob("*/*.before.py"))


def load(name: str) -> tuple[str, str, Block, list[str]]:
    """Text before, text after, block, and the lines of the expected report."""
    before = (GOLDEN / f"{name}.before.py").read_text()
    after = (GOLDEN / f"{name}.after.py").read_text()
    header = [line for line in before.splitlines() if line.startswith("# ")]
    (block,) = (line.removeprefix("# block: ") for line in header if line.startswith("# block: "))
    report = [line for line in header if line.startswith(("# site: ", "# skip: "))]
    return before, after, eval(block, {kind.__name__: kind for kind in (*BLOCKS, LanguageModel)}), report


def report(rewritten: Rewritten) -> list[str]:
    sites = [
        f"# site: line {site.line}: {site.part} {site.rule}: {' '.join(site.calls)}"
        + ("" if site.gate_first else " (up in the first half)")
        for site in rewritten.sites
    ]
    skips = [
        f"# skip: {f'line {skip.line}: ' if skip.line else ''}{skip.part}: {skip.reason}" for skip in rewritten.skips
    ]
    return sites + skips


def test_every_golden_file_has_its_other_half() -> None:
    assert {path.relative_to(GOLDEN).as_posix() for path in GOLDEN.rglob("*.py")} == {
        f"{name}.{half}.py" for name in PAIRS for half in ("before", "after")
    }
    assert len(PAIRS) > 50


@pytest.mark.parametrize("name", PAIRS)
def test_golden_pair(name: str) -> None:
    before, after, block, expected = load(name)
    rewritten = rewrite(before, block, filename=name)
    assert rewritten.source == after
    assert report(rewritten) == expected
    compile(rewritten.source, name, "exec")


@pytest.mark.parametrize("name", PAIRS)
def test_rewriting_twice_changes_nothing(name: str) -> None:
    before, after, block, _ = load(name)
    again = rewrite(after, block)
    assert again.source == after
    if after != before:
        assert not again.sites
        assert {skip.reason for skip in again.skips} == {"already rewritten"}


@pytest.mark.parametrize("name", PAIRS)
def test_sites_and_method_source_point_into_the_text(name: str) -> None:
    before, after, block, _ = load(name)
    rewritten = rewrite(before, block)
    lines = before.splitlines()
    for site in rewritten.sites:
        assert site.calls[0] in lines[site.line - 1]
    assert after.splitlines(keepends=True)[rewritten.line - 1 :] == rewritten.method_source.splitlines(keepends=True)
    assert rewritten.method_source.lstrip().startswith(("def forward", "async def forward", "@"))


@pytest.mark.parametrize("name", PAIRS)
def test_sites_that_call_one_method_agree_on_what_it_has_to_know(name: str) -> None:
    before, _, block, _ = load(name)
    known: dict[str, dict] = {}
    for site in rewrite(before, block).sites:
        rule = rule_named(site.rule)
        arguments = rule.arguments(block, site)
        assert known.setdefault(rule.method, arguments) == arguments
