"""An index that answers anything at all: a typed reason, in bounded time and memory, and no password told to others."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile_index import Answer, Handler, hostile_index

from patchkit.upstream import index, index_page
from patchkit.upstream.addresses import Address, parse_address, without_credentials
from patchkit.upstream.index_page import PageError, hashes_on

WHEEL = "transformers-4.90.0-py3-none-any.whl"
DIGEST = "a1" * 32
JSON = "application/vnd.pypi.simple.v1+json"
ANCHOR = f'<a href="../../{WHEEL}#sha256={DIGEST}" data-requires-python=">=3.9">{WHEEL}</a>'


def entry(**changes: object) -> dict[str, object]:
    return {"filename": WHEEL, "url": WHEEL, "hashes": {"sha256": DIGEST}} | changes


def page(*files: object) -> bytes:
    return json.dumps({"meta": {"api-version": "1.0"}, "name": "transformers", "files": list(files)}).encode()


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_page, "PAGE_SECONDS", 1.0)
    monkeypatch.setattr(index_page, "SILENCE_SECONDS", 0.5)
    monkeypatch.setattr(index_page, "PAGE_LIMIT", 2**20)
    monkeypatch.setattr(index_page, "_PAUSE", 0.01)


def says(body: bytes, code: int = 200, **headers: str | None) -> Answer:
    return lambda handler: handler.reply(body, code, **headers)


GOOD = {
    "JSON": says(page(entry()), Content_Type=JSON),
    "JSON with files of all kinds": says(
        page(None, 5, "x", [], {}, entry(filename=None), entry(hashes=None), entry(hashes=[1]), entry())
        .replace(b"null", b"null", 1),
        Content_Type=JSON,
    ),
    "JSON with hashes that are none": says(
        page(*(entry(filename="x.whl", hashes={"sha256": bad}) for bad in (None, 5, "", "zz" * 32, ["a1" * 32])), entry()),
        Content_Type=JSON,
    ),
    "HTML": says(ANCHOR.encode()),
    "HTML with anything else": says(f"<!-- <a\n <script>{ANCHOR.upper()[:20]} </p> &#xffffff; {ANCHOR}".encode()),
    "HTML in Latin 1": says(f"<p>é</p>{ANCHOR}".encode("latin-1"), Content_Type="text/html; charset=latin-1"),
    "HTML that says it is UTF-8": says(b"\xff\xfe" + ANCHOR.encode()),
}  # fmt: skip


@pytest.mark.usefixtures("limits")
@pytest.mark.parametrize("answer", GOOD.values(), ids=GOOD)
def test_what_can_be_read(answer: Answer) -> None:
    with hostile_index(answer) as server:
        assert hashes_on(f"{server.address}/transformers/", {}).get(WHEEL) == DIGEST


def endless(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.trickle(b"x" * 2**16)


def slow_body(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.trickle(b"x")


def slow_headers(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.0 200 OK\r\nX-Slow: ")
    handler.trickle(b"x")


def silent(handler: Handler) -> None:
    handler.server.closing.wait(10)


def endless_redirect_body(handler: Handler) -> None:
    handler.send_response(302)
    handler.send_header("Location", f"/{len(handler.server.asked)}")
    handler.end_headers()
    handler.trickle(b"x" * 2**16)


def hang_up(handler: Handler) -> None:
    handler.connection.close()


BAD: dict[str, tuple[Answer, str, int]] = {
    "HTML that says it is JSON": (says(b"<!DOCTYPE html>", Content_Type=JSON), "Expecting value", 1),
    "a list": (says(b"[]", Content_Type=JSON), "has no list of files", 1),
    "files that are no list": (says(b'{"files": {"a": 1}}', Content_Type=JSON), "has no list of files", 1),
    "JSON that is nested deeply": (says(b"[" * 200_000, Content_Type=JSON), "nested too deeply", 1),
    "a number without an end": (says(b'{"files": ' + b"9" * 9999 + b"}", Content_Type=JSON), "", 1),
    "JSON that is binary": (says(bytes(range(256)), Content_Type=JSON), "", 1),
    "too long, as it says": (says(b"", Content_Length=str(2**40)), "MiB, more than 1", 1),
    "too long": (endless, "more than 1 MiB", 1),
    "shorter than it says": (says(b"x", Content_Length="100"), "cut short: 1 bytes of 100", 1),
    "an encoding that nobody asked for": (says(b"x", Content_Encoding="gzip"), "encoded as 'gzip'", 1),
    "a charset that is none": (says(b"x", Content_Type="text/html; charset=no-such"), "unknown encoding", 1),
    "a charset that unpacks": (says(b"x", Content_Type="text/html; charset=bz2"), "is no encoding of text", 1),
    "slow": (slow_body, "was not there after 1 s", 1),
    "slow headers": (slow_headers, "was not there after 1 s", 1),
    "silent": (silent, "timed out", 1),
    "no HTTP": (lambda handler: handler.wfile.write(b"SSH-2.0-OpenSSH_9.9\r\n") and None, "no answer of HTTP", 1),
    "headers without an end": (lambda h: h.wfile.write(b"HTTP/1.0 200 OK\r\n" + b"A: b\r\n" * 500) and None, "HTTP", 1),
    "a header without an end": (lambda h: h.wfile.write(b"HTTP/1.0 200 OK\r\nA: " + b"b" * 70_000) and None, "HTTP", 1),
    "a broken chunk": (says(b"zz\r\n", Content_Length=None, Transfer_Encoding="chunked"), "", 1),
    "hangs up": (hang_up, "", 1),
    "forbidden": (says(b"", 403), "answers 403", 1),
    "broken for good": (says(b"", 500), "answers 500", 3),
    "overloaded": (says(b"", 503), "answers 503", 3),
    "redirects to itself": (says(b"", 302, Location="/transformers/"), "redirects more than 10 times", 11),
    "redirects on and on": (lambda h: h.reply(b"", 301, Location=f"{h.path}x"), "redirects more than 10 times", 11),
    "redirects with a body without an end": (endless_redirect_body, "redirects more than 10 times", 11),
    "redirects to a file": (says(b"", 302, Location="file:///etc/passwd"), "neither http nor https", 1),
    "redirects to FTP": (says(b"", 302, Location="ftp://127.0.0.1/"), "neither http nor https", 1),
    "redirects to nowhere": (says(b"", 302, Location="http://[::1"), "not a valid address", 1),
    "redirects to a port that is none": (says(b"", 302, Location="http://127.0.0.1:99999/"), "not a valid address", 1),
    "redirects without saying where": (says(b"", 302), "answers 302", 1),
}  # fmt: skip


@pytest.mark.usefixtures("limits")
@pytest.mark.parametrize(("answer", "said", "asked"), BAD.values(), ids=BAD)
def test_what_is_no_page(answer: Answer, said: str, asked: int) -> None:
    """A reason in one line, after as many requests as it is worth."""
    with hostile_index(answer) as server:
        with pytest.raises(PageError) as error:
            hashes_on(f"{server.address}/transformers/", {})
        assert said in str(error.value)
        assert str(error.value)
        if said:
            assert len(server.asked) == asked
        assert len(server.asked) <= index_page.REDIRECTS + 1


@pytest.mark.usefixtures("limits")
def test_an_index_that_recovers() -> None:
    def answer(handler: Handler) -> None:
        handler.reply(ANCHOR.encode(), 200 if len(handler.server.asked) == 3 else 503)

    with hostile_index(answer) as server:
        assert hashes_on(f"{server.address}/transformers/", {}) == {WHEEL: DIGEST}


@pytest.mark.parametrize("tail", ["<a " * 50_000, "<a href='" * 100_000, "<!--" * 200_000, "<a " + "x=" * 400_000])
def test_text_that_is_slow_to_parse(tail: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in time, or given up in time: the time that one anchor takes is bounded by its length."""
    longest: list[int] = []
    feed = index_page._AnchorReader.feed

    def measured(self: index_page._AnchorReader, text: str) -> None:
        longest.append(len(text))
        feed(self, text)

    monkeypatch.setattr(index_page._AnchorReader, "feed", measured)
    with contextlib.suppress(TimeoutError):
        assert index_page._in_html(ANCHOR + tail, time.monotonic() + 20).get(WHEEL) == DIGEST
    assert max(longest) <= index_page._ANCHOR_LIMIT


