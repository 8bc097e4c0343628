"""Installing a release with pip into an environment, and nowhere else."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from patchkit.errors import ReleaseEnvironmentError
from patchkit.processes.children import ChildError, last_line, run_child
from patchkit.processes.interpreters import isolated, variables_for_pip
from patchkit.upstream.index import pip_settings

_PINNED = ("torch", "triton", "numpy", "libcst")

_SETTINGS = frozenset(
    {
        "index-url",
        "extra-index-url",
        "find-links",
        "no-index",
        "trusted-host",
        "cert",
        "client-cert",
        "proxy",
        "timeout",
        "default-timeout",
        "retries",
        "cache-dir",
        "no-cache-dir",
        "keyring-provider",
        "use-feature",
        "use-deprecated",
    }
)
"""Settings of pip that say where it looks and how it gets there. The others say what is installed and where to, and
that is said here: ``target``, ``prefix``, ``root``, ``user``, ``python``, ``dry-run``, ``constraint``, ..."""


def install(
    python: Path,
    requirements: tuple[str, ...],
    label: str,
    seconds: float,
    *,
    named: str = "",
    free: frozenset[str] = frozenset(),
) -> None:
    """Install requirements into the environment of an interpreter, with torch and its like as they are.

    Args:
        python: the interpreter, which sees a pip.
        requirements: the release first; only a checkout is built, which runs its code.
        label: of the release, for messages.
        seconds: after which pip is stopped.
        named: what is installed, for messages, where that is not a release of transformers alone.
        free: packages that are usually pinned, and are not now.

    Raises:
        ReleaseEnvironmentError: pip cannot install them, or takes longer.
        OSError: a file or process cannot be made.
    """
    constraints = python.parents[1] / "constraints.txt"
    constraints.write_text("".join(f"{pin}\n" for pin in _pins(free)), encoding="utf-8")
    arguments = ["install", "--quiet", "--no-input", "--disable-pip-version-check", "--no-compile"]
    arguments += ["--constraint", str(constraints)]
    if not any(map(os.path.isdir, requirements)):
        arguments += ["--only-binary", ":all:"]
    settings = {name: value for name, value in pip_settings("install").items() if name in _SETTINGS}
    command = isolated(python, "pip", *arguments, *requirements)
    try:
        done = run_child(command, seconds=seconds, environment=variables_for_pip(settings))
    except ChildError as error:
        raise ReleaseEnvironmentError(
            f"{named or f'transformers {label}'} cannot be installed: pip was stopped, because {error}"
        ) from error
    if done.code:
        raise ReleaseEnvironmentError(f"{named or f'transformers {label}'} cannot be installed: {_reason(done.said)}")


def _pins(free: frozenset[str] = frozenset()) -> Iterator[str]:
    for name in _PINNED:
        if name in free:
            continue
        try:
            yield f"{name}=={version(name).split('+')[0]}"
        except PackageNotFoundError:
            continue


def _reason(said: str) -> str:
    errors = [line.removeprefix("ERROR: ").strip() for line in said.splitlines() if line.startswith("ERROR:")]
    text = "; ".join(dict.fromkeys(errors)) or last_line(said)
    # pip lists every version there is.
    return re.sub(r"\(from versions: (?:[^,)]*, )*([^,)]*)\)", r"(the newest is \1)", text)
