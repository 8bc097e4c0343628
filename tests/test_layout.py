"""``kernels/`` is a source root: the Hugging Face package of that name stays importable from the repository root."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

BUILD_A_LLAMA = """
import sys
{prepare}
import transformers
from transformers import LlamaConfig, LlamaForCausalLM
import torch
model = LlamaForCausalLM(LlamaConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                                     num_key_value_heads=1, vocab_size=32))
logits = model(input_ids=torch.tensor([[1, 2, 3]])).logits
assert logits.shape == (1, 3, 32)
import patchkit, patchkit_kernels.lora.gated_mlp
assert patchkit.apply(model).rows
{check}
print("fine")
"""


def from_the_root(prepare, check):
    code = BUILD_A_LLAMA.format(prepare=prepare, check=check)
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.endswith("fine\n"), result.stderr


def test_transformers_works_without_hugging_face_kernels():
    from_the_root("sys.modules['kernels'] = None", "")


def test_transformers_works_with_hugging_face_kernels():
    if importlib.util.find_spec("kernels") is None:
        pytest.skip("the package kernels of Hugging Face is not installed (extra: test)")
    from_the_root("", "import kernels; assert 'site-packages' in kernels.__file__, kernels.__file__")


def test_kernels_is_not_a_package_here():
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert {path.name for path in (ROOT / "kernels").iterdir() if not path.name.startswith(("__", "."))} == {
        "patchkit_kernels"
    }


def test_each_test_file_has_a_name_of_its_own():
    """pytest imports a test file by its base name: the second one of a name is not collected."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, files in names.items() if files > 1] == []


def test_the_packages_are_typed():
    import patchkit
    import patchkit_kernels

    for package in (patchkit, patchkit_kernels):
        assert (Path(package.__file__).parent / "py.typed").exists()


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("patchkit/rewrite", ("torch", "transformers", "peft")),
        ("patchkit/upstream", ("torch", "transformers", "peft", "libcst")),
        ("patchkit/arch", ("transformers", "peft", "libcst")),
        ("kernels/patchkit_kernels", ("transformers", "peft")),
    ],
)
def test_what_a_room_does_not_import(package, forbidden):
    """Which room may import which other one is for test_layers.py."""
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            wrong = [name for name in names if name.partition(".")[0] in forbidden]
            assert not wrong, f"{path.relative_to(ROOT)}:{node.lineno} imports {', '.join(wrong)}"
