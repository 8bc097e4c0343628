"""What a finding names: where a class, and the base that defines its forward, stand; and what of it is kept in the cache."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from synthetic_releases import SMALL_LLAMA, folder_release, path_of

from patchkit.arch.registry import find
from patchkit.arch.spec import Architecture, Attention, GatedMLP
from patchkit.cache.storage import OUTCOMES
from patchkit.check.static import findings as static
from patchkit.check.static.findings import (
    Finding,
    Owner,
    block_named,
    findings_named,
    findings_of,
    findings_of_lost,
    key_of_finding,
    owner_of_forward,
)
from patchkit.check.static.verdicts import PartOutcome
from patchkit.errors import RewriteError
from patchkit.rewrite import REWRITE_VERSION
from patchkit.upstream.identity import source_hash
from patchkit.upstream.release import Release

pytest_plugins = ["proof_fixtures"]
pytestmark = pytest.mark.usefixtures("cache")

LLAMA, LLAVA = find("llama"), find("llava")
PATH = path_of("llama")
ATTENTION, MLP = SMALL_LLAMA.split("\n\n\n")
COMMON = "transformers/models/common/modeling_common.py"
HEIR = "from ..common.modeling_common import Common\n\n\nclass LlamaMLP(Common):\n    pass\n"
EMPTY = PartOutcome()


def release_of(folder: Path, **files: str) -> Release:
    """A release with llama's file, and that of common."""
    return folder_release(
        folder, "5.91.0", {{"llama": PATH, "common": COMMON}[name]: text for name, text in files.items()}
    )


def of_class(release: Release, name: str) -> Finding:
    return next(one for one in findings_of(release, LLAMA) if one.class_name == name)


# ---- what a finding names


def test_a_class_that_is_there(tmp_path: Path) -> None:
    release = release_of(tmp_path, llama=f"import x\n\n\n{SMALL_LLAMA}")
    attention, mlp = findings_of(release, LLAMA)
    assert findings_named(release, "llama") == [attention, mlp]
    assert (attention.release, attention.architecture, attention.block, attention.class_name) == (
        "5.91.0", "llama", "LlamaAttention", "LlamaAttention",
    )  # fmt: skip
    assert (mlp.owner, mlp.path, mlp.line) == ("transformers.models.llama.modeling_llama.LlamaMLP", PATH, 12)
    assert mlp.source == source_hash(MLP)
    assert mlp.parts == {"mlp": PartOutcome(("gated-mlp",))}
    rewritten = "    def forward(self, x):\n        return self.apply_mlp(x)\n"
    assert mlp.rewritten == source_hash(rewritten)
    assert list(attention.parts) == ["qkv", "o"]


def test_a_class_of_another_module_and_name(tmp_path: Path) -> None:
    mlp = of_class(
        release_of(tmp_path, llama=f"{ATTENTION}\n{HEIR}", common=f"import x\n\n\n{MLP.replace('LlamaMLP', 'Common')}"),
        "LlamaMLP",
    )
    assert (mlp.block, mlp.owner) == ("LlamaMLP", "transformers.models.common.modeling_common.Common")
    assert (mlp.path, mlp.line) == (COMMON, 4)
    assert mlp.parts == {"mlp": PartOutcome(("gated-mlp",))}


def test_an_heir_is_of_its_block(tmp_path: Path) -> None:
    heir = MLP.replace("LlamaMLP(nn.Module)", "Heir(LlamaMLP)")
    release = release_of(tmp_path, llama=f"{SMALL_LLAMA}\n\n{heir}")
    found = of_class(release, "Heir")
    assert (found.block, found.owner.rpartition(".")[2], found.line) == ("LlamaMLP", "Heir", 14)


def test_a_class_that_is_not_rewritten_has_no_rewritten_method(tmp_path: Path) -> None:
    found = of_class(
        release_of(tmp_path, llama=MLP.replace("self.down_proj(", "self.other(").replace("_proj", "_p")), "LlamaMLP"
    )
    assert (found.rewritten, found.parts["mlp"].rules) == ("", ())
    assert found.source


