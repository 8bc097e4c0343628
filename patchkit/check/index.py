"""The package index that pip is configured for: which releases it has, a wheel from it, and the hash it publishes.

pip itself lists and downloads, so that its mirrors, credentials, proxies and certificates hold here too. The page of
the index (PEP 503 or 691) is read once more for the hash, which pip checks but does not tell.
"""

from __future__ import annotations

import ast
import base64
import json
import os
import re
import ssl
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from functools import lru_cache
from html.parser import HTMLParser
from pathlib import Path

from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from patchkit.check.processes import isolated
from patchkit.check.wheels import PACKAGE
from patchkit.errors import ReleaseError

_PAGE_FORMATS = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
_PAGE_LIMIT = 64 * 2**20
_SECONDS = 30


@dataclass(frozen=True)
class Published:
    """What the pages of the index say of one file.

    Attributes:
        hashes: its SHA-256 digests; several if several indexes offer files of this name.
        where: the pages that give them; or, without a hash, why there is none.
    """

    hashes: frozenset[str]
    where: str


def list_versions(wheels: Path | None = None) -> list[Version]:
    """Every release of transformers that pip can find, without pre-releases, oldest first.

    Args:
        wheels: a folder with wheels to look in, instead of the index.

    Raises:
        ReleaseError: pip finds none, or does not work; with pip's own reason.
    """
    if wheels is not None:
        return sorted({version for version, _ in _wheels_in(wheels) if not version.is_prerelease})
    output = _pip("index", "versions", PACKAGE, "--ignore-requires-python")
    listed = re.search(r"^Available versions: (.*)$", output, re.MULTILINE)
    if listed is None:
        raise ReleaseError(f"pip lists no releases of {PACKAGE}; it said: {output.strip()[:200]!r}")
    return sorted(Version(text) for text in listed[1].split(", "))


def download_wheel(version: str, folder: Path, wheels: Path | None = None) -> Path:
    """Fetch the wheel of one release into ``folder``. A release that wants another Python is fetched all the same.

    Args:
        version: the exact release.
        folder: where to put it.
        wheels: a folder with wheels to take it from, instead of the index.

    Raises:
        ReleaseError: there is none, or pip cannot fetch it; with pip's own reason.
    """
    if wheels is not None:
        for found, path in _wheels_in(wheels):
            if found == Version(version):
                return path
        raise ReleaseError(f"{wheels} has no wheel of {PACKAGE} {version}")
    arguments = ("--no-deps", "--only-binary", ":all:", "--ignore-requires-python", "--progress-bar", "off")
    _pip("download", *arguments, "--dest", str(folder), f"{PACKAGE}=={version}")
    files = list(folder.glob("*.whl"))
    if len(files) != 1:
        raise ReleaseError(f"pip fetched {len(files)} wheels for {PACKAGE} {version}, expected one")
    return files[0]


def published(filename: str) -> Published:
    """The hashes that the configured indexes publish for a file. Never raises: without any, ``where`` says why."""
    hashes: dict[str, str] = {}
    problems = []
    for page in _pages():
        try:
            found = _links(page).get(filename)
        except (OSError, ValueError, urllib.error.URLError) as error:
            problems.append(f"{_shown(page)} cannot be read ({getattr(error, 'reason', None) or error})")
            continue
        if found:
            hashes[found] = _shown(page)
    if hashes:
        return Published(frozenset(hashes), ", ".join(sorted(set(hashes.values()))))
    return Published(frozenset(), "; ".join(problems) or "no index that pip is configured for publishes one")


def _wheels_in(folder: Path) -> list[tuple[Version, Path]]:
    if not folder.is_dir():
        raise ReleaseError(f"{folder} is not a folder")
    found = []
    for path in sorted(folder.glob("*.whl")):
        try:
            name, version, _, _ = parse_wheel_filename(path.name)
        except (InvalidWheelFilename, InvalidVersion):
            continue
        if name == PACKAGE:
            found.append((version, path))
    if not found:
        raise ReleaseError(f"{folder} has no wheel of {PACKAGE}")
    return found


# ---- pip


def _pip(*arguments: str) -> str:
    """Run pip and return what it prints."""
    options = ("--disable-pip-version-check", "--no-input", "--retries", "2")
    command = isolated(Path(sys.executable), "pip", *arguments, *options, like_this=True)
    environment = {**os.environ, "PIP_NO_COLOR": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment, check=False
    )
    if done.returncode:
        raise ReleaseError(f"pip {arguments[0]} failed: {_reason(done.stderr)}")
    return done.stdout


