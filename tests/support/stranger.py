"""Packages installed as a stranger's: built by pip into a folder, and used by fresh processes that find them there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path


def pip_install(source: Path, site: Path, workshop: Path) -> None:
    """Build a package from its sources and put it into a folder. Neither an index nor the sources are touched."""
    copy = workshop / source.name
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-index"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(site), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Stranger:
    """Runs commands where some packages are installed.

    Attributes:
        site: the folder of the packages.
        home: where commands stand.
    """

    def __init__(self, site: Path, home: Path) -> None:
        self.site, self.home = site, home

    def python(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = (
            os.environ | {"PYTHONPATH": str(self.site), "PATCHKIT_CACHE": str(self.home / "cache")} | variables
        )
        command = [sys.executable, "-W", "ignore", *arguments]
        return subprocess.run(command, cwd=self.home, capture_output=True, text=True, env=environment)

    def patchkit(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.python("-c", "from patchkit.cli.main import main; main()", *arguments)

    def pytest(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """With patchkit's plugin, as its entry point would load it."""
        options = ["-p", "patchkit.pytest_plugin", "-p", "no:cacheprovider", "-v"]
        return self.python("-m", "pytest", *options, *arguments, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
