"""``patchkit archs``."""

from __future__ import annotations

from typer.testing import CliRunner

from patchkit.arch.registry import architectures
from patchkit.cli.main import app


def test_one_line_for_each_architecture() -> None:
    result = CliRunner().invoke(app, ["archs"])
    assert result.exit_code == 0
    header, *lines = result.output.splitlines()
    assert header.split()[0] == "architecture"
    assert [line.split()[0] for line in lines] == list(architectures())


def test_names_classes_and_text_models() -> None:
    lines = {line.split()[0]: line for line in CliRunner().invoke(app, ["archs"]).output.splitlines()}
    assert "Gemma3Attention" in lines["gemma3"]
    assert "PixtralMLP (vision)" in lines["pixtral"]
    assert "llama, mistral" in lines["llava"]
