"""The page of an index about one package (PEP 503 and 691), read without trusting who answers.

An answer may be of any type, size and speed, and may lead anywhere: it is read up to a size, until a time, and asked
for again a few times where it may be better then.
"""

from __future__ import annotations

import codecs
import http.client
import json
import re
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import IO, Any

from patchkit.processes.children import is_stopping
from patchkit.upstream.addresses import Address, parse_address, without_credentials

PAGE_SECONDS = 60.0
"""How long one page may take, with every redirect and every attempt."""

SILENCE_SECONDS = 15.0
"""How long an index may say nothing."""

PAGE_LIMIT = 32 * 2**20
"""Bytes of a page. That of transformers has 0.3 MB, the largest on PyPI about 20."""

ATTEMPTS = 3
REDIRECTS = 10
_PAUSE = 0.5
_WORTH_ANOTHER = {429, 500, 502, 503, 504}
_FORMATS = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
_ANCHOR_LIMIT = 4096


class PageError(Exception):
    """A page cannot be had, or is none; with the reason, without a password."""


def hashes_on(page: str, settings: Mapping[str, str]) -> dict[str, str]:
    """SHA-256 by file name, of the files for which a page gives one; nothing if the index lacks the package.

    Args:
        page: its address, possibly with a user name and password.
        settings: pip's: ``cert``, ``client-cert`` and ``proxy``.

    Raises:
        PageError: it cannot be read in time, or is not a page of an index.
    """
    return _within(PAGE_SECONDS, lambda end: _hashes_on(page, settings, end))


def _within(seconds: float, work: Callable[[float], dict[str, str]]) -> dict[str, str]:
    """The result of some work, if it is there in time. The work is told when that is; a thread that is not is left.

    A name that is not resolved and headers that trickle cannot be ended in another way.
    """
    outcome: list[dict[str, str] | Exception] = []
    end = time.monotonic() + seconds

    def run() -> None:
        try:
            outcome.append(work(end))
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive() and time.monotonic() < end and not is_stopping():
        thread.join(0.1)
    if not outcome:
        raise PageError("it was interrupted" if is_stopping() else f"it was not there after {seconds:.0f} s")
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def _hashes_on(page: str, settings: Mapping[str, str], end: float) -> dict[str, str]:
    try:
        address = parse_address(page)
        if address.origin[0] == "file":
            kind, content = "text/html", _local(page)
        elif address.origin[0] in ("http", "https"):
            kind, content = _remote(address, settings, end)
        else:
            raise ValueError(f"{address.origin[0]!r} is not a scheme that is read")
        if not content:
            return {}
        return _in_json(content) if kind.endswith("json") else _in_html(content, end)
    except PageError:
        raise
    except RecursionError as error:
        raise PageError("it is nested too deeply") from error
    except http.client.HTTPException as error:
        raise PageError(f"it is no answer of HTTP: {type(error).__name__}") from error
    except (OSError, ValueError, LookupError) as error:
        raise PageError(without_credentials(str(getattr(error, "reason", None) or error))) from error


def _local(page: str) -> str:
    """The page in a folder. Another host's folder is not read, as in pip."""
    parts = urllib.parse.urlsplit(page)
    if parts.netloc not in ("", "localhost"):
        raise ValueError("it is a file of another host")
    file = Path(urllib.request.url2pathname(parts.path)) / "index.html"
    if not file.exists():
        return ""
    if not file.is_file() or file.stat().st_size > PAGE_LIMIT:
        raise ValueError(f"{file} is no file, or is larger than {PAGE_LIMIT >> 20} MiB")
    return file.read_text("utf-8")


# ---- HTTP


