"""``patchkit bench --contenders``: what it refuses, prints, writes and draws."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from patchkit.cli import contender_table
from patchkit.cli.bench_contenders import Wanted
from patchkit.cli.contender_table import print_cells
from patchkit.cli.main import app
from patchkit.testing.contenders.cell import Cell
from patchkit.testing.contenders.kinds import CONTENDERS
from patchkit.testing.contenders.results import CellResult, Result


def bench(*words):
    return CliRunner().invoke(app, ["bench", "--contenders", *map(str, words)])


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--shape", "llama-9b"), "there is no shape 'llama-9b'; there are llama-8b, gemma-3-1b"),
        (("--shape", "llama-9b"), "tiny; did you mean 'llama-8b'"),
        (("--precision", "D"), "there is no precision 'D'; there are A, B, C, float32"),
        (("--only", "patchkit-fats"), "there is no contender 'patchkit-fats'; there are floor, peft"),
        (("--only", "patchkit-fats"), "did you mean 'patchkit-fast'?"),
        (("--rates", "fast"), "rates 'fast' are neither h200 nor"),
        (("--device", "no_such_device"), "there is no device 'no_such_device' here"),
    ],
)
def test_refusals(words, text):
    result = bench(*words)
    assert result.exit_code == 2
    assert text in " ".join(result.output.split())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu():
    result = bench("--device", "cuda")
    assert result.exit_code == 2
    assert "there is no device 'cuda' here" in result.output
    assert "--device cpu works anywhere" in result.output


def test_a_run(tmp_path):
    """Two contenders in processes of their own; what compiles is not even started unless it is named."""
    path = tmp_path / "found.json"
    words = ("--tokens", 16, "--rank", 4, "--rounds", 2, "--only", "peft", "patchkit", "--rates", "h200")
    result = bench(*words, "--json", path)
    assert result.exit_code == 0, result.output
    found = json.loads(path.read_text())
    assert found["settings"].keys() >= {"patchkit", "torch", "transformers", "peft", "device", "command", "threads"}
    assert found["modelled"]["rates"]["bf16"] == 770
    (cell,) = found["cells"]
    assert cell["cell"] == Cell("tiny", 16, 4, "float32").as_dict()
    assert [one["contender"] for one in cell["contenders"]] == ["peft", "patchkit"]
    for one in cell["contenders"]:
        assert one["not_run"] == ""
        assert one["step_ms"]["samples"] == cell["rounds"] == 2
        assert one["step_ms"]["median"] > 0
        assert one["counts"].keys() == {"bytes_kept", "peak_bytes", "flops", "operations", "bytes_moved"}
        assert one["modelled_ms"] > 0
    assert cell["contenders"][1]["levels"] == {"fused": 3}
    assert "tiny, 16 tokens, r = 4, float32\n" in result.stdout
    assert "measured, 2 rounds" in result.stdout
    assert "modelled: a roofline over the traced operations, and no measurement." in result.stdout


def test_counts_alone_take_no_time(tmp_path):
    path = tmp_path / "found.json"
    assert bench("--only", "floor", "--rounds", 0, "--shape", "llama-8b", "--json", path).exit_code == 0
    (floor,) = json.loads(path.read_text())["cells"][0]["contenders"]
    assert (floor["not_run"], floor["step_ms"]) == ("no rounds were asked for", None)
    assert floor["counts"]["flops"] > 10**11


def test_what_a_device_gets_unless_something_is_asked_for():
    small, large = Wanted().cells(), Wanted(device="cuda").cells()
    assert [(one.shape, one.tokens, one.precision) for one in small] == [("tiny", 128, "float32")]
    assert [(one.shape, one.tokens, one.precision) for one in large] == [("llama-8b", n, "A") for n in (512, 4096)]


def made(scale=1.0, **more):
    results = []
    for number, name in enumerate(CONTENDERS):
        counts = dict.fromkeys(("bytes_kept", "peak_bytes", "flops", "operations", "bytes_moved"), 123 + number)
        sizes = {"counts": {key: int(one * scale * 1e9) for key, one in counts.items()} | {"operations": 1234}}
        one = Result(name, measured_peak_bytes=int(9e10), launches=1234, modelled_ms=1234.5 * scale, **sizes)
        one.take([(scale * (number + round), scale * 3) for round in (1, 2, 3)], [123456.0])
        results.append(one)
    results[3] = Result("liger", not_run="its kernels want a GPU")
    results[2].counts, results[2].not_counted = None, "what a compiler makes of a step is not traced"
    results[5].levels = {"fused": 2, "upstream": 1}
    return CellResult(Cell("llama-70b", 32768, 128, "float32", **more), results, 3)


@pytest.mark.parametrize("scale", [0.01, 1.0, 4321.0])
def test_the_tables_fit_80_columns(scale, capsys):
    print_cells(
        [made(scale, dropout=0.05, dora=True, nf4=True, checkpointing=True, layers=8)], host=True, modelled=True
    )
    lines = capsys.readouterr().out.splitlines()
    tables = [line for line in lines if not line.startswith(("not ", "patchkit runs"))]
    assert max(map(len, tables)) <= contender_table.WIDTH
    text = "\n".join(lines)
    assert "…" not in text
    for name in CONTENDERS:
        assert name in text
    assert "not run: liger: its kernels want a GPU" in text
    assert "not counted: peft-compiled: what a compiler makes of a step is not traced" in text
    assert "patchkit runs parts of the layers unfused: 2 fused, 1 upstream" in text


def test_figures_of_a_table(capsys):
    print_cells([made()], host=False, modelled=True)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    measured, counted = (row for row in rows if row[:1] == ["patchkit-fast"])
    # The seventh: 6 + (1, 2, 3) forward and 3 backward; PEFT's is the second.
    assert measured[1:] == ["8.00", "3.00", "11.0", "4.5%", "1.83", "2.98M", "85831", "1234"]
    assert counted[1:] == ["123024", "123024", "129", "123024", "1234", "1234"]


def test_a_picture(tmp_path):
    pytest.importorskip("matplotlib", reason="the picture is drawn by matplotlib (extra: demo)")
    from patchkit.cli.contender_plot import draw_cells

    path = tmp_path / "found.png"
    draw_cells([made(), made(), made(dora=True), made()], path)
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="nothing ran"):
        draw_cells([CellResult(Cell("tiny", 8), [Result("peft", not_run="x")])], path)
