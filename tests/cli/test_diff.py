"""``patchkit diff``."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import patchkit.cli.diff as diff_module
from patchkit.arch import registry
from patchkit.arch.spec import Architecture, Attention, GatedMLP
from patchkit.cli.main import app

ACME_SOURCE = """\
raise RuntimeError("this source may be read, but not imported")


class AcmeAttention(Module):
    def forward(self, hidden_states):
        query = self.q_proj(hidden_states)
        key = self.k_proj(hidden_states)
        value = self.v_proj(hidden_states)
        return self.o_proj(attend(query, key, value))


class AcmeMLP(Module):
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
"""

ACME = Architecture(
    name="acme",
    model_types=("acme",),
    module="acme.modeling",
    blocks=(Attention("AcmeAttention"), GatedMLP("AcmeMLP")),
)


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes these, and only these, the registered architectures."""

    def _register(*architectures: Architecture) -> None:
        known = {architecture.name: architecture for architecture in architectures}
        monkeypatch.setattr(registry, "architectures", lambda: known)

    return _register


@pytest.fixture
def acme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, register: Callable[..., None]) -> None:
    """An architecture of a package of its own, as a plugin's may be."""
    (tmp_path / "acme").mkdir()
    (tmp_path / "acme" / "__init__.py").touch()
    (tmp_path / "acme" / "modeling.py").write_text(ACME_SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    register(ACME)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["diff", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def error_of(*arguments: str) -> str:
    """The one line on standard error of a call that must exit with 2."""
    result = CliRunner().invoke(app, ["diff", *arguments])
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    return line


def changed(output: str, sign: str) -> list[str]:
    """The removed or added lines, without the file names."""
    return [line[1:].strip() for line in output.splitlines() if line.startswith(sign) and not line.startswith(sign * 3)]


@pytest.mark.usefixtures("acme")
def test_shows_every_class_with_its_sites_and_lines() -> None:
    output = run("--arch", "acme")
    assert "# acme/modeling.py: AcmeAttention.forward\n#   rewrote qkv (line 6): q_proj, k_proj, v_proj" in output
    assert "#   rewrote o (line 9): o_proj, rule output-call" in output
    assert (
        "# acme/modeling.py: AcmeMLP.forward\n#   rewrote mlp (line 14): gate_proj, act_fn, up_proj, down_proj"
        in output
    )
    assert output.count("--- acme/acme/modeling.py\n+++ patchkit/acme/modeling.py\n") == 2
    assert "return self.o_proj(attend(query, key, value))" in changed(output, "-")
    assert "return self.apply_o(attend(query, key, value))" in changed(output, "+")


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize(("part", "call"), [("o", "apply_o"), ("mlp", "apply_mlp"), ("qkv", "apply_qkv")])
def test_one_part_alone(part: str, call: str) -> None:
    added = "\n".join(changed(run("--arch", "acme", "--part", part), "+"))
    calls = {"apply_qkv", "apply_o", "apply_mlp"}
    assert {name for name in calls if name in added} == {call}


@pytest.mark.usefixtures("acme")
def test_blocks_add_up() -> None:
    everything = run("--arch", "acme", "--part", "qkv", "--part", "o", "--part", "mlp")
    assert everything == run("--arch", "acme")


@pytest.mark.usefixtures("acme")
def test_context() -> None:
    mlp = ("--arch", "acme", "--part", "mlp", "--context")
    unchanged = [line for line in run(*mlp, "1").splitlines() if line.startswith(" ")]
    assert unchanged == ["     def forward(self, x):"]
    assert not any(line.startswith(" ") for line in run(*mlp, "0").splitlines())
    assert CliRunner().invoke(app, ["diff", *mlp, "-1"]).exit_code == 2


@pytest.mark.usefixtures("acme")
def test_colour_only_where_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b" not in run("--arch", "acme")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[32m+" in run("--arch", "acme")
    assert "\x1b" not in run("--arch", "acme", "--no-color")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[32m" not in run("--arch", "acme")


def test_globs_and_repeats_show_each_architecture_once() -> None:
    output = run("--arch", "gemma", "--arch", "gemma*", "--arch", "gemma3")
    headers = [line for line in output.splitlines() if line.startswith("# ") and ":" not in line]
    assert headers == sorted(set(headers))
    assert {"# gemma", "# gemma2", "# gemma3"} <= set(headers)


def test_architecture_without_blocks_shows_its_default_text_model() -> None:
    output = run("--arch", "llava")
    assert "# llava has no blocks of its own: its text tower is the model that text_config names" in output
    assert "transformers/models/llama/modeling_llama.py: LlamaMLP.forward" in output


def test_text_model_that_is_shown_anyway_is_not_shown_twice() -> None:
    assert run("--arch", "llava", "--arch", "llama").count("LlamaMLP.forward") == 1


def test_applies_with_patch(tmp_path: Path) -> None:
    """The diff is against the installed file: its context is really there, at the lines it names."""
    source = diff_module.read_source("transformers.models.llama.modeling_llama").text.splitlines()
    for header, *lines in _hunks(run("--arch", "llama")):
        start = int(header.split()[1].removeprefix("-").split(",")[0])
        old = [line[1:] for line in lines if line[:1] in {" ", "-"}]
        assert source[start - 1 : start - 1 + len(old)] == old


def _hunks(output: str) -> list[list[str]]:
    hunks: list[list[str]] = []
    inside = False
    for line in output.splitlines():
        if line.startswith("@@"):
            hunks.append([])
        inside = not line.startswith(("#", "---", "+++")) and bool(hunks)
        if inside:
            hunks[-1].append(line)
    return hunks


def test_unknown_architecture_names_near_misses() -> None:
    line = error_of("--arch", "gema3")
    assert line.startswith("patchkit: error: unknown architecture 'gema3'; did you mean gemma3")


def test_glob_without_match() -> None:
    assert "no architecture matches 'nothing*'" in error_of("--arch", "nothing*")


def test_transformers_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "transformers is not installed" in error_of("--arch", "llama")


def test_release_without_the_model_is_named_and_the_others_are_shown(register: Callable[..., None]) -> None:
    late = Architecture("late", ("late",), "transformers.models.late.modeling_late", blocks=(GatedMLP("LateMLP"),))
    register(late, registry.find("llama"))
    result = CliRunner().invoke(app, ["diff", "--arch", "*"])
    assert result.exit_code == 2
    assert "has no models/late/modeling_late.py: this release does not have that model" in result.stderr
    assert "LlamaMLP.forward" in result.stdout


def test_release_without_the_class(register: Callable[..., None]) -> None:
    module = "transformers.models.llama.modeling_llama"
    register(Architecture("renamed", ("renamed",), module, blocks=(GatedMLP("RenamedMLP"),)))
    assert "RenamedMLP" in error_of("--arch", "renamed")


def test_error_has_no_traceback() -> None:
    outcome = subprocess.run(
        [sys.executable, "-m", "patchkit.cli.main", "diff", "--arch", "gema3"], capture_output=True, text=True
    )
    assert outcome.returncode == 2
    assert outcome.stdout == ""
    assert len(outcome.stderr.splitlines()) == 1


ACME_MODEL = """

class AcmeForCausalLM(Model):
    def forward(self, input_ids, labels=None, **kwargs):
        logits = self.lm_head(self.model(input_ids))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.vocab_size, **kwargs)
        return Output(loss=loss, logits=logits)
"""


def test_the_loss_is_shown_where_it_is_asked_for(tmp_path: Path, acme: None, register: Callable[..., None]) -> None:
    (tmp_path / "acme" / "modeling.py").write_text(ACME_SOURCE + ACME_MODEL)
    invoke = CliRunner().invoke
    usual = invoke(app, ["diff", "--arch", "acme", "--no-color"]).output
    assert "apply_loss" not in usual
    assert "AcmeMLP" in usual
    loss = invoke(app, ["diff", "--arch", "acme", "--part", "loss", "--no-color"]).output
    assert "#   rewrote loss (line 19): lm_head, rule loss-of-logits" in loss
    assert "+            loss = self.apply_loss(states)(labels=labels, vocab_size=self.vocab_size, **kwargs)" in loss
    assert "AcmeMLP" not in loss
    # An architecture without blocks of its own has a loss of its own.
    register(Architecture(name="acme", model_types=("acme",), module="acme.modeling", text_models=("other",)))
    assert invoke(app, ["diff", "--arch", "acme", "--part", "loss", "--no-color"]).output == loss