def _remote(address: Address, settings: Mapping[str, str], end: float) -> tuple[str, str]:
    """The type and text of a page; no text if there is none."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _followed(address, settings, end)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 404:  # an extra index that does not have the package
                return "", ""
            if error.code not in _WORTH_ANOTHER or attempt == ATTEMPTS:
                raise PageError(f"the index answers {error.code}") from None
        except (OSError, http.client.HTTPException) as error:
            broken = isinstance(getattr(error, "reason", error), ConnectionResetError | http.client.IncompleteRead)
            if not broken or attempt == ATTEMPTS:
                raise
        time.sleep(_PAUSE * attempt)
    raise AssertionError("unreachable")


def _followed(address: Address, settings: Mapping[str, str], end: float) -> tuple[str, str]:
    opener = _opener(settings)
    for _ in range(REDIRECTS + 1):
        # Any encoding would have to be unpacked, by something that stops in time.
        headers = {"Accept": _FORMATS, "Accept-Encoding": "identity", "User-Agent": "patchkit"}
        request = urllib.request.Request(address.url, headers=headers)
        if address.authorization:
            request.add_header("Authorization", address.authorization)
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"it was not there after {PAGE_SECONDS:.0f} s")
        try:
            with opener.open(request, timeout=min(left, SILENCE_SECONDS)) as answer:
                return answer.headers.get_content_type(), _text_of(answer, end)
        except urllib.error.HTTPError as error:
            location = error.headers.get("Location")
            if error.code not in (301, 302, 303, 307, 308) or not location:
                raise
            error.close()
            address = address.redirected(location)
    raise PageError(f"it redirects more than {REDIRECTS} times")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Leaves redirects to :func:`_followed`: urllib sends every header along, and reads all of the answer."""

    def http_error_302(self, *_: Any, **__: Any) -> None:
        """Follow nothing, and do not even take the address apart."""

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _opener(settings: Mapping[str, str]) -> urllib.request.OpenerDirector:
    context = ssl.create_default_context(cafile=settings.get("cert") or None)
    if client := settings.get("client-cert"):
        context.load_cert_chain(client)
    handlers: list[urllib.request.BaseHandler] = [urllib.request.HTTPSHandler(context=context), _NoRedirects()]
    if proxy := settings.get("proxy"):
        handlers.append(urllib.request.ProxyHandler({"http": proxy, "https": proxy}))
    return urllib.request.build_opener(*handlers)


def _text_of(answer: Any, end: float) -> str:
    encoding = (answer.headers.get("Content-Encoding") or "identity").lower()
    if encoding != "identity":
        raise PageError(f"it is encoded as {encoding!r}, which was not asked for")
    said = answer.headers.get("Content-Length") or ""
    if said.isdecimal() and int(said) > PAGE_LIMIT:
        raise PageError(f"it has {int(said) >> 20} MiB, more than {PAGE_LIMIT >> 20}")
    content = _bytes_of(answer, end)
    if said.isdecimal() and len(content) != int(said):
        raise PageError(f"it was cut short: {len(content)} bytes of {said}")
    charset = codecs.lookup(answer.headers.get_content_charset() or "utf-8")
    if not getattr(charset, "_is_text_encoding", True):  # "zip" and "bz2" are codecs, and unpack without a limit
        raise LookupError(f"{charset.name!r} is no encoding of text")
    return content.decode(charset.name, "replace")


def _bytes_of(answer: IO[bytes], end: float) -> bytes:
    content = bytearray()
    while piece := answer.read1(2**16):  # type: ignore[attr-defined]
        content += piece
        if len(content) > PAGE_LIMIT:
            raise PageError(f"it has more than {PAGE_LIMIT >> 20} MiB")
        if time.monotonic() > end:
            raise TimeoutError(f"it was not there after {PAGE_SECONDS:.0f} s")
    return bytes(content)


# ---- formats


def _in_json(content: str) -> dict[str, str]:
    """PEP 691. A file that is not described as it should be has no hash."""
    page = json.loads(content)
    if not isinstance(page, dict) or not isinstance(page.get("files"), list):
        raise ValueError("it is not a page of an index: it has no list of files")
    found = {}
    for file in page["files"]:
        hashes = file.get("hashes") if isinstance(file, dict) else None
        digest = hashes.get("sha256") if isinstance(hashes, dict) else None
        if isinstance(digest, str) and re.fullmatch(r"[0-9a-fA-F]{64}", digest) and isinstance(file["filename"], str):
            found[file["filename"]] = digest.lower()
    return found


def _in_html(content: str, end: float) -> dict[str, str]:
    """PEP 503: each anchor is a file, and its fragment may be the hash."""
    found: dict[str, str] = {}
    starts = [match.start() for match in re.finditer(r"<a\s", content, re.IGNORECASE)]
    for start, following in zip(starts, [*starts, len(content)][1:], strict=True):
        # One anchor at a time and of a bounded length: the parser takes quadratic time on some text.
        reader = _AnchorReader(found)
        reader.feed(content[start : min(following, start + _ANCHOR_LIMIT)])
        if time.monotonic() > end:
            raise TimeoutError(f"it was not read after {PAGE_SECONDS:.0f} s")
    return found


class _AnchorReader(HTMLParser):
    def __init__(self, hashes: dict[str, str]) -> None:
        super().__init__()
        self.hashes = hashes

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the file and hash of an anchor."""
        path, _, fragment = (dict(attrs).get("href") or "").partition("#")
        digest = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
        if tag == "a" and digest:
            name = urllib.parse.unquote(path.partition("?")[0].rpartition("/")[2])
            self.hashes[name] = digest[1].lower()
