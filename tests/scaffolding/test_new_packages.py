"""``patchkit new-arch``: what is written for a model type and for a file, that it works, and what is refused."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
from example_plugin import SOURCES
from own_model import OWN_MODEL
from stranger import Stranger, pip_install
from typer.testing import CliRunner

from patchkit.arch import registry
from patchkit.arch.spec import MLP, Architecture, Attention, GatedMLP, SharedInput
from patchkit.check.architecture import verification as room
from patchkit.check.architecture.verification import verification
from patchkit.check.numeric.outcomes import ArchitectureOutcome
from patchkit.check.numeric.proving import versions
from patchkit.cli.main import app
from patchkit.errors import NewArchitectureError
from patchkit.scaffolding.description import Described
from patchkit.scaffolding.package import _architecture, names_for, write_package
from patchkit.scaffolding.source import Source

NETS = """\
from torch import nn
from .layers import FeedForward
from . import sizes


class Net(nn.Module):
    def __init__(self, size, *, layers, bias=True):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(size, size) for _ in range(4))

    def forward(self, x, mask, scale=1.0):
        q, k, v = self.q(x), self.k(x), self.v(x)
        return self.o(q * k * v)
"""


@pytest.fixture
def new_arch(tmp_path):
    """Runs the command; gives its result, its output on one line, and the folder."""

    def run(*arguments: str, code: int = 0):
        result = CliRunner().invoke(app, ["new-arch", *arguments, "--out", str(tmp_path / "out")])
        assert result.exit_code == code, result.output
        return " ".join(result.output.split())

    return run


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def architecture_in(folder: Path) -> Architecture:
    (file,) = folder.glob("src/*/patchkit_architecture.py")
    namespace: dict[str, object] = {}
    exec(file.read_text(), namespace)
    (found,) = [value for value in namespace.values() if isinstance(value, Architecture)]
    return found


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def sources(tmp_path):
    """The files of the example's model as they would lie in somebody's folder."""
    folder = tmp_path / "sources"
    folder.mkdir()
    for name in ("configuration_acme.py", "modeling_acme.py"):
        text = (SOURCES / "acme_models" / name).read_text()
        (folder / name).write_text(text.replace("from acme_models.configuration_acme", "from .configuration_acme"))
    return folder


# ---- what is written

QWEN3 = "transformers.models.qwen3.modeling_qwen3"
PHI3 = "transformers.models.phi3.modeling_phi3"
TYPES = {
    "qwen3": (QWEN3, (Attention("Qwen3Attention"), GatedMLP("Qwen3MLP")), ""),
    "phi3": (
        PHI3,
        (GatedMLP("Phi3MLP", gate_up="gate_up_proj", activation="activation_fn"),),
        "Phi3Attention is not described: `qkv_proj` is one projection for q, k and v: no rule of qkv",
    ),
}


@pytest.mark.parametrize("model_type", TYPES)
def test_a_model_type(new_arch, out, model_type, monkeypatch):
    said = new_arch("My-Own.7", "--from-model-type", model_type)
    folder = out / "patchkit-my-own-7"
    inner = "src/patchkit_my_own_7"
    assert files_in(folder) == {
        "README.md", "pyproject.toml", "tests/test_my_own_7.py", f"{inner}/__init__.py", f"{inner}/patchkit_architecture.py",
    }  # fmt: skip
    module, blocks, left_out = TYPES[model_type]
    architecture = architecture_in(folder)
    assert architecture == Architecture("my_own_7", (model_type,), module, blocks)
    text = (folder / inner / "patchkit_architecture.py").read_text()
    assert left_out in said
    assert left_out in " ".join(text.replace("\n#", " ").split())
    project = (folder / "pyproject.toml").read_text()
    assert 'my_own_7 = "patchkit_my_own_7.patchkit_architecture:MY_OWN_7"' in project
    assert 'dependencies = ["patchkit-lora", "transformers"]' in project
    monkeypatch.setattr(room, "_numbers", lambda *_: ArchitectureOutcome("my_own_7", versions()))
    verification(architecture).require()


def test_the_name_is_the_model_type_where_none_is_said(new_arch, out):
    new_arch("phi3")
    assert architecture_in(out / "patchkit-phi3").model_types == ("phi3",)


def test_what_no_tiny_model_shows_is_left_out(new_arch, out):
    """T5's classification head is in no model that generates: `check` would ask for its numbers in vain."""
    said = new_arch("t5")
    assert {block.class_name for block in architecture_in(out / "patchkit-t5").blocks} == {
        "T5Attention",
        "T5DenseActDense",
    }
    assert "T5ClassificationHead is not described: no tiny model of t5 has one, to prove it on" in said