def _reason(text: str) -> str:
    """pip's reason in one line: that of the connection, if there is one, else its last error."""
    if "No module named pip" in text:
        return f"pip is not installed for {sys.executable}; `python -m ensurepip` installs it"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    broken = [line for line in lines if re.search(r"connection broken|Could not fetch URL|Max retries", line)]
    errors = [line.partition("ERROR: ")[2] for line in lines if "ERROR: " in line]
    reason = errors[-1] if errors else (lines[-1] if lines else "it said nothing")
    if broken:
        cause = re.search(r">: ([^'\"]+)", broken[0])
        reason += f"; the index cannot be reached: {cause[1] if cause else broken[0]}"
    return reason if len(reason) <= 400 else f"{reason[:397]}..."


def pip_settings(command: str) -> dict[str, str]:
    """pip's configuration by name: from its files, then for one command of pip, then from the environment.

    Raises:
        ReleaseError: pip does not work; with its own reason.
    """
    ranks = {"global": 0, command: 1, ":env:": 2}
    found: dict[str, tuple[int, str]] = {}
    for line in _pip("config", "list").splitlines():
        key, equals, value = line.partition("=")
        section, _, name = key.partition(".")
        rank = ranks.get(section)
        if equals and rank is not None and rank >= found.get(name, (0, ""))[0]:
            found[name] = (rank, str(ast.literal_eval(value)))
    return {name: value for name, (_, value) in found.items()}


@lru_cache(maxsize=1)
def _settings() -> dict[str, str]:
    return pip_settings("download")


# ---- the pages of an index


def _pages() -> list[str]:
    settings = _settings()
    if settings.get("no-index", "").lower() in {"1", "true", "yes", "on"}:
        return []
    indexes = [settings.get("index-url", "https://pypi.org/simple"), *settings.get("extra-index-url", "").split()]
    return [f"{index.rstrip('/')}/{PACKAGE}/" for index in indexes]


@lru_cache(maxsize=16)
def _links(page: str) -> dict[str, str]:
    """SHA-256 by file name, of the files for which a page gives one.

    Raises:
        OSError: it cannot be read; a :class:`urllib.error.URLError` is one.
        ValueError: it is not a page of an index.
    """
    parts = urllib.parse.urlsplit(page)
    if parts.scheme == "file":
        folder = Path(urllib.request.url2pathname(parts.path))
        return {} if not folder.exists() else _html_links((folder / "index.html").read_text("utf-8"))
    if parts.scheme not in {"http", "https"}:
        raise ValueError(f"{parts.scheme!r} is not a scheme that is read")
    request = urllib.request.Request(_shown(page), headers={"Accept": _PAGE_FORMATS, "User-Agent": "patchkit"})
    if parts.username:
        user, password = (urllib.parse.unquote(text or "") for text in (parts.username, parts.password))
        request.add_header("Authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())
    try:
        with _opener().open(request, timeout=_SECONDS) as answer:
            content, kind = answer.read(_PAGE_LIMIT), answer.headers.get_content_type()
    except urllib.error.HTTPError as error:
        if error.code == 404:  # an extra index that does not have the package
            return {}
        raise
    return (
        _json_links(json.loads(content)) if kind.endswith("json") else _html_links(content.decode("utf-8", "replace"))
    )


def _shown(page: str) -> str:
    """The address without a user name or password."""
    parts = urllib.parse.urlsplit(page)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _opener() -> urllib.request.OpenerDirector:
    settings = _settings()
    context = ssl.create_default_context(cafile=settings.get("cert") or None)
    handlers: list[urllib.request.BaseHandler] = [urllib.request.HTTPSHandler(context=context)]
    if proxy := settings.get("proxy"):
        handlers.append(urllib.request.ProxyHandler({"http": proxy, "https": proxy}))
    return urllib.request.build_opener(*handlers)


def _json_links(page: object) -> dict[str, str]:
    """PEP 691."""
    if not isinstance(page, dict) or not isinstance(page.get("files"), list):
        raise ValueError("it is not a page of an index")
    return {file["filename"]: file["hashes"]["sha256"] for file in page["files"] if "sha256" in file.get("hashes", {})}


def _html_links(page: str) -> dict[str, str]:
    """PEP 503: each anchor is a file, and its fragment may be the hash."""
    reader = _AnchorReader()
    reader.feed(page)
    return reader.hashes


class _AnchorReader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.hashes: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the file and hash of an anchor."""
        link = urllib.parse.urlsplit(dict(attrs).get("href") or "")
        digest = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", link.fragment)
        if tag == "a" and digest:
            self.hashes[urllib.parse.unquote(link.path.rpartition("/")[2])] = digest[1].lower()
