"""What an environment says of itself: which packages it has, which of them are needed, and by whom."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError
from importlib.metadata import requires as real_requires
from types import SimpleNamespace

import pytest

from patchkit.check.numeric import probe
from patchkit.check.numeric.probe import folder_of, plugin_modules, unneeded, versions_and_place

REQUIRES = {
    # what each distribution needs; those that are named nowhere are not installed
    "transformers": ["Torch_Lib>=2", "tokens ; python_version >= '3'", "old ; python_version < '3'", "docs ; extra == 'docs'"],
    "torch-lib": ["Deep.Lib", "setuptools"],
    "deep-lib": ["transformers", "gone"],
    "tokens": None,
    "old": [],
    "docs": [],
    "setuptools": ["wheel-tools"],
    "wheel-tools": [],
    "acme-plugin": ["acme-core", "transformers"],
    "acme-core": [],
    "stranger": ["acme-core"],
    "patchkit": ["tokens", "stranger"],
    "pip": ["stranger"],
}  # fmt: skip
MODULES = {
    "transformers": ["transformers"], "torch": ["torch-lib"], "deep": ["Deep.Lib"], "tokens": ["tokens"], "old": ["old"],
    "docs": ["docs"], "setuptools": ["setuptools"], "wheeltools": ["wheel-tools"], "acme": ["acme-plugin", "acme-core"],
    "acmecore": ["acme_core"], "stranger": ["stranger"], "shared": ["stranger", "tokens"], "patchkit": ["patchkit"],
    "pip": ["pip"], "pkg_resources": ["stranger"], "_distutils_hack": ["stranger"], "no-module": ["stranger"],
}  # fmt: skip
NEEDED = {"transformers", "torch", "deep", "tokens", "setuptools", "wheeltools", "shared", "patchkit", "pip"}
NEVER_HIDDEN = {"pkg_resources", "_distutils_hack", "no-module"}


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    def requires(name):
        if name not in REQUIRES:
            raise PackageNotFoundError(name)
        return REQUIRES[name]

    monkeypatch.setattr(probe, "requires", requires)
    monkeypatch.setattr(probe, "packages_distributions", lambda: MODULES)


def test_what_nothing_needs():
    """Markers and extras count, names are spelled in any way, and what is needed in a circle is needed once."""
    hidden = json.loads(unneeded(b'["transformers"]'))
    assert hidden == sorted(set(MODULES) - NEEDED - NEVER_HIDDEN)
    assert json.loads(unneeded(b'["Transformers", "acme_plugin"]')) == sorted(
        set(MODULES) - NEEDED - NEVER_HIDDEN - {"acme", "acmecore"}
    )


def test_without_roots_only_what_installs_is_kept():
    assert set(json.loads(unneeded(b"[]"))) == set(MODULES) - NEVER_HIDDEN - {"pip", "setuptools", "patchkit"}


@pytest.mark.parametrize(
    ("distributions", "expected"),
    [
        ([], []),
        ([None], []),
        (["acme-plugin"], ["acme", "acmecore", *sorted(NEEDED - {"patchkit", "pip", "setuptools"})]),
        (["acme-core"], ["acme", "acmecore"]),
        (["acme-core", None, "docs"], ["acme", "acmecore", "docs"]),
        (["patchkit"], []),
    ],
    ids=str,
)
def test_the_modules_of_plugins_are_shown(distributions, expected, monkeypatch):
    """With all that they need; what is never hidden need not be."""
    points = [SimpleNamespace(dist=name and SimpleNamespace(name=name)) for name in distributions]
    monkeypatch.setattr(probe, "entry_points", lambda *, group: points if group == probe.ENTRY_POINT_GROUP else [])
    assert plugin_modules() == sorted(expected)


@pytest.mark.parametrize("package", ["not_there_at_all", "not_there.inner", "sys", "json.decoder"])
def test_what_is_no_folder_has_none(package):
    assert folder_of(package) == ""


def test_a_module_without_a_specification_has_no_folder(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "hidden_package", None)
    assert folder_of("hidden_package") == ""
    monkeypatch.setitem(sys.modules, "odd_package", SimpleNamespace(__spec__=None))
    assert folder_of("odd_package") == ""


def test_versions_and_places(tmp_path, monkeypatch):
    import platform

    for name, version in (("first_lib", "1.2.3+cpu"), ("second_lib", "0.5")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"__version__ = {version!r}\n__path__ = ['elsewhere']\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert json.loads(versions_and_place(b'["first_lib", "second_lib"]')) == {
        "place": str(tmp_path / "first_lib"),
        "places": {"first_lib": str(tmp_path / "first_lib"), "second_lib": str(tmp_path / "second_lib")},
        "versions": {"first_lib": "1.2.3", "second_lib": "0.5", "python": platform.python_version()},
    }


def test_the_names_here_are_like_real_ones():
    assert any("extra ==" in one for one in real_requires("pytest") or ())