def test_the_test_has_three_lines(new_arch, out):
    new_arch("phi3")
    tree = ast.parse((out / "patchkit-phi3" / "tests" / "test_phi3.py").read_text())
    assert ast.unparse(tree).splitlines() == [
        "from patchkit.testing import verify_architecture",
        "",
        "def test_phi3() -> None:",
        "    verify_architecture('phi3')",
    ]


def test_what_is_printed_is_what_to_do(new_arch, out):
    said = new_arch("phi3")
    for line in (
        "GatedMLP(",
        "mlp by gated-mlp",
        "written:",
        "next:",
        'pip install -e ".[test]"',
        "patchkit check --arch phi3",
    ):
        assert line in said
    assert all(str(out / "patchkit-phi3" / path) in said for path in files_in(out / "patchkit-phi3"))


def test_a_file_of_a_model_that_transformers_does_not_have(new_arch, out, sources):
    """It is copied with its configuration, and its model class is named."""
    new_arch("acme_mine", "--from-file", str(sources / "modeling_acme.py"))
    folder = out / "patchkit-acme-mine"
    copied = {f"src/patchkit_acme_mine/{name}_acme.py" for name in ("configuration", "modeling")}
    assert copied < files_in(folder)
    for path in copied:
        assert (folder / path).read_text() == (sources / Path(path).name).read_text()
    assert architecture_in(folder) == Architecture(
        "acme_mine",
        ("acme",),
        "patchkit_acme_mine.modeling_acme",
        (
            Attention("AcmeAttention", q="wq", k="wk", v="wv", o="wo"),
            GatedMLP("AcmeFeedForward", gate="w1", up="w3", down="w2", activation_function="F.silu"),
        ),
        model="AcmeForCausalLM",
    )


def test_a_file_that_is_installed_stays_where_it_is(new_arch, out, sources, tmp_path, monkeypatch):
    site = tmp_path / "site"
    (site / "somebody").mkdir(parents=True)
    (site / "somebody" / "__init__.py").touch()
    for file in sources.iterdir():
        (site / "somebody" / file.name).write_text(file.read_text())
    monkeypatch.syspath_prepend(str(site))
    new_arch("acme_mine", "--from-file", str(site / "somebody" / "modeling_acme.py"))
    architecture = architecture_in(out / "patchkit-acme-mine")
    assert (architecture.module, architecture.model_types) == ("somebody.modeling_acme", ("acme",))
    assert not [path for path in files_in(out / "patchkit-acme-mine") if "modeling" in path]
    assert "somebody" not in sys.modules


def test_a_folder_that_one_stands_in_is_not_installed(new_arch, out, sources, monkeypatch):
    monkeypatch.chdir(sources)
    monkeypatch.syspath_prepend(str(sources))
    new_arch("acme_mine", "--from-file", "modeling_acme.py")
    assert architecture_in(out / "patchkit-acme-mine").module == "patchkit_acme_mine.modeling_acme"


def test_a_users_own_model(new_arch, out, tmp_path):
    """Nobody but its author knows what it takes: what is to be filled in is named."""
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "layers.py").write_text(OWN_MODEL)
    (tmp_path / "sizes.py").write_text("SIZE = 8\n")
    said = new_arch("nets", "--from-file", str(tmp_path / "nets.py"))
    folder = out / "patchkit-nets"
    assert {"src/patchkit_nets/layers.py", "src/patchkit_nets/sizes.py"} < files_in(folder)
    assert architecture_in(folder) == Architecture(
        "nets",
        (),
        "patchkit_nets.nets",
        (Attention("Net", q="q", k="k", v="v", o="o"),),
        model="patchkit_nets.tiny_model:tiny_model",
    )
    tiny = (folder / "src" / "patchkit_nets" / "tiny_model.py").read_text()
    assert "from patchkit_nets.nets import Net" in tiny
    assert 'return Net(size=..., layers=...), {"x": ..., "mask": ...}' in tiny
    assert "fill in the sizes and the inputs in src/patchkit_nets/tiny_model.py patchkit check --arch nets" in said


@pytest.mark.slow
def test_written_packages_are_green(new_arch, out, sources, tmp_path):
    """From nothing to a test that passes, with pip and in fresh processes: phi3, a file, and a model that is none of transformers."""
    new_arch("phi3_mine", "--from-model-type", "phi3")
    new_arch("acme_mine", "--from-file", str(sources / "modeling_acme.py"))
    (tmp_path / "own.py").write_text(OWN_MODEL)
    new_arch("own", "--from-file", str(tmp_path / "own.py"))
    tiny = out / "patchkit-own" / "src" / "patchkit_own" / "tiny_model.py"
    tiny.write_text(
        "import torch\n" + tiny.read_text().replace('"tokens": ...', '"tokens": torch.arange(20).view(2, 10)')
    )
    (tmp_path / "home").mkdir()
    for folder in out.iterdir():
        pip_install(folder, tmp_path / "site", tmp_path / "workshop")
    stranger = Stranger(tmp_path / "site", tmp_path / "home")
    done = stranger.pytest(*(str(folder / "tests") for folder in sorted(out.iterdir())), "--rootdir", str(tmp_path))
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout


