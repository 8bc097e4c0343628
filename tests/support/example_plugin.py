"""The example plugin's package on the path of a test, as if it were installed: a test module names this file in ``pytest_plugins``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from installed_packages import install_package

from patchkit.arch import registry
from patchkit.arch.spec import Architecture

SOURCES = Path(__file__).parents[2] / "examples" / "plugin" / "src"


def put_example(folder: Path, *, entry_point: bool = True) -> Path:
    """Write the example's package into a folder."""
    files = {path.relative_to(SOURCES).as_posix(): path.read_text("utf-8") for path in sorted(SOURCES.rglob("*.py"))}
    points = {"acme": "acme_models.patchkit_architecture:ACME"} if entry_point else {}
    return install_package(folder, "acme-models", files, architectures=points)


@pytest.fixture(scope="module")
def acme(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Architecture]:
    """The example's architecture; its package can be imported, and no entry point names it."""
    folder = put_example(tmp_path_factory.mktemp("site"), entry_point=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        from acme_models.patchkit_architecture import ACME

        with registry.registered_also(ACME):
            yield ACME
    for name in [name for name in sys.modules if name.partition(".")[0] == "acme_models"]:
        del sys.modules[name]
