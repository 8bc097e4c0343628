"""The scan of a release: what its classes are taken for, what the rewriter makes of them, and how it is counted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from synthetic_releases import folder_release

from patchkit.arch.registry import architectures
from patchkit.arch.spec import MLP, Attention, GatedMLP, SharedInput
from patchkit.check.static.scan import figures, scan, scan_text
from patchkit.upstream.release import installed_release, module_path

PATH = "transformers/models/{0}/modeling_{0}.py"

TEXT = """class Zeta(nn.Module):
    def forward(self, x):
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        return self.o_proj(attend(q, k, v))


class Alpha(nn.Module):
    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class Late(nn.Module):
    def forward(self, x):
        h = self.act(self.fc1(self.norm(x)))
        return self.fc2(h)


class Apart(nn.Module):
    def forward(self, x, y):
        q, k, v = self.q_proj(x), self.k_proj(y), self.v_proj(x + y)
        return self.o_proj(attend(q, k, v))


class Cross(nn.Module):
    def forward(self, x, y):
        q = self.q_proj(x)
        k, v = self.k_proj(y), self.v_proj(y)
        return self.o_proj(attend(q, k, v))


class Norm(nn.Module):
    def forward(self, x):
        return self.norm(x)


class Heir(Alpha):
    pass
"""
COPY = TEXT.replace("Alpha", "Copied")


def found_in(text: str) -> list[str]:
    return [str(one) for one in scan_text(text, "m.py")]


def test_one_line_a_class_in_the_order_of_names() -> None:
    assert found_in(TEXT) == [
        "m.py: Alpha: MLP(activation='act'): mlp: ungated-mlp",
        "m.py: Apart: nothing: no attention: `q_proj` and `k_proj` read different variables, or one that changes in "
        "between; no MLP: `o_proj` is given `attend(q, k, v)`: neither act(gate(x)) * up(x) nor act(up(x))",
        "m.py: Cross: SharedInput(): linear: shared-input",
        "m.py: Late: MLP(activation='act'): mlp: call-alone call-alone; not an MLP: `self.fc1(self.norm(x))` takes "
        "something else than a variable",
        "m.py: Zeta: Attention(): qkv: qkv-together; o: output-call",
    ]


@pytest.mark.parametrize("above", ["", "# more\n", "import os\n\n\n", "class Other(nn.Module):\n    pass\n"])
def test_lines_do_not_tell_where_a_class_stands(above: str) -> None:
    """Two releases are compared line by line, and in the next one everything stands somewhere else."""
    assert found_in(above + TEXT) == found_in(TEXT)
    assert [one.line - above.count("\n") for one in scan_text(above + TEXT, "m.py")] == [
        one.line for one in scan_text(TEXT, "m.py")
    ]


@pytest.mark.parametrize("lines", [1, 2])
def test_nested_classes_and_other_indentations(lines: int) -> None:
    inner = "\n".join(f"{' ' * 3 * lines}{line}" if line else "" for line in TEXT.splitlines())
    outer = "class Outer:\n" + ("   class Inner:\n" if lines == 2 else "") + inner + "\n"
    prefix = "Outer.Inner." if lines == 2 else "Outer."
    assert found_in(outer) == [line.replace("m.py: ", f"m.py: {prefix}", 1) for line in found_in(TEXT)]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("class Alpha(", "m.py:1: the source does not parse"),
        ("if a:\n    class Alpha:\n        def forward(self): pass\nelse:\n    class Alpha: pass\n", "defined more than once"),
        ("class Alpha:\n    def forward(self, x):\n        y = " + "-" * 4000 + "x\n", "nested too deeply"),
    ],
    ids=["no Python", "two classes", "deep"],
)  # fmt: skip
def test_what_cannot_be_read_is_said(text: str, why: str) -> None:
    (one,) = scan_text(text, "m.py")
    assert one.block is None
    assert why in one.why


def test_a_release(tmp_path: Path) -> None:
    files = {PATH.format("b"): TEXT, PATH.format("a"): COPY, PATH.format("c"): "no Python"}
    release = folder_release(tmp_path, "5.91.0", files)
    (tmp_path / PATH.format("d")).parent.mkdir()
    (tmp_path / PATH.format("d")).write_bytes(b"\xff\xfe")
    told: list[tuple[int, int]] = []
    found = scan(release, progress=lambda done, of: told.append((done, of)))
    assert told == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert [(one.path, one.class_name) for one in found] == [
        *((PATH.format("a"), name) for name in ("Apart", "Copied", "Cross", "Late", "Zeta")),
        *((PATH.format("b"), name) for name in ("Alpha", "Apart", "Cross", "Late", "Zeta")),
        (PATH.format("c"), ""),
        (PATH.format("d"), ""),
    ]
    assert "is not UTF-8" in found[-1].why
    assert found == scan(release)

    counted = figures(found)
    assert counted.proposed == {"Attention": 2, "MLP": 4, "SharedInput": 2}
    assert counted.whole == {"Attention": 2, "MLP": 2, "SharedInput": 2}
    assert counted.parts == {
        "qkv: qkv-together": 2,
        "o: output-call": 2,
        "mlp: ungated-mlp": 2,
        "mlp: call-alone": 2,
        "linear: shared-input": 2,
    }
    assert counted.reasons == {"mlp: not an MLP: `…` takes something else than a variable": 2}
    assert sum(counted.nothing.values()) == 4
    assert not any("q_proj" in reason for reason in counted.nothing)


@pytest.mark.slow
def test_the_installed_transformers() -> None:
    """Nothing that its classes hold ends the scan; registered blocks are found, and most proposals are rewritten."""
    release = installed_release()
    found = scan(release)
    assert [(one.path, one.class_name) for one in found] == sorted((one.path, one.class_name) for one in found)
    by_name = {(one.path, one.class_name): one for one in found}
    for architecture in architectures().values():
        for block in architecture.blocks:
            path = module_path(architecture.module)
            if architecture.module.startswith("transformers.") and release.read(path) is not None:
                assert by_name[path, block.class_name].whole, block
    counted = figures(found)
    kinds = Counter(type(one.block) for one in found if one.block)
    assert min(kinds[kind] for kind in (Attention, GatedMLP, MLP, SharedInput)) > 50
    for kind in kinds:  # layers of one variable are proposed by that alone, and mostly what is in between is called
        least = 0.8 if kind is SharedInput else 0.9
        assert counted.whole[kind.__name__] > least * counted.proposed[kind.__name__]
