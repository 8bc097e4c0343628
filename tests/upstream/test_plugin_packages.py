"""The release of a plugin's package: whatever it is called, however it is laid out, and what can be read of it."""

from __future__ import annotations

import sys

import pytest
from installed_packages import install_package

from patchkit.arch.spec import Architecture
from patchkit.cli.diff import read_source
from patchkit.errors import ReleaseError
from patchkit.upstream.release import installed_release, module_path

MODEL = "class AcmeMLP:\n    pass\n"

LAYOUTS = {
    # what the distribution is called, its files, and the module of the classes
    "a folder": ("acme-kit", {"acme_kit/__init__.py": "", "acme_kit/modeling.py": MODEL}, "acme_kit.modeling"),
    "another name": ("kit-of-acme", {"acmes/__init__.py": "", "acmes/modeling.py": MODEL}, "acmes.modeling"),
    "one file": ("acme-file", {"acme_file.py": MODEL}, "acme_file"),
    "one file, another name": ("file-of-acme", {"acmefile.py": MODEL}, "acmefile"),
    "no __init__": ("acme-namespace", {"acme_namespace/modeling.py": MODEL}, "acme_namespace.modeling"),
}


@pytest.mark.parametrize(("name", "files", "module"), LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(tmp_path, monkeypatch, name, files, module):
    install_package(tmp_path, name, files, version="3.2")
    monkeypatch.syspath_prepend(str(tmp_path))
    package = module.partition(".")[0]
    release = installed_release(package)
    assert (release.version, release.location, release.package) == ("3.2", tmp_path, package)
    assert release.read(module_path(module)) == MODEL
    assert read_source(module).text == MODEL
    assert package not in sys.modules, "it is located, and not imported"


@pytest.mark.parametrize("path", ["lying/__init__.py", "lying_file.py"])
def test_what_only_lies_on_the_path_says_its_version_itself(tmp_path, monkeypatch, path):
    file = tmp_path / path
    file.parent.mkdir(exist_ok=True)
    file.write_text('__version__ = "0.7"\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    package = path.partition("/")[0].removesuffix(".py")
    assert installed_release(package).version == "0.7"
    file.write_text("")
    with pytest.raises(ReleaseError, match=f"{path} has no __version__"):
        installed_release(package)


def test_its_model_files_are_its_own(tmp_path, monkeypatch):
    """Not those of transformers, which may be installed beside it."""
    files = {"acme_wide/__init__.py": "", "acme_wide/deep/layers.py": MODEL, "transformers/models/a/modeling_a.py": ""}
    install_package(tmp_path, "acme-wide", files)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert installed_release("acme_wide").model_files() == ["acme_wide/__init__.py", "acme_wide/deep/layers.py"]


def test_a_package_that_is_not_there():
    architecture = Architecture("gone", (), "acme_that_is_gone.modeling")
    with pytest.raises(ReleaseError, match=r"acme_that_is_gone is not installed$"):
        installed_release(architecture.module.partition(".")[0])


def test_what_has_no_file_at_all_is_no_release() -> None:
    """A module that is built into Python."""
    with pytest.raises(ReleaseError, match=r"^sys is not installed$"):
        installed_release("sys")
