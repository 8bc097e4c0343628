"""The table of shapes that the commands share."""

from __future__ import annotations

import pytest

from patchkit.errors import EstimateError
from patchkit.estimation.configuration import configuration_of
from patchkit.estimation.shapes import OTHER_NAMES, SHAPES, shape_named


@pytest.mark.parametrize("name", [*SHAPES, *OTHER_NAMES])
def test_every_name_has_a_configuration(name):
    shape = shape_named(name)
    config = configuration_of(name)
    assert type(config).__name__ == SHAPES[shape][0]
    for field, value in SHAPES[shape][1].items():
        assert getattr(config, field) == value
    assert config.hidden_size % config.num_attention_heads == 0
    assert config.num_attention_heads % config.num_key_value_heads == 0


@pytest.mark.parametrize(("name", "near"), [("llama-9b", "'llama-8b'"), ("gemma1b", "'gemma-1b'"), ("tinyy", "'tiny'")])
def test_near_misses(name, near):
    with pytest.raises(
        EstimateError, match=rf"there is no shape '{name}'; there are llama-8b, .*did you mean .*{near}"
    ):
        shape_named(name, also=["tiny"])


def test_nothing_is_near():
    with pytest.raises(EstimateError) as caught:
        shape_named("something else")
    assert "did you mean" not in str(caught.value)
