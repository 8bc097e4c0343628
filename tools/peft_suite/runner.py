"""Runs PEFT's tests in processes of their own, plain or patched."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from patchkit.errors import PatchkitError
from tools.peft_suite.outcomes import Outcome, read
from tools.peft_suite.stand_ins import write_datasets

_PLUGIN = "tools.peft_suite.plugin"
# PEFT makes an error of every deprecation in transformers. With a transformers that is newer than this PEFT, that ends
# tests in both runs before they reach a block.
_WARNINGS = ("-W", "default::FutureWarning", "-W", "default::DeprecationWarning")
# pytest: all passed, some failed. Everything else means that the run says nothing.
_RAN = (0, 1)


class SuiteError(PatchkitError):
    """PEFT's tests are not where they were said to be, or pytest could not run them."""


@dataclass(frozen=True)
class Suite:
    """PEFT's tests, copied so that neither run writes into the checkout or sees files of the other.

    Attributes:
        source: the checkout or unpacked source distribution.
        work: an empty folder for the copies.
        stand_ins: the folder with stand-ins to use as ``HF_HOME``; None to use the hub.
        jobs: number of test processes.
    """

    source: Path
    work: Path
    stand_ins: Path | None
    jobs: int

    def run(self, arguments: Sequence[str], *, patched: bool, name: str) -> dict[str, Outcome]:
        """Run the tests once, and pass pytest's progress through.

        Args:
            arguments: of pytest: files below ``tests/``, ``-k``, ...; all tests if there is none.
            patched: whether ``patchkit.apply`` is injected.
            name: of the folder to make for this run.

        Raises:
            SuiteError: pytest ended before all tests were run.
        """
        folder = self.work / name
        self._copy(folder)
        outcomes = folder / "outcomes.json"
        command = [sys.executable, "-m", "pytest", "-p", _PLUGIN, "--rootdir", str(folder)]
        command += ["-c", str(self._configuration(folder)), "-o", "addopts="]
        command += ["-q", "--no-header", "--no-summary", "--tb=short", "--continue-on-collection-errors"]
        command += ["-p", "no:cacheprovider", f"--peft-outcomes={outcomes}", *_WARNINGS]
        command += ["-n", str(self.jobs)] if self.jobs > 1 else []
        command += ["--peft-patched"] if patched else []
        command += ["--peft-stand-ins"] if self.stand_ins else []
        command += arguments or ["tests"]
        code = subprocess.run(command, cwd=folder, env=self._environment(folder), check=False).returncode
        if code not in _RAN or not outcomes.exists():
            raise SuiteError(f"pytest ended with status {code} in the run {name!r}; its output above says why")
        return read(outcomes)

    def _copy(self, folder: Path) -> None:
        shutil.copytree(self.source / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        # PEFT's source distributions leave it out, and the tests import one another relatively.
        (folder / "tests" / "__init__.py").touch()
        if self.stand_ins:
            write_datasets(folder)

    def _configuration(self, folder: Path) -> Path:
        """PEFT's own pytest settings (which warnings are errors, for instance), else none."""
        configuration = self.source / "pyproject.toml"
        if configuration.exists():
            return configuration
        empty = folder / "pytest.ini"
        empty.write_text("[pytest]\n")
        return empty

    def _environment(self, folder: Path) -> dict[str, str]:
        environment = dict(os.environ)
        paths = [str(self.source / "src"), str(folder), *_import_paths(), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        # The processes share the cores already.
        environment.setdefault("OMP_NUM_THREADS", "1")
        if self.stand_ins:
            offline = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
            environment |= dict.fromkeys(offline, "1") | {"HF_HOME": str(self.stand_ins)}
        return environment


def _import_paths() -> list[str]:
    """Where this patchkit and its kernels are, so that the tests run with them from any folder."""
    specs = [importlib.util.find_spec(package) for package in ("patchkit", "patchkit_kernels")]
    return [str(Path(spec.origin).parents[1]) for spec in specs if spec is not None and spec.origin is not None]


def check_source(source: Path) -> None:
    """Make sure that a folder has PEFT's tests.

    Raises:
        SuiteError: it has not.
    """
    if not any((source / "tests").glob("test_*.py")):
        raise SuiteError(
            f"{source} has no tests/test_*.py. Give a checkout of PEFT, or an unpacked source distribution: "
            "pip download --no-binary peft --no-deps peft, then tar xf peft-*.tar.gz"
        )


def versions(source: Path) -> dict[str, str]:
    """The versions of what is tested: PEFT's from its source, the others from what is installed."""
    found = {name: metadata.version(name) for name in ("peft", "transformers", "torch")}
    module = source / "src" / "peft" / "__init__.py"
    if module.exists() and (match := re.search(r'^__version__ = "(.+)"', module.read_text(), re.MULTILINE)):
        found["peft"] = match[1]
    return found


def hub_is_reachable(timeout: float = 3.0) -> bool:
    """Whether the Hugging Face hub answers within ``timeout`` seconds."""
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        with urllib.request.urlopen(urllib.request.Request(endpoint, method="HEAD"), timeout=timeout):
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
