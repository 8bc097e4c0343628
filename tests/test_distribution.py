"""What the wheel and the source distribution hold: all of the library, and of the rest what each is for."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

from patchkit.version import __version__

ROOT = Path(__file__).parents[1]
DATA = {
    "patchkit/py.typed": "patchkit/py.typed",
    "patchkit/trust/ledger.jsonl": "patchkit/trust/ledger.jsonl",
    "patchkit/adapters/peft_proofs.jsonl": "patchkit/adapters/peft_proofs.jsonl",
    "patchkit/check/static/peft_records.jsonl": "patchkit/check/static/peft_records.jsonl",
    "patchkit/check/static/records.jsonl": "patchkit/check/static/records.jsonl",
    "patchkit/check/results/torch_records.jsonl": "patchkit/check/results/torch_records.jsonl",
    "patchkit/check/results/matrix.html": "patchkit/check/results/matrix.html",
    "patchkit_kernels/py.typed": "kernels/patchkit_kernels/py.typed",
}
"""What is no module: where it is in the wheel, and in the repository."""


def built(builder, folder):
    (file,) = builder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    return Path(file)


def modules(source_root, package):
    return {path.relative_to(source_root).as_posix() for path in (source_root / package).rglob("*.py")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    with zipfile.ZipFile(built(WheelBuilder, tmp_path_factory.mktemp("wheel"))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_holds_the_library_and_nothing_else(wheel):
    information = f"patchkit_lora-{__version__}.dist-info"
    library = {name for name in wheel if not name.startswith(f"{information}/")}
    assert library == modules(ROOT, "patchkit") | modules(ROOT / "kernels", "patchkit_kernels") | set(DATA)
    assert f"{information}/licenses/LICENSE" in wheel
    points = wheel[f"{information}/entry_points.txt"].decode()
    assert "patchkit = patchkit.cli.main:main" in points
    assert "[pytest11]\npatchkit = patchkit.pytest_plugin" in points


@pytest.mark.parametrize("name", DATA)
def test_the_wheel_has_the_data_of_this_folder(name, wheel):
    assert wheel[name] == (ROOT / DATA[name]).read_bytes()


def test_the_source_distribution_holds_what_is_needed_to_test_it(tmp_path):
    with tarfile.open(built(SdistBuilder, tmp_path)) as archive:
        paths = [PurePosixPath(*PurePosixPath(name).parts[1:]) for name in archive.getnames()]
    assert {path.parts[0] for path in paths} == {
        *("patchkit", "kernels", "tests", "tools", "docs", "examples", "benchmarks"),
        *(
            "Makefile",
            "mkdocs.yml",
            "CITATION.cff",
            "constraints.txt",
            "constraints-oldest.txt",
            "pyproject.toml",
            "LICENSE",
            "PKG-INFO",
            ".gitignore",
        ),
        *(
            "README.md",
            "CHANGELOG.md",
            "CONTRIBUTING.md",
            "CODE_OF_CONDUCT.md",
            "SECURITY.md",
            "SUPPORT.md",
            "compat_matrix.md",
            "compat_models.jsonl",
            "coverage.jsonl",
            "coverage.md",
        ),
    }
    assert not [path for path in paths if "__pycache__" in path.parts or path.suffix == ".pyc"]
