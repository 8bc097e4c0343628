"""Isolated interpreters: the command that starts one, and what of the user's environment it sees.

What runs a release's code and what runs pip see two different lists of variables. Neither sees the others, in which
tokens and passwords are. This keeps packages apart; it is no sandbox: a process has the rights of the user who starts
it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import patchkit

_SYSTEM = (
    r"PATH|LANG|LANGUAGE|LC_.*|TZ|TMPDIR|TMP|TEMP|LD_LIBRARY_PATH|DYLD_.*LIBRARY_PATH|LD_PRELOAD"
    r"|SYSTEMROOT|SYSTEMDRIVE|WINDIR|COMSPEC|PATHEXT|NUMBER_OF_PROCESSORS|PROCESSOR_.*"
)
_COMPUTING = (
    r"(OMP|KMP|GOMP|MKL|OPENBLAS|BLIS|VECLIB|NUMEXPR|MALLOC|MIMALLOC|CUDA|NVIDIA|ROCR|ROCM|HIP|HSA|ZE|ONEAPI|SYCL|ATEN"
    r"|TORCH|TORCHINDUCTOR|PYTORCH|TRITON)_.*"
)
_NETWORK = (
    r"HOME|USERPROFILE|APPDATA|LOCALAPPDATA|XDG_.*|USER|USERNAME|LOGNAME|NETRC|DBUS_SESSION_BUS_ADDRESS"
    r"|(HTTP|HTTPS|ALL|NO)_PROXY|SSL_CERT_FILE|SSL_CERT_DIR|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE"
)
_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY", re.IGNORECASE)

_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def variables_for_release(home: Path) -> dict[str, str]:
    """Environment variables of a process that runs the code of a release.

    Args:
        home: an empty folder that stands in for the user's home, where settings and tokens are.
    """
    places = {"HOME": str(home), "USERPROFILE": str(home)}
    return {**_chosen(_SYSTEM, _COMPUTING), **places, **_OFFLINE}


def variables_for_pip(settings: Mapping[str, str]) -> dict[str, str]:
    """Environment variables of pip where it installs.

    Args:
        settings: pip's own, by name: where it looks and how it gets there. Files of settings are not read again: one
            that says where to install (``target``, ``prefix``, ``root``, ``user``) would make another environment.
    """
    own = {f"PIP_{name.upper().replace('-', '_')}": value for name, value in settings.items()}
    return {**_chosen(_SYSTEM, _NETWORK), **own, "PIP_CONFIG_FILE": os.devnull}


def _chosen(*patterns: str) -> dict[str, str]:
    """The variables of this process that have one of these names, in either case, and are not called secret."""
    wanted = re.compile("|".join(patterns), re.IGNORECASE)
    return {name: value for name, value in os.environ.items() if wanted.fullmatch(name) and not _SECRET.search(name)}


def package_folders() -> list[str]:
    """The folders of installed packages that this process uses."""
    names = ("site-packages", "dist-packages")
    return [entry for entry in dict.fromkeys(sys.path) if os.path.basename(entry) in names and os.path.isdir(entry)]


def isolated(
    python: Path, target: str, *arguments: str, like_this: bool = False, shown: Sequence[str] = ()
) -> list[str]:
    """The command that runs a module, or serves a function, in an isolated interpreter with this very patchkit.

    Args:
        python: the interpreter.
        target: ``module``, or ``module:function``.
        arguments: of the module.
        like_this: whether it imports from where this process imports from: packages of the user, and the folders that
            ``PYTHONPATH`` names by their whole path. An environment of its own has neither.
        shown: top-level modules that are there also where the environment hides them.
    """
    import patchkit_kernels

    packages = {one.__name__: str(Path(one.__file__ or "").parents[1]) for one in (patchkit, patchkit_kernels)}
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep) if like_this else ()
    setup = {
        "packages": packages,
        "first": [entry for entry in dict.fromkeys(named) if os.path.isabs(entry) and entry in sys.path],
        "folders": package_folders() if like_this else [],
        "shown": list(shown),
    }
    first = str(Path(__file__).with_name("isolated.py"))
    return [str(python), "-I", "-X", "utf8", "-W", "ignore", first, json.dumps(setup), target, *arguments]


@contextlib.contextmanager
def empty_folder() -> Iterator[Path]:
    """A folder of a process's own, for it to stand in. What it left there is deleted."""
    with tempfile.TemporaryDirectory(prefix="patchkit-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