def test_a_description_of_many_words_is_laid_out():
    """As ruff would lay it out; it is the same description."""
    long = MLP("Block", **dict.fromkeys(("up", "down", "activation", "dropout"), "a_rather_long_name_of_an_attribute"))
    source = Source("a test", "acme.modeling", "", ("acme",))
    groups = SharedInput(
        "Groups", (("a_rather_long_name", "another_rather_long_name"), ("a_third_one", "a_fourth_one"))
    )
    blocks = (long, groups, MLP("Short"))
    text = _architecture(names_for("acme_long"), source, Described(blocks, {}, ("Why " * 50,)))
    assert max(map(len, text.splitlines())) <= 120
    namespace: dict[str, object] = {}
    exec(text, namespace)
    assert namespace["ACME_LONG"] == Architecture("acme_long", ("acme",), "acme.modeling", blocks)
    assert text.count("\n# ") == 2


# ---- what is refused

REFUSED = {
    "an unknown type": (["mine", "--from-model-type", "qwen33"], "has no model type 'qwen33'; did you mean qwen3"),
    "an unknown name": (["qwen33"], "has no model type 'qwen33'; did you mean qwen3"),
    "a name of patchkit": (["llama"], "there is an architecture 'llama' already, patchkit's own; take another name"),
    "the same, written otherwise": (["LLaMA"], "there is an architecture 'llama' already"),
    "no name": (["7b", "--from-model-type", "qwen3"], "no name can be made of '7b'; begin with a letter"),
    "a word of Python": (["class", "--from-model-type", "qwen3"], "no name can be made of 'class'"),
    "nothing but signs": (["--from-model-type", "qwen3", "--", "-.-"], "no name can be made of '-.-'"),
    "what is described": (
        ["mine", "--from-model-type", "llama"],
        "LlamaMLP is described by architecture 'llama' already): architecture llama is there already",
    ),
    "nothing to describe": (["mine", "--from-model-type", "mamba"], "its adapted layers are patched one by one"),
    "both": (["mine", "--from-model-type", "phi3", "--from-file", "x.py"], "say one of --from-model-type and --from-file"),
    "no such file": (["mine", "--from-file", "no/such.py"], "no/such.py cannot be read: No such file"),
    "no Python": (["mine", "--from-file", "model.bin"], "expected a name such as modeling_acme.py"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["new-arch", *arguments])
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.output.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []


FILES = {
    "no Python": ("def f(:\n", "nets.py:1: the source does not parse"),
    "no file beside it": ("from .nowhere import x\n", "nets.py:1 imports nowhere.py, which is not beside it"),
    "a package above": ("\nfrom ..above import x\n", "nets.py:2 imports from a package above it; install the package"),
    "by a name that works only here": ("import layers\n", "nets.py:1 imports layers from beside it by a name that no package has"),
    "the same, from": ("from layers import x\n", "write `from .layers import ...`, and try again"),
    "no block": ("x = 1\n", "has nothing to describe (no class of it is an attention or an MLP)"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "said"), FILES.values(), ids=FILES)
def test_files_that_are_refused(new_arch, out, tmp_path, text, said):
    (tmp_path / "nets.py").write_text(text)
    (tmp_path / "layers.py").touch()
    assert said in new_arch("nets", "--from-file", str(tmp_path / "nets.py"), code=2)
    assert not out.exists()


def test_nothing_is_overwritten(new_arch, out):
    new_arch("phi3")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert "patchkit-phi3 exists, and nothing in it was changed; delete it, or say --out DIR" in new_arch(
        "phi3", code=2
    )
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_folder_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NewArchitectureError, match="cannot be written: "):
        write_package(tmp_path / "file" / "patchkit-acme", {"a": ""})
    with pytest.raises(NewArchitectureError, match="cannot be written: "):
        write_package(tmp_path / "patchkit-acme", {"a": "", "a/b": ""})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_name_of_a_plugin_is_taken():
    one = Architecture("acme_taken", (), "elsewhere", (MLP("X"),))
    taken = pytest.raises(NewArchitectureError, match="'acme_taken' already, that of a plugin that is installed")
    with registry.registered_also(one), taken:
        names_for("Acme Taken")
    assert names_for("Acme Taken").distribution == "patchkit-acme-taken"
