"""Which rules exist: the files of this folder, in the order in which they are tried."""

from __future__ import annotations

import importlib
import pkgutil
from functools import lru_cache

import patchkit.rewrite.rules
from patchkit.arch.spec import Block, Part
from patchkit.rewrite.rules.rule import Rule
from patchkit.rewrite.sites import RuleName


@lru_cache(maxsize=1)
def rules() -> tuple[Rule, ...]:
    """Every rule: those that rewrite all of a part first, then those that take what is left; each kind by name."""
    folder = patchkit.rewrite.rules.__path__
    modules = (importlib.import_module(f"patchkit.rewrite.rules.{one.name}") for one in pkgutil.iter_modules(folder))
    found = {value.name: value for module in modules for value in vars(module).values() if isinstance(value, Rule)}
    return tuple(sorted(found.values(), key=lambda rule: (not rule.whole, rule.name)))


def rules_of(part: Part, block: Block | None = None) -> tuple[Rule, ...]:
    """The rules for a part of a block, in the order of :func:`rules`; of any block, or of this one."""
    return tuple(rule for rule in rules() if part in rule.parts and (block is None or isinstance(block, rule.blocks)))


def rule_named(name: RuleName) -> Rule:
    """The rule of a site.

    Raises:
        KeyError: there is no such rule.
    """
    return {rule.name: rule for rule in rules()}[name]
