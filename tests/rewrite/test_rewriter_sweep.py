"""The installed transformers, read and never imported: every registered class, and every class with the usual names."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version

from patchkit.arch.registry import architectures
from patchkit.arch.spec import Attention, Block, GatedMLP
from patchkit.rewrite.rewriter import rewrite
from patchkit.rewrite.sites import Rewritten

PROJECTIONS = {Attention: {"q_proj", "k_proj", "v_proj"}, GatedMLP: {"gate_proj", "up_proj", "down_proj"}}


def transformers_folder() -> Path:
    spec = importlib.util.find_spec("transformers")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0])


REGISTERED = [
    pytest.param(architecture.module, block, id=f"{architecture.name}-{block.class_name}")
    for architecture in architectures().values()
    for block in architecture.blocks
    if architecture.module.startswith("transformers.")
]


@pytest.mark.parametrize(("module", "block"), REGISTERED)
def test_every_registered_class_is_rewritten_whole(module: str, block: Block) -> None:
    path = transformers_folder().joinpath(*module.split(".")[1:]).with_suffix(".py")
    if not path.exists() and Version(version("transformers")) < Version("4.50"):
        pytest.skip("transformers has this model since 4.49 or 4.50")
    rewritten = rewrite(path.read_text(), block, filename=str(path))
    rules = [site.rule for site in rewritten.sites]
    assert rules == (["qkv-together", "output-call"] if isinstance(block, Attention) else ["gated-mlp"])
    assert rewritten.skips == ()


def blocks_in(source: str) -> Iterator[tuple[Block, str]]:
    """Classes of a module that make projections of the usual names, with the text of their own forward."""
    lines = source.splitlines(keepends=True)
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            methods = {method.name: method for method in node.body if isinstance(method, ast.FunctionDef)}
            if {"__init__", "forward"} <= methods.keys():
                made = {
                    child.attr
                    for child in ast.walk(methods["__init__"])
                    if isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Store)
                }
                forward = "".join(lines[methods["forward"].lineno - 1 : methods["forward"].end_lineno])
                if made >= PROJECTIONS[Attention]:
                    yield Attention(node.name, o="o_proj" if "o_proj" in made else "out_proj"), forward
                if made >= PROJECTIONS[GatedMLP]:
                    yield GatedMLP(node.name, activation="act_fn" if "act_fn" in made else "activation_fn"), forward


@pytest.mark.slow
def test_every_class_of_transformers_with_these_names() -> None:
    seen: Counter[str] = Counter()
    rules_of: dict[tuple[Block, str], set[str]] = {}
    for path in sorted((transformers_folder() / "models").glob("*/modeling_*.py")):
        original = text = path.read_text()
        if "q_proj" not in text and "gate_proj" not in text:
            continue
        for block, forward in blocks_in(original):
            # Half of the methods are copies of another one.
            key = (dataclasses.replace(block, class_name=""), forward)
            if key not in rules_of:
                rewritten = rewrite(text, block, filename=str(path))
                assert rewritten.sites or rewritten.skips
                check_untouched(text, rewritten, block)
                text = rewritten.source
                rules_of[key] = {site.rule for site in rewritten.sites}
            kind = type(block).__name__
            seen.update({f"{kind} classes", *(f"{kind} {rule}" for rule in rules_of[key])})
        if text != original:
            compile(text, str(path), "exec", dont_inherit=True)
    # Of about 350 attention classes 100 are cross-attention and the like; of 165 MLPs a dozen are traps.
    assert seen["Attention qkv-together"] > 0.6 * seen["Attention classes"] > 150, seen
    assert seen["Attention output-call"] > 0.9 * seen["Attention classes"], seen
    assert seen["GatedMLP gated-mlp"] > 0.9 * seen["GatedMLP classes"] > 100, seen


def check_untouched(before: str, rewritten: Rewritten, block: Block) -> None:
    """Lines outside of the method stay, and in it every line that holds no projection (or dropped temporary)."""
    start = before.splitlines(keepends=True)[: rewritten.line - 1]
    rest = before.removeprefix("".join(start))
    new_rest = rewritten.source.removeprefix("".join(start))
    after = new_rest.removeprefix(rewritten.method_source)
    assert new_rest != rewritten.source or not start
    assert after != new_rest
    assert rest.endswith(after)
    method = rest.removesuffix(after).splitlines()
    names = block.projections()
    for line in difflib.ndiff(method, rewritten.method_source.splitlines()):
        if line.startswith("- ") and not any(name in line for name in names):
            assert any(site.rule == "gated-mlp" for site in rewritten.sites), line
        if line.startswith("+ "):
            assert any(word in line for word in ("apply_", "q", "k", "v")), line
