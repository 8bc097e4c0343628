"""``benchmarks/README.md`` is generated, complete, and of the versions that are tested."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import pytest

from patchkit.check.numeric.families import FAMILIES, Family, FamilyComparison, compare_family
from patchkit.cli.bench import _cells, _markdown
from patchkit.cli.family_table import markdown_of_families
from patchkit.testing import LOW_PRECISION_RATIO, TINY_MODELS
from patchkit.testing.comparison import Comparison, compare_architecture
from patchkit.testing.measure import Cost

ROOT = Path(__file__).parents[1]
STALE = "benchmarks/README.md is stale: run make counts"


@pytest.fixture(scope="module")
def committed():
    return json.loads((ROOT / "benchmarks" / "results" / "counts.json").read_text())


def restored(result):
    costs = {key: Cost(**result[key]) for key in ("plain", "patched")}
    return Comparison(**(result | costs))


def restored_family(result):
    costs = {key: result[key] and tuple(Cost(**one) for one in result[key]) for key in ("single", "mixed")}
    rounding = result["rounding"] and tuple(result["rounding"])
    return FamilyComparison(**(result | costs | {"family": Family(**result["family"]), "rounding": rounding}))


def test_the_table_is_that_of_the_results(committed):
    results = [restored(result) for result in committed["results"]]
    families = [restored_family(result) for result in committed["families"]]
    text = _markdown(results, committed["settings"]) + markdown_of_families(families)
    assert (ROOT / "benchmarks" / "README.md").read_text() == text, STALE


def test_every_family_is_in_it_keeps_less_and_rounds_no_worse(committed):
    families = [restored_family(result) for result in committed["families"]]
    assert tuple(one.family for one in families) == FAMILIES, STALE
    for one in families:
        assert one.whole + one.alone > 20 * one.left, one.family
        for plain, patched in filter(None, (one.single, one.mixed)):
            assert patched.bytes_kept <= plain.bytes_kept, one.family
            # Layers that stand alone cast x for each of them, and experts are several small products for a large one.
            assert patched.compute_ops <= 1.2 * plain.compute_ops, one.family
            assert patched.flops <= 1.05 * plain.flops, one.family
        assert one.rounding is not None
        assert max(one.rounding) <= LOW_PRECISION_RATIO, one.family


@pytest.mark.parametrize("model_type", ["gpt2", "bert"])
def test_counts_of_a_family_are_what_is_measured_now(committed, model_type):
    (family,) = (one for one in FAMILIES if one.model_type == model_type)
    found = compare_family(family)
    (expected,) = (restored_family(one) for one in committed["families"] if one["family"]["model_type"] == model_type)
    assert (found.whole, found.alone, found.left) == (expected.whole, expected.alone, expected.left), STALE
    assert (found.single, found.mixed) == (expected.single, expected.mixed), STALE
    assert found.rounding is not None
    assert all(0 < ratio <= LOW_PRECISION_RATIO for ratio in found.rounding)


def test_every_architecture_is_in_it_and_fused(committed):
    assert [result["name"] for result in committed["results"]] == list(TINY_MODELS), STALE
    for result in committed["results"]:
        assert set(result["levels"].values()) == {"fused"}
        assert result["output_error"] <= 1e-5
        assert result["gradient_error"] <= 1e-5
        assert result["patched"]["bytes_kept"] < result["plain"]["bytes_kept"]
        assert result["patched"]["compute_ops"] < result["plain"]["compute_ops"]


def test_it_is_of_the_installed_releases(committed):
    if version("transformers") != "5.23.0":
        pytest.skip("the committed counts are of the pinned transformers release")
    assert {name: committed["settings"][name] for name in ("transformers", "peft")} == {
        name: version(name) for name in ("transformers", "peft")
    }, STALE


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_counts_are_what_is_measured_now(committed, name):
    """Bytes, FLOPs and operations are exact: they are the same on every machine."""
    found = compare_architecture(name)
    (expected,) = (restored(result) for result in committed["results"] if result["name"] == name)
    assert (found.plain, found.patched) == (expected.plain, expected.patched), STALE
    assert _cells(found)[6:] == _cells(expected)[6:]
