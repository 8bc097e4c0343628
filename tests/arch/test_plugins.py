"""Hostile and broken plugins: each is named and isolated, and patchkit's own architectures go on working."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from importlib.metadata import EntryPoint

import pytest

from patchkit.arch import plugins, registry
from patchkit.arch.spec import BLOCKS, MLP, Architecture, Attention, GatedMLP, SharedInput, description
from patchkit.errors import PatchkitWarning

GOOD = Architecture("acme", ("acme",), "acme.modeling", (Attention("AcmeAttention"), GatedMLP("AcmeMLP", gate="w1")))


class ReprRaises(BaseException):
    def __repr__(self):
        raise SystemExit(0)


def raising(error):
    def load(_):
        raise error

    return load


BROKEN = {
    "SystemExit(0)": raising(SystemExit(0)),
    "SystemExit()": raising(SystemExit()),
    "GeneratorExit": raising(GeneratorExit()),
    "BaseException": raising(BaseException("no")),
    "an error that cannot be shown": raising(ReprRaises()),
    "MemoryError": raising(MemoryError()),
    "no architecture": lambda _: "llama",
    "None": lambda _: None,
    "an endless sequence": lambda _: itertools.repeat(GOOD),
    "a subclass": lambda _: type("Mine", (Architecture,), {})("acme", ("acme",), "acme.modeling"),
    "name: number": lambda _: replace(GOOD, name=3),
    "name: escape": lambda _: replace(GOOD, name="a\x1b[2J"),
    "name: glob": lambda _: replace(GOOD, name="*"),
    "name: empty": lambda _: replace(GOOD, name=""),
    "name: line end": lambda _: replace(GOOD, name="acme\n"),
    "model types: text": lambda _: replace(GOOD, model_types="acme"),
    "module: path": lambda _: replace(GOOD, module="../../etc/passwd"),
    "module: empty": lambda _: replace(GOOD, module=""),
    "blocks: list": lambda _: replace(GOOD, blocks=[Attention("AcmeAttention")]),
    "blocks: text": lambda _: replace(GOOD, blocks=("AcmeAttention",)),
    "block: code": lambda _: replace(GOOD, blocks=(Attention("AcmeAttention", q="q; import os"),)),
    "block: code in a function": lambda _: replace(GOOD, blocks=(MLP("AcmeMLP", activation_function="f(x)"),)),
    "block: subclass": lambda _: replace(GOOD, blocks=(type("Mine", (MLP,), {})("AcmeMLP"),)),
    "blocks: one class twice": lambda _: replace(GOOD, blocks=(MLP("AcmeMLP"), GatedMLP("AcmeMLP"))),
    "model: path": lambda _: replace(GOOD, model="acme/modeling.py:Acme"),
    "model: two classes": lambda _: replace(GOOD, model="acme:modeling:Acme"),
    "model: empty": lambda _: replace(GOOD, model=""),
    "model: a class": lambda _: replace(GOOD, model=Architecture),
    "block: None": lambda _: replace(GOOD, blocks=(Attention("AcmeAttention", q=None),)),
    "block: tower": lambda _: replace(GOOD, blocks=(Attention("AcmeAttention", tower="both"),)),
    "text models: number": lambda _: replace(GOOD, text_models=(1,)),
}


@pytest.fixture
def install(monkeypatch):
    """Installs entry points that load what a function returns."""

    def _install(**loads):
        points = [EntryPoint(name, "anything", plugins.ENTRY_POINT_GROUP) for name in loads]
        monkeypatch.setattr(plugins, "entry_points", lambda group: points)
        monkeypatch.setattr(EntryPoint, "load", lambda self: loads[self.name](self))
        registry.architectures.cache_clear()
        registry.blocks_by_class.cache_clear()

    yield _install
    registry.architectures.cache_clear()
    registry.blocks_by_class.cache_clear()


@pytest.mark.parametrize("load", BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_is_named_and_the_others_work(install, load):
    install(broken=load, good=lambda _: GOOD)
    said = r"architecture plugin 'broken' \('anything'\) is broken and was left out: .+; expected of it: a patchkit\."
    with pytest.warns(PatchkitWarning, match=said):
        found = registry.architectures()
    assert found["acme"] is GOOD
    assert "llama" in found
    assert set(found) == {*registry._built_in(), "acme"}


@pytest.mark.parametrize(
    ("word", "value", "right"),
    [("blocks", Attention("AcmeAttention"), r"\(block,\)"), ("model_types", "acme", r"\(model_type,\)")],
)
def test_a_forgotten_comma_of_a_tuple_is_told(install, word, value, right):
    """``blocks=(Attention("AcmeAttention"))`` is one block in brackets and no tuple."""
    install(acme=lambda _: replace(GOOD, **{word: value}))
    with pytest.warns(PatchkitWarning, match=rf"expected a tuple of {word}, found \w+: one alone is written {right}"):
        registry.architectures()


WORDS = {
    "an ungated MLP": replace(GOOD, blocks=(MLP("AcmeMLP", "w1", "w2"),)),
    "a function as activation": replace(GOOD, blocks=(GatedMLP("AcmeMLP", activation_function="F.silu"),)),
    "gate and up in one": replace(GOOD, blocks=(GatedMLP("AcmeMLP", gate_up="w13"),)),
    "no output projection": replace(GOOD, blocks=(Attention("AcmeAttention", o=None),)),
    "a nested class": replace(GOOD, blocks=(Attention("Outer.Attention"),)),
    "a model of the module": replace(GOOD, model="AcmeForCausalLM"),
    "a model of another module": replace(GOOD, model="acme.models.causal:AcmeForCausalLM"),
}


@pytest.mark.parametrize("architecture", WORDS.values(), ids=WORDS)
def test_every_word_of_the_spec_may_be_said(install, architecture):
    install(good=lambda _: architecture)
    assert registry.find("acme") is architecture


@pytest.mark.parametrize(("kind", "word"), [(kind, one.name) for kind in BLOCKS for one in fields(kind)])
def test_every_word_of_every_block_may_be_said_and_is_examined(kind, word):
    """Whatever words the spec has: a name, a name with dots for a function, None where that means something."""
    special = {"class_name": "A.B", "tower": "vision", "groups": (("a", "b"), ("c", "d", "e"))}
    right = special.get(word, "F.word" if word.endswith("_function") else "word")
    default = {one.name: one.default for one in fields(kind)}[word]
    said = [right, None] if default is None else [right]
    for value in said:
        plugins.examine(replace(GOOD, blocks=(kind(**{"class_name": "A", word: value}),)))
    for value in ("a b", "a;b", "", 3, "a.b()", *(() if default is None or word == "o" else (None,))):
        with pytest.raises(ValueError, match=f"is no {word} of {kind.__name__}"):
            plugins.examine(replace(GOOD, blocks=(kind(**{"class_name": "A", word: value}),)))


@pytest.mark.parametrize(
    "groups",
    [(), ("a", "b"), (("a",),), (("a", "b"), ("b", "c")), (["a", "b"],), (("a", 3),), (("a", "b c"),)],
    ids=str,
)
def test_groups_are_tuples_of_names_each_once(groups):
    with pytest.raises(ValueError, match="is no groups of SharedInput"):
        plugins.examine(replace(GOOD, blocks=(SharedInput("A", groups),)))


def test_an_interruption_stays_one_and_names_the_plugin(install, caplog):
    install(slow=raising(KeyboardInterrupt()))
    with caplog.at_level(logging.WARNING, "patchkit"), pytest.raises(KeyboardInterrupt):
        registry.architectures()
    assert "interrupted while architecture plugin 'slow'" in caplog.text


def wait(_):
    time.sleep(60)


def turn(_):
    while True:
        pass


def catch(_):
    while True:
        with contextlib.suppress(Exception):
            time.sleep(60)


def hold(_):
    """Also takes what is no Exception, once."""
    try:
        time.sleep(60)
    except BaseException:
        time.sleep(60)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="nothing can be interrupted there")
@pytest.mark.parametrize("load", [wait, turn, catch, hold])
def test_an_endless_plugin_is_named_and_left_out(install, monkeypatch, caplog, load):
    monkeypatch.setattr(plugins, "SLOW_SECONDS", 0.2)
    monkeypatch.setattr(plugins, "LIMIT_SECONDS", 0.6)
    install(endless=load, good=lambda _: GOOD)
    start = time.monotonic()
    before = signal.getsignal(signal.SIGALRM)
    left_out = pytest.warns(PatchkitWarning, match=r"'endless' .* left out: it did not load within 0.6 s")
    with caplog.at_level(logging.WARNING, "patchkit"), left_out:
        assert registry.architectures()["acme"] is GOOD
    assert time.monotonic() - start < 30
    assert "architecture plugin 'endless' ('anything') is still loading after 0.2 s" in caplog.text
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there is no such timer")
def test_the_timer_of_another_is_left_alone(install, monkeypatch, caplog):
    """That of a program around this one, or of a test runner. The plugin is still named in the log."""
    monkeypatch.setattr(plugins, "SLOW_SECONDS", 0.1)
    install(slow=lambda _: time.sleep(0.5) or GOOD)
    signal.setitimer(signal.ITIMER_REAL, 500.0)
    try:
        assert "acme" in registry.architectures()
        assert 400 < signal.getitimer(signal.ITIMER_REAL)[0] <= 500
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
    assert "'slow' ('anything') is still loading" in caplog.text


def test_what_it_prints_is_no_output(install, capsys):
    install(loud=lambda _: sys.stdout.write("{}\n") and GOOD)
    assert "acme" in registry.architectures()
    assert capsys.readouterr() == ("", "{}\n")


LLAMA = "transformers.models.llama.modeling_llama"
SWAPPED = Attention("LlamaAttention", q="k_proj", k="q_proj")


@pytest.mark.parametrize("name", ["aaa", "zzz"])
def test_no_plugin_takes_over_a_class_of_patchkit(install, name):
    """Whatever it is called: architectures are sorted by name."""
    install(thief=lambda _: Architecture(name, (name,), LLAMA, (SWAPPED, GatedMLP("LlamaMLP"))))
    with pytest.warns(PatchkitWarning, match=f"{name!r} of a plugin says of {LLAMA}.LlamaAttention was left out"):
        known = registry.blocks_by_class()[LLAMA, "LlamaAttention"]
    assert known == (registry.find("llama"), Attention("LlamaAttention"))


def test_of_two_plugins_the_first_counts(install):
    other = replace(GOOD, name="other", blocks=(Attention("AcmeAttention", q="query"),))
    install(one=lambda _: GOOD, two=lambda _: other)
    with pytest.warns(PatchkitWarning, match="'other' of a plugin says of acme.modeling.AcmeAttention was left out"):
        assert registry.blocks_by_class()["acme.modeling", "AcmeAttention"][0] is GOOD


def test_two_plugins_with_one_name(install):
    """Each is named, and what both say alike is no collision."""
    other = replace(GOOD, module="elsewhere")
    install(one=lambda _: GOOD, two=lambda _: other, three=lambda _: replace(GOOD))
    said = r"^architecture 'acme' of plugin 'two' \('anything'\) was left out: plugin 'one' \('anything'\) has one of this name$"
    with pytest.warns(PatchkitWarning, match=said) as warned:
        assert registry.find("acme") is GOOD
    assert len(warned) == 1


def test_foreign_descriptions():
    """Patchkit's own is empty, also if another says the same; every other word makes another."""
    for architecture in registry._built_in().values():
        assert {registry.foreign_description(architecture, block) for block in architecture.blocks} <= {""}
    same = Architecture("copy", (), LLAMA, (Attention("LlamaAttention"),))
    assert registry.foreign_description(same, same.blocks[0]) == ""
    assert registry.foreign_description(same, SWAPPED) == "Attention(q='k_proj', k='q_proj')"
    assert registry.foreign_description(replace(same, module="elsewhere"), same.blocks[0]) == "Attention()"
    words = [Attention("A"), *(Attention("A", **{word: "x"}) for word in "qkvo"), GatedMLP("A")]
    words += [GatedMLP("A", **{word: "x"}) for word in ("gate", "up", "down", "gate_up", "activation")]
    assert len({description(block) for block in words}) == len(words)
    assert description(Attention("A")) == description(Attention("B", tower="vision"))