def test_no_thread_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be ended in another way, a name that is not resolved say, is left behind."""
    monkeypatch.setattr(index_page, "PAGE_SECONDS", 0.2)
    never = threading.Event()
    monkeypatch.setattr(index_page, "_hashes_on", lambda *_: never.wait())
    with pytest.raises(PageError, match="was not there after 0 s"):
        hashes_on("http://127.0.0.1:9/transformers/", {})
    never.set()


class TestPasswords:
    SECRET = "Basic dXNlcjpwYXNz"  # user:pass

    @staticmethod
    def with_password(address: str) -> str:
        return address.replace("://", "://user:pass@") + "/transformers/"

    @pytest.mark.usefixtures("limits")
    def test_the_index_is_told(self) -> None:
        with hostile_index(says(ANCHOR.encode())) as server:
            assert hashes_on(self.with_password(server.address), {}) == {WHEEL: DIGEST}
            assert server.asked == [("/transformers/", self.SECRET)]

    @pytest.mark.usefixtures("limits")
    def test_the_same_index_is_told_again_and_another_is_not(self) -> None:
        """On redirect to another path, then to another port, which is another host to HTTP."""
        with hostile_index(says(ANCHOR.encode())) as other:

            def answer(handler: Handler) -> None:
                here = handler.path == "/here/"
                handler.reply(b"", 302, Location=f"{other.address}/there/" if here else "/here/")

            with hostile_index(answer) as server:
                assert hashes_on(self.with_password(server.address), {}) == {WHEEL: DIGEST}
                assert server.asked == [("/transformers/", self.SECRET), ("/here/", self.SECRET)]
            assert other.asked == [("/there/", None)]

    @pytest.mark.usefixtures("limits")
    def test_a_password_that_the_redirect_names_is_for_whom_it_names(self) -> None:
        """An index that knows no password cannot make us log in somewhere."""
        with hostile_index(says(ANCHOR.encode())) as other:
            location = other.address.replace("://", "://evil:pass@")
            with hostile_index(says(b"", 302, Location=location)) as server:
                hashes_on(f"{server.address}/transformers/", {})
            assert other.asked == [("/", None)]

    @pytest.mark.parametrize(
        ("first", "location", "kept"),
        [
            ("https://u:p@a.example/x/", "/y/", True),
            ("https://u:p@a.example/x/", "https://A.example:443/y/", True),
            ("https://u:p@a.example/x/", "//a.example/y/", True),
            ("https://u:p@a.example/x/", "https://b.example/x/", False),
            ("https://u:p@a.example/x/", "https://a.example.b.example/x/", False),
            ("https://u:p@a.example/x/", "https://a.example:8443/x/", False),
            ("http://u:p@a.example/x/", "https://a.example/x/", False),
            ("http://u:p@a.example:8080/x/", "http://a.example/x/", False),
            ("https://u:p@a.example/x/", "http://a.example/x/", None),
            ("https://u:p@a.example/x/", "http://b.example/x/", None),
            ("https://u:p@a.example/x/", "file:///etc/passwd", None),
            ("http://u:p@a.example/x/", "data:text/html,x", None),
        ],
    )  # fmt: skip
    def test_who_is_told(self, first: str, location: str, kept: bool | None) -> None:
        """None: it is not followed at all; from https, nothing leads to what anybody on the way can change."""
        address = parse_address(first)
        if kept is None:
            with pytest.raises(ValueError, match="redirects"):
                address.redirected(location)
        else:
            assert bool(address.redirected(location).authorization) == kept
            assert address.redirected(location).redirected("/back/").authorization == (address.authorization * kept)

    @pytest.mark.parametrize(
        "address",
        [
            "https://user:hunter2@127.0.0.1:1/simple",
            "https://hunter2@127.0.0.1:1/simple",
            "https://:hunter2@127.0.0.1:1/simple",
            "https://user:hunter2%40x@127.0.0.1:1/simple",
            "https://user:@hunter2@127.0.0.1:1/simple",
            "https://user:hunter2/x@127.0.0.1:1/simple",
            "https://user:x/hunter2@127.0.0.1:1/simple",
            "https://user:hunter2#x@127.0.0.1:1/simple",
            "https://user:x?hunter2@127.0.0.1:1/simple",
            "https://user:hunter2@[::1/simple",
            "https://user:hunter2@127.0.0.1:port/simple",
            "file://user:hunter2@127.0.0.1/simple",
            "hunter://user:hunter2@127.0.0.1/simple",
        ],
    )
    def test_nobody_is_shown_one(self, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """In what is said, printed and kept: the reason that no hash was checked stands in all of them."""
        monkeypatch.setattr(index, "_settings", lambda: {"index-url": address})
        assert "hunter2" not in index.published(WHEEL).where
        assert "hunter2" not in without_credentials(f"ERROR: could not reach {address}, see {address}")

    def test_what_pip_says_has_none(self, use_index: Callable[[str], None]) -> None:
        use_index("http://user:hunter2@127.0.0.1:9/simple")
        with pytest.raises(index.ReleaseError) as error:
            index.list_versions()
        assert "hunter2" not in str(error.value)

    def test_an_address_keeps_what_it_needs(self) -> None:
        assert parse_address("https://u%40x:p%3A@h/x#f") == Address("https://h/x", "Basic dUB4OnA6")


@pytest.mark.parametrize(
    ("host", "read"), [("", True), ("localhost", True), ("other.example", False), ("127.0.0.1", False)]
)
def test_a_folder_of_another_host_is_not_read(tmp_path: Path, host: str, read: bool) -> None:
    """As pip decides it."""
    (tmp_path / "index.html").write_text(ANCHOR)
    address = tmp_path.as_uri().replace("file://", f"file://{host}")
    if read:
        assert hashes_on(address, {}) == {WHEEL: DIGEST}
    else:
        with pytest.raises(PageError, match="a file of another host"):
            hashes_on(address, {})
