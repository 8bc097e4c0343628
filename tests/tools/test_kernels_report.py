"""The report on kernels, compiled for a GPU that is not there."""

from __future__ import annotations

import pytest

from patchkit_kernels.ops.gated_low_rank_operands import MAX_RANK
from tools.kernels_report import MIXTURES, RANKS, Usage, compile_products, main, resources, usage_of

LISTING = (
    "Resource usage:\n Function kernel:\n  REG:96 STACK:8 SHARED:1024 LOCAL:0 CONSTANT[0]:620 TEXTURE:0 SURFACE:0\n"
)


def test_what_the_tool_says_is_read():
    assert usage_of(LISTING, 4096) == Usage(96, 8, 4096)
    with pytest.raises(ValueError, match=r"no registers and stack .* no such file"):
        usage_of("cuobjdump fatal: no such file", 0)


def test_a_line_for_each_kernel(monkeypatch, capsys):
    monkeypatch.setattr("tools.kernels_report.compile_products", lambda *one: one)
    monkeypatch.setattr("tools.kernels_report.resources", lambda one: Usage(len(one[1]), one[2], 7))
    main(["sm_80", "sm_120"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * len(MIXTURES) * (len(RANKS) + 2 * len([rank for rank in RANKS if rank <= MAX_RANK]))
    assert lines[0] == "sm_80  dt and dB, float32, rank 16: 7 registers, 16 B spilled, 7 B shared"
    assert sum("gated MLP's backward" in line for line in lines) == sum("gated MLP," in line for line in lines) > 0
    main([])
    assert all(line.startswith("sm_90  ") for line in capsys.readouterr().out.splitlines())


@pytest.mark.aot
@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize(("name", "most"), [("dt and dB", 128), ("gated MLP", 200), ("gated MLP's backward", 255)])
def test_next_to_nothing_is_spilled_at_the_usual_rank(name, most, mixture, tmp_path, monkeypatch):
    """And a block's shared memory is there on every device, the smallest of which has 64 KiB."""
    triton = pytest.importorskip("triton", reason="the compiler is part of Triton")
    if triton.knobs.runtime.interpret:
        pytest.skip("TRITON_INTERPRET is set: nothing is compiled")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    registers, stack, shared = resources(compile_products(name, mixture, 16, "sm_90"))
    assert 32 <= registers <= most
    # All that a thread can have, in the backward: of operands that are pieces or float32, a few do not fit.
    assert stack <= (64 if most == 255 and "float32" in mixture else 0)
    assert 0 < shared <= 2**16