PRINTS = {
    "print": "print('noise')",
    "sys.__stdout__": "import sys; print('noise', file=sys.__stderr__)",
    "file descriptor": "import os; os.write(1, b'noise')",
    "a process": "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(\"noise\")'])",
    "print at the end": "import atexit; atexit.register(print, 'noise')",
    "at the end": "import atexit, os; atexit.register(os.write, 1, b'noise')",
    "ends it": "import sys; sys.exit(0)",
}


@pytest.mark.skipif(os.name == "nt", reason="there only what is printed in Python is held back")
@pytest.mark.parametrize("code", PRINTS.values(), ids=PRINTS)
def test_json_stays_json(tmp_path, code):
    """With the command as a process, and the plugin as an installed distribution."""
    about = tmp_path / "plugins" / "evil-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[patchkit.architectures]\nevil = evil:ARCHITECTURE\n")
    (about.parent / "evil.py").write_text(f"{code}\nARCHITECTURE = ()\n")
    script = tmp_path / "patchkit-command.py"
    script.write_text(
        f"import sys; sys.path.append({str(about.parent)!r})\nfrom patchkit.cli.main import main; main()\n"
    )
    done = subprocess.run(
        [sys.executable, str(script), "check", "--arch", "llama", "--static", "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "PATCHKIT_CACHE": str(tmp_path / "cache")},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verified"] is True
    assert ("'evil' ('evil:ARCHITECTURE') is broken" in done.stderr) == ("sys.exit" in code)
    assert ("noise" in done.stderr) == ("noise" in code)
