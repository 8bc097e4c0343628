"""The options are said once: type checkers, the signature and ``apply`` itself know the same ones."""

from __future__ import annotations

import inspect
from dataclasses import fields

import pytest

import patchkit
from patchkit.arch.spec import BLOCK_PARTS, PARTS, Attention, GatedMLP
from patchkit.errors import UnknownOptionError
from patchkit.options import NamedOptions, Options, checked


def test_type_checkers_know_what_there_is():
    assert NamedOptions.__annotations__.keys() == {field.name for field in fields(Options)}
    types = {name: one.__forward_arg__ for name, one in NamedOptions.__annotations__.items()}
    assert types == {field.name: field.type for field in fields(Options)}


@pytest.mark.parametrize("function", [patchkit.apply, patchkit.patched], ids=["apply", "patched"])
def test_the_signature_has_every_option_and_its_default(function):
    first, *rest = inspect.signature(function).parameters.values()
    assert (first.name, first.default) == ("model", first.empty)
    assert {one.name: one.default for one in rest} == {field.name: field.default for field in fields(Options)}
    assert {one.kind for one in rest} == {inspect.Parameter.KEYWORD_ONLY}


@pytest.mark.parametrize("part", PARTS)
def test_each_part_is_an_option(part):
    for given, by_default in (({}, set(PARTS) - {"loss", "norm"}), ({"memory": "tiled"}, set(PARTS) - {"loss"})):
        assert checked(given).parts == by_default
        assert checked({part: False, **given}).parts == by_default - {part}
        # Of norms nothing is asked without less memory being asked for.
        assert checked({part: True, **given}).parts == by_default | ({part} - ({"norm"} if not given else set()))
    with pytest.raises(UnknownOptionError, match="takes True or False"):
        checked({part: 1})


def test_the_parts_of_blocks():
    assert {part for block in (Attention("A"), GatedMLP("M")) for part in block.parts} == set(BLOCK_PARTS)
    assert set(BLOCK_PARTS) < set(PARTS)
