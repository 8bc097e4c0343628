"""What a reader stands for, as text: everything that counts changes its hash, and nothing else does."""

from __future__ import annotations

from types import ModuleType

import pytest
from peft_checkouts import installed_peft

from patchkit.adapters import peft, peft_embedding, peft_known, peft_parameters
from patchkit.adapters.formula import Formula
from patchkit.adapters.peft_sources import READERS, digest_of, pieces_of, sources_of
from patchkit.errors import RewriteError

FORMULAS = {
    "Linear": peft.LORA,
    "Linear, DoRA": peft._DORA,
    "ModulesToSaveWrapper": peft._SAVED,
    "Embedding": peft_embedding._EMBEDDING,
    "Embedding, DoRA": peft_embedding._DORA,
    "ParamWrapper": peft_parameters.PARAMETERS,
}


def names_of(formula: Formula) -> set[str]:
    """The functions of PEFT that a formula compares, as READERS names them."""
    found = set()
    for owner, names in formula._functions.items():
        module = owner.__name__ if isinstance(owner, ModuleType) else owner.__module__
        if module.startswith("peft."):
            found |= {name if isinstance(owner, ModuleType) else f"{owner.__name__}.{name}" for name in names}
    return found


@pytest.mark.parametrize("reader", FORMULAS)
def test_all_that_a_formula_compares_is_read_as_text_too(reader):
    said = {name for names in READERS[reader].values() for name in names.split()}
    assert names_of(FORMULAS[reader]) <= said
    assert names_of(FORMULAS[reader])


@pytest.mark.parametrize("reader", READERS)
def test_a_formula_asks_for_the_proof_of_its_own_text(reader):
    asked = [function.args for function in _formula(reader)._unknown]
    assert asked == [(reader,)]


def _formula(reader):
    if reader in FORMULAS:
        return FORMULAS[reader]
    layer = getattr(peft.lora, reader, None)
    if layer is None:
        pytest.skip("bitsandbytes is not installed, so PEFT has no such layer")
    library = peft.peft_library({}, Formula({}))
    cells = library.readers[layer].__closure__
    return next(cell.cell_contents for cell in cells if isinstance(cell.cell_contents, Formula))


@pytest.mark.parametrize("reader", READERS)
def test_the_installed_peft_is_proven(reader):
    assert peft_known._why_unknown(reader) is None


LAYER = '''\
"""A layer."""
from other import thing
from peft.tuners.tuners_utils import Base, scale as scaled

KEYS = ["a"]


class Parent(Base):
    def _check(self, x):
        return x


class Linear(nn.Module, Parent):
    @property
    def active(self):
        return self._active

    @active.setter
    def active(self, value):
        self._active = value

    def forward(self, x, twice=False):
        """What it computes."""
        self._check(x)  # first of all
        return self._cast(x)
'''
BASE = """\
class Base:
    def _cast(self, x):
        return x.to(self.dtype)


def scale(x):
    return 2 * x
"""
NAMES = "Linear.forward Linear._check Linear._cast Linear.active KEYS scaled Linear.gone"


def read(layer=LAYER, base=BASE):
    files = {"peft/tuners/lora/layer.py": layer, "peft/tuners/tuners_utils.py": base}
    return files.get


@pytest.fixture(autouse=True)
def one_reader(monkeypatch, request):
    if "reader" not in request.fixturenames:
        monkeypatch.setattr("patchkit.adapters.peft_sources.READERS", {"some": {"peft.tuners.lora.layer": NAMES}})


def digest(**files):
    return digest_of(sources_of(pieces_of(read(**files), "some")))


def test_where_each_piece_stands():
    found = {name: (piece.path.rpartition("/")[2], piece.line) for name, piece in pieces_of(read(), "some").items()}
    assert found == {
        "Linear.forward": ("layer.py", 22),
        "Linear._check": ("layer.py", 9),
        "Linear._cast": ("tuners_utils.py", 2),
        "Linear.active": ("layer.py", 14),
        "KEYS": ("layer.py", 5),
        "scaled": ("tuners_utils.py", 6),
    }


SAME = {
    "comment": {"layer": LAYER.replace("  # first of all", "")},
    "docstring": {"layer": LAYER.replace('        """What it computes."""\n', "")},
    "another import": {"layer": LAYER.replace("from other import thing\n", "")},
    "another class": {"layer": LAYER + "\n\nclass Other:\n    def forward(self):\n        return 0\n"},
    "a method moved to a base": {
        "layer": LAYER.replace("    def _check(self, x):\n        return x\n", "    pass\n"),
        "base": BASE.replace("class Base:\n", "class Base:\n    def _check(self, x):\n        return x\n\n"),
    },
    "within a condition": {
        "layer": LAYER.replace("KEYS =", "if True:\n    pass\nKEYS ="),
    },
}
OTHER = {
    "forward": {"layer": LAYER.replace("return self._cast(x)", "return self._cast(x) * 2")},
    "a default": {"layer": LAYER.replace("twice=False", "twice=True")},
    "a decorator": {"layer": LAYER.replace("    def forward", "    @cached\n    def forward")},
    "a base's method": {"base": BASE.replace("x.to(self.dtype)", "x")},
    "a method of the class before that of its base": {
        "layer": LAYER.replace("    def forward", "    def _cast(self, x):\n        return x\n\n    def forward")
    },
    "the setter of a property": {"layer": LAYER.replace("self._active = value", "self._active = [value]")},
    "a constant": {"layer": LAYER.replace('KEYS = ["a"]', 'KEYS = ["b"]')},
    "a function that is imported": {"base": BASE.replace("2 * x", "3 * x")},
    "a function that there was not": {
        "layer": LAYER.replace("    def forward", "    def gone(self):\n        return 0\n\n    def forward")
    },
    "the class is gone": {"layer": LAYER.replace("class Linear(", "class Lineal(")},
}


@pytest.mark.parametrize("case", SAME)
def test_what_does_not_count(case):
    assert digest(**SAME[case]) == digest()


@pytest.mark.parametrize("case", OTHER)
def test_what_counts(case):
    assert OTHER[case] not in ({}, {"layer": LAYER}, {"base": BASE})
    assert digest(**OTHER[case]) != digest()


def test_a_file_that_is_no_python():
    with pytest.raises(RewriteError, match=r"peft/tuners/lora/layer\.py:1: the source does not parse"):
        digest(layer="class\n")


def test_the_files_of_the_installed_one_can_be_read():
    assert "class Linear" in installed_peft("peft/tuners/lora/layer.py")
