"""What is counted of a contender: without a run, and the same as of one."""

from __future__ import annotations

import pytest

from patchkit.testing.contenders.cell import Cell, cells
from patchkit.testing.contenders.counting import count
from patchkit.testing.contenders.kinds import CONTENDERS
from patchkit.testing.contenders.not_run import NotRunError
from patchkit.testing.measure import count_flops

CELL = Cell("tiny", 32, 8, "float32")
COUNTED = ("floor", "peft", "cast", "patchkit")
LAYER = 256 * (256 + 128 + 128 + 256 + 3 * 688)
"""Weights of the projections of a layer of the shape ``tiny``."""
RANKS = 8 * (2 * 256 + 2 * (256 + 128) + 2 * 256 + 3 * (256 + 688))
"""Weights of its adapters."""


@pytest.fixture(scope="module")
def counts():
    return {name: count(CONTENDERS[name], CELL) for name in COUNTED}


def test_flops_by_the_formulas(counts):
    """Forward and dx of the base; forward, dx and the gradients of A and B; x A^T once more where it is not kept."""
    floor = 2 * 2 * 32 * LAYER
    assert counts["floor"].flops == floor
    assert counts["peft"].flops == counts["patchkit"].flops == floor + 3 * 2 * 32 * RANKS
    again = 8 * (4 * 256 + 2 * 256 + 688)
    assert counts["cast"].flops == counts["peft"].flops + 2 * 32 * again


@pytest.mark.parametrize("name", ["peft", "cast", "patchkit"])
@pytest.mark.parametrize("more", [{}, {"layers": 2}, {"checkpointing": True}], ids=str)
def test_a_run_has_as_many(name, more):
    cell = Cell("host", 8, 4, "A", **more)
    run, _ = CONTENDERS[name].build(cell)
    assert count(CONTENDERS[name], cell).flops == count_flops(lambda: run.backward(run.forward()))


def test_who_keeps_and_does_less(counts):
    assert counts["cast"].bytes_kept < counts["patchkit"].bytes_kept < counts["peft"].bytes_kept
    assert counts["floor"].operations < counts["patchkit"].operations < counts["cast"].operations
    assert counts["cast"].operations < counts["peft"].operations
    for one in counts.values():
        assert 0 < one.bytes_kept < one.peak_bytes < one.bytes_moved
        assert one.as_dict() == {name: getattr(one, name) for name in one.as_dict()}
        assert sum(work.flops * times for work, times in one.work.items()) == one.flops


def test_a_large_shape_is_counted_without_its_weights():
    """70 billion parameters' worth of layers would take more than this machine has."""
    (cell,) = cells(["llama-70b"], [32768], [128], ["A"], layers=80)
    found = count(CONTENDERS["floor"], cell)
    assert found.flops > 80 * 4 * 32768 * 8192 * 28672 * 3


def test_checkpointing_keeps_less_and_computes_more():
    plain, again = (
        count(CONTENDERS["peft"], Cell("tiny", 32, 8, "float32", checkpointing=one)) for one in (False, True)
    )
    assert again.bytes_kept < plain.bytes_kept
    assert plain.flops < again.flops < 1.5 * plain.flops


@pytest.mark.parametrize(
    ("name", "more", "reason"),
    [
        ("peft-compiled", {}, "what a compiler makes of a step is not traced"),
        ("liger", {}, "another library's kernels are not traced"),
        ("peft", {"nf4": True}, "a weight in four bits"),
        ("cast", {"dora": True}, "without dropout and DoRA"),
    ],
)
def test_what_is_not_counted(name, more, reason):
    with pytest.raises(NotRunError, match=reason):
        count(CONTENDERS[name], Cell("host", 8, 4, "A", **more))


def test_what_cannot_be_traced_says_why(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr("patchkit.testing.contenders.counting.Run.backward", broken)
    with pytest.raises(NotRunError, match=r"it cannot be traced \(RuntimeError: no such kernel\)"):
        count(CONTENDERS["peft"], Cell("host", 8, 4, "A"))


def test_cells_are_every_combination():
    found = cells(["gemma-1b", "tiny"], [8, 16], [4], ["A", "C"], dropout=0.1, device="cuda")
    assert [(one.shape, one.tokens, one.precision) for one in found] == [
        (shape, tokens, precision) for shape in ("gemma-3-1b", "tiny") for tokens in (8, 16) for precision in ("A", "C")
    ]
    assert all(one.dropout == 0.1 and one.device == "cuda" and Cell(**one.as_dict()) == one for one in found)
    assert found[0].title == "gemma-3-1b, 8 tokens, r = 4, A, dropout 0.1"