MISSING = {
    # the file: of which class, in which line, and how the reason begins
    "no file": (None, "absent: the release has no {path}"),
    "no class": (ATTENTION, "absent: {path} has no class LlamaMLP"),
    "no Python": ("class\n", "{path}:1: "),
    "no forward": ("class LlamaMLP:\n    pass\n", "{path}:1: class LlamaMLP has no forward"),
    "a base of the release that is not there": (HEIR, "{path}:4: class LlamaMLP has no forward"),
    "a base without its module": ("from ..gone import A\n\n\nclass LlamaMLP(A):\n    pass\n", "{path}:4: class LlamaMLP has no forward"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISSING)
def test_a_class_that_is_not_there(case: str, tmp_path: Path) -> None:
    text, reason = MISSING[case]
    found = of_class(release_of(tmp_path, **({} if text is None else {"llama": text})), "LlamaMLP")
    assert found == Finding("5.91.0", "llama", "LlamaMLP", "LlamaMLP", "", PATH, 0, "", found.parts)
    (told,) = found.parts["mlp"].reasons
    assert told.startswith(reason.format(path=PATH))


def test_a_class_that_cannot_be_examined_has_its_place(tmp_path: Path) -> None:
    """Also that of a base elsewhere, by the name of the class that was asked for."""
    deep = f"class Common:\n    def forward(self, x):\n        return {'not ' * 900}x\n"
    found = of_class(release_of(tmp_path, llama=HEIR, common=f"\n\n{deep}"), "LlamaMLP")
    assert (found.class_name, found.path, found.line, found.source) == ("LlamaMLP", COMMON, 3, "")
    assert not found.parts["mlp"].absent
    assert found.parts["mlp"].reasons[0].startswith(f"{COMMON}")


@pytest.mark.parametrize(("error", "said"), [
    ("a.py:3: it is deep", "a.py:3: it is deep"), ("it is deep", "a.py: class A: it is deep"), ("b.py:3: x", "a.py: class A: b.py:3: x"),
])  # fmt: skip
def test_an_error_has_its_place(error: str, said: str) -> None:
    assert static._naming("A", "a.py", error) == said


NO_BLOCKS = {"there": ("", 1), "not there": (None, 0), "no UTF-8": (b"\xff", 1)}


@pytest.mark.parametrize("case", NO_BLOCKS)
def test_an_architecture_without_blocks(case: str, tmp_path: Path) -> None:
    text, line = NO_BLOCKS[case]
    release = folder_release(tmp_path, "5.91.0", {path_of("llava"): ""} if text is not None else {})
    if isinstance(text, bytes):
        (tmp_path / path_of("llava")).write_bytes(text)
    assert findings_of(release, LLAVA) == [Finding("5.91.0", "llava", "", "", "", path_of("llava"), line, "", {})]


def test_a_block_by_its_class() -> None:
    assert [block_named(LLAMA, block.class_name) for block in LLAMA.blocks] == list(LLAMA.blocks)


def test_what_is_lost_is_named(tmp_path: Path) -> None:
    found = findings_of_lost(release_of(tmp_path, llama=SMALL_LLAMA), "llama", "it died")
    assert [(one.class_name, list(one.parts), one.path) for one in found] == [
        ("LlamaAttention", ["qkv", "o"], PATH), ("LlamaMLP", ["mlp"], PATH),
    ]  # fmt: skip


# ---- the key of a proof


def test_what_a_proof_is_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin's description of each class is part of it; its own, and of which class it is."""
    finding = of_class(release_of(tmp_path, llama=SMALL_LLAMA), "LlamaMLP")
    key = key_of_finding(finding)
    assert key == (finding.owner, finding.source, REWRITE_VERSION, "", "")
    assert key_of_finding(finding, 3).rewrite == 3
    blocks = (Attention("A", q="query"), GatedMLP("B", gate="w1"), GatedMLP("C", up="w3"))
    acme = Architecture("acme", ("acme",), "acme.modeling", blocks)
    monkeypatch.setattr(static, "architectures", lambda: {"llama": LLAMA, "acme": acme})
    given = {
        # architecture and class: the description, which is empty where patchkit's own says the same
        ("acme", "A"): "Attention(q='query')",
        ("acme", "B"): "GatedMLP(gate='w1')",
        ("acme", "C"): "GatedMLP(up='w3')",
        ("acme", "D"): "",
        ("gone", "A"): "",
        ("llama", "LlamaMLP"): "",
    }
    for (architecture, block), expected in given.items():
        found = key_of_finding(replace(finding, architecture=architecture, block=block))
        assert found == key._replace(description=expected)


# ---- where a base stands


ABSOLUTE = {
    # as it is imported in transformers.models.llama.modeling_llama: the module
    "transformers.models.x": "transformers.models.x",
    "transformers": "transformers",
    "torch.nn": "",
    "transformersx.models": "",
    "": "",
    ".modeling_x": "transformers.models.llama.modeling_x",
    "..x.modeling_x": "transformers.models.x.modeling_x",
    "...modeling_utils": "transformers.modeling_utils",
}


@pytest.mark.parametrize("imported", ABSOLUTE)
def test_the_absolute_name_of_a_module(imported: str) -> None:
    assert static._absolute(imported, LLAMA.module) == ABSOLUTE[imported]


BASE = "class {name}:\n    def forward(self, x):\n        return x\n"
OWNERS = {
    # llama's file, common's: the class that defines LlamaMLP's forward
    "itself": (MLP, "", "llama.LlamaMLP"),
    "a base in the same file": (f"{BASE.format(name='A')}class LlamaMLP(A): pass\n", "", "llama.A"),
    "a base elsewhere": (HEIR, BASE.format(name="Common"), "common.Common"),
    "a base elsewhere under another name": (
        "from ..common.modeling_common import Common as C\nclass LlamaMLP(C): pass\n", BASE.format(name="Common"), "common.Common",
    ),
    "a base here that hides one elsewhere": (
        f"from ..common.modeling_common import Common\n{BASE.format(name='Common')}class LlamaMLP(Common): pass\n",
        BASE.format(name="Common"), "llama.Common",
    ),
    "the first of two": (
        f"{BASE.format(name='A')}{BASE.format(name='B')}class LlamaMLP(B, A): pass\n", "", "llama.B",
    ),
    "the second, where the first has none": (
        f"class A: pass\n{BASE.format(name='B')}class LlamaMLP(A, B): pass\n", "", "llama.B",
    ),
    "the second, where the first lies outside": (
        f"from torch import nn\n{BASE.format(name='B')}class LlamaMLP(nn.Module, B): pass\n", "", "llama.B",
    ),
    "the second, where the first's module is not there": (
        f"from ..gone import A\n{BASE.format(name='B')}class LlamaMLP(A, B): pass\n", "", "llama.B",
    ),
    "the second, where the first's module does not parse": (
        f"from ..common.modeling_common import A\n{BASE.format(name='B')}class LlamaMLP(A, B): pass\n", "class", "llama.B",
    ),
    "the second, where the first is not in its module": (
        f"from ..common.modeling_common import A\n{BASE.format(name='B')}class LlamaMLP(A, B): pass\n", "", "llama.B",
    ),
    "the base of the first before the second": (
        f"{BASE.format(name='A')}{BASE.format(name='B')}class C(A): pass\nclass LlamaMLP(C, B): pass\n", "", "llama.A",
    ),
    "through a class elsewhere and back": (
        f"{HEIR}\n\n{BASE.format(name='A')}", "from ..llama.modeling_llama import A\nclass Common(A): pass\n", "llama.A",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OWNERS)
def test_which_class_defines_forward(case: str, tmp_path: Path) -> None:
    llama, common, expected = OWNERS[case]
    found = owner_of_forward(release_of(tmp_path, llama=llama, common=common), LLAMA.module, "LlamaMLP")
    assert isinstance(found, Owner)
    assert f"{found.module.rpartition('modeling_')[2]}.{found.entry.name}" == expected
    assert found.text == (common if expected.startswith("common") else llama)


NOWHERE = {
    "nothing": ("", "", "{llama} has no class LlamaMLP"),
    "no base": (
        "\nclass LlamaMLP: pass\n",
        "",
        "{llama}:2: class LlamaMLP has no forward, and no base with one is found",
    ),
    "a base that is not there": (HEIR, "", "{llama}:4: class LlamaMLP has no forward, and no base with one is found"),
    "no Python": ("class", "", "{llama}:1: "),
}


@pytest.mark.parametrize("case", NOWHERE)
def test_why_none_defines_forward(case: str, tmp_path: Path) -> None:
    """In the words of the first class that was looked at."""
    llama, common, why = NOWHERE[case]
    found = owner_of_forward(release_of(tmp_path, llama=llama, common=common), LLAMA.module, "LlamaMLP")
    assert isinstance(found, str)
    assert found.startswith(why.format(llama=PATH))


# ---- what is kept


@pytest.fixture
def kept(cache: Path, tmp_path: Path) -> tuple[Release, Path]:
    """A release with the MLP alone, and the file in which its outcome is kept."""
    release = release_of(tmp_path / "release", llama=MLP)
    of_class(release, "LlamaMLP")
    (place,) = (cache / OUTCOMES).rglob("*.json")
    return release, place


def test_an_outcome_is_kept_and_read(kept: tuple[Release, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    release, place = kept
    first = of_class(release, "LlamaMLP")
    assert len(place.parent.name) == 2
    assert len(place.stem) == 62
    monkeypatch.setattr(Owner, "rewrite", lambda self, block: pytest.fail("it was known"))
    assert of_class(release, "LlamaMLP") == first
    data = json.loads(place.read_text())
    data["parts"]["mlp"] = [["gate-call"], ["because"]]
    place.write_text(json.dumps(data | {"rewritten": "0" * 64}))
    found = of_class(release, "LlamaMLP")
    assert (found.parts["mlp"], found.rewritten) == (PartOutcome(("gate-call",), ("because",)), "0" * 64)


DAMAGED: dict[str, Any] = {
    "no JSON": "{", "a list": "[]", "a number": "1", "no parts": '{"rewritten": ""}', "no hash": '{"parts": {}}',
    "parts as a list": '{"parts": [], "rewritten": ""}', "an empty part": '{"parts": {"mlp": []}, "rewritten": ""}',
    "half a part": '{"parts": {"mlp": [[]]}, "rewritten": ""}', "a part as a number": '{"parts": {"mlp": 1}, "rewritten": ""}',
    "rules as a number": '{"parts": {"mlp": [1, 2]}, "rewritten": ""}', "no UTF-8": b"\xff", "deep": "[" * 100_000, "empty": "",
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_what_is_no_outcome_is_made_again(case: str, kept: tuple[Release, Path]) -> None:
    release, place = kept
    expected, text = place.read_bytes(), DAMAGED[case]
    place.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert of_class(release, "LlamaMLP").parts == {"mlp": PartOutcome(("gated-mlp",))}
    assert place.read_bytes() == expected


@pytest.mark.parametrize("failure", [RecursionError(), MemoryError(), ValueError("x"), None], ids=repr)
def test_what_fails_for_now_is_not_kept(
    failure: Exception | None, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Owner, block: object) -> None:
        raise RewriteError("it fails") from failure

    monkeypatch.setattr(Owner, "rewrite", fail)
    found = of_class(release_of(tmp_path / "release", llama=MLP), "LlamaMLP")
    assert found.parts == {"mlp": PartOutcome(reasons=("it fails",))}
    assert found.rewritten == ""
    lasting = not isinstance(failure, (RecursionError, MemoryError))
    assert len(list((cache / OUTCOMES).rglob("*.json"))) == lasting
