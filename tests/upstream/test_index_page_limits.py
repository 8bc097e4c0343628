"""The page of an index, part by part and without a server: its limits on both sides, its two formats, its addresses."""

from __future__ import annotations

import email.message
import io
import json
import threading
import time
import urllib.error
from types import SimpleNamespace

import pytest

from patchkit.upstream import index_page
from patchkit.upstream.addresses import Address, parse_address, without_credentials
from patchkit.upstream.index_page import PageError

DIGEST = "a1" * 32
FOR_EVER = float("inf")


# ---- bytes and text


class Reply:
    """An answer of HTTP: its headers, and its body in pieces."""

    def __init__(self, *pieces: bytes, **headers: str) -> None:
        self.headers = email.message.Message()
        for name, value in headers.items():
            self.headers[name.replace("_", "-")] = value
        self._pieces = [*pieces, b""]

    def read1(self, size: int) -> bytes:
        return self._pieces.pop(0)


LENGTHS = {
    # what is sent, what it says, what comes of it
    (9, None): 9, (10, None): 10, (11, None): "more than", (9, "9"): 9, (10, "10"): 10, (11, "11"): "0 MiB, more than 0",
    (9, "10"): "cut short: 9 bytes of 10", (10, "9"): "cut short: 10 bytes of 9", (9, ""): 9, (9, "nine"): 9, (0, "0"): 0,
    (9, "-1"): 9,
}  # fmt: skip


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize(("sent", "said"), LENGTHS, ids=repr)
def test_how_long_a_page_may_be(sent: int, said: str | None, pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_page, "PAGE_LIMIT", 10)
    body = b"x" * sent
    parts = [part for part in ((body,) if pieces == 1 else (body[:4], body[4:])) if part]
    answer = Reply(*parts, **({} if said is None else {"Content_Length": said}))
    expected = LENGTHS[sent, said]
    if isinstance(expected, int):
        assert index_page._text_of(answer, FOR_EVER) == "x" * expected
    else:
        with pytest.raises(PageError, match=expected):
            index_page._text_of(answer, FOR_EVER)


@pytest.mark.parametrize(("late", "in_time"), [(-1.0, True), (0.0, True), (1.0, False)])
def test_a_page_that_trickles_has_a_second_at_which_it_ends(
    late: float, in_time: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_page, "time", SimpleNamespace(monotonic=lambda: 100.0 + late))
    if in_time:
        assert index_page._bytes_of(Reply(b"a", b"b"), 100.0) == b"ab"  # type: ignore[arg-type]
        assert index_page._in_html("<a href='x'>", 100.0) == {}
    else:
        with pytest.raises(TimeoutError, match="was not there after 60 s"):
            index_page._bytes_of(Reply(b"a", b"b"), 100.0)  # type: ignore[arg-type]
        with pytest.raises(TimeoutError, match="was not read after 60 s"):
            index_page._in_html("<a href='x'>", 100.0)


TEXTS = {
    # headers: (bytes, text, or an error)
    (): (b"h\xc3\xb6her", "höher"),
    (("Content_Type", "text/html"),): (b"h\xc3\xb6her", "höher"),
    (("Content_Type", "text/html; charset=latin-1"),): (b"h\xf6her", "höher"),
    (("Content_Type", "text/html; charset=utf-8"),): (b"\xff.", "\ufffd."),
    (("Content_Encoding", "identity"),): (b"x", "x"),
    (("Content_Encoding", "IDENTITY"),): (b"x", "x"),
    (("Content_Encoding", ""),): (b"x", "x"),
    (("Content_Encoding", "gzip"),): (b"x", "encoded as 'gzip'"),
    (("Content_Type", "text/html; charset=zip"),): (b"x", "is no encoding of text"),
    (("Content_Type", "text/html; charset=none-such"),): (b"x", "unknown encoding"),
}


@pytest.mark.parametrize("headers", TEXTS, ids=str)
def test_the_text_of_an_answer(headers: tuple[tuple[str, str], ...]) -> None:
    sent, expected = TEXTS[headers]
    if "encod" in expected:
        with pytest.raises((PageError, LookupError), match=expected):
            index_page._text_of(Reply(sent, **dict(headers)), FOR_EVER)
    else:
        assert index_page._text_of(Reply(sent, **dict(headers)), FOR_EVER) == expected


# ---- formats


def file(**changes: object) -> dict[str, object]:
    return {"filename": "a.whl", "hashes": {"sha256": DIGEST}} | changes


FILES = {
    "a file": (file(), {"a.whl": DIGEST}),
    "capitals": (file(hashes={"sha256": DIGEST.upper()}), {"a.whl": DIGEST}),
    "more hashes": (file(hashes={"md5": "1", "sha256": DIGEST}), {"a.whl": DIGEST}),
    "another hash": (file(hashes={"sha512": DIGEST}), {}),
    "no hash": (file(hashes={}), {}),
    "a hash that is none": (file(hashes={"sha256": DIGEST[:-1]}), {}),
    "a longer hash": (file(hashes={"sha256": f"{DIGEST}0"}), {}),
    "a hash that is no text": (file(hashes={"sha256": 5}), {}),
    "hashes that are a list": (file(hashes=["sha256"]), {}),
    "no hashes": ({"filename": "a.whl"}, {}),
    "a name that is no text": (file(filename=5), {}),
    "no object": ("a.whl", {}),
    "nothing": (None, {}),
}


@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize("case", FILES)
def test_each_file_in_json(case: str, others: int) -> None:
    """One that is not as it should be hides no other."""
    entry, expected = FILES[case]
    page = {"files": [entry, *[file(filename="other.whl")] * others]}
    assert index_page._in_json(json.dumps(page)) == expected | ({"other.whl": DIGEST} if others else {})


@pytest.mark.parametrize("page", [[], {}, {"files": None}, {"files": {}}, "files", 5, None])
def test_what_is_no_page_in_json(page: object) -> None:
    with pytest.raises(ValueError, match="it has no list of files"):
        index_page._in_json(json.dumps(page))


ANCHORS = {
    f'<a href="a.whl#sha256={DIGEST}">': {"a.whl": DIGEST},
    f"<A HREF='../../x/a.whl#sha256={DIGEST.upper()}'>": {"a.whl": DIGEST},
    f'<a\nclass="x" href="/a.whl?x=/y#sha256={DIGEST}">': {"a.whl": DIGEST},
    f'<a href="a%2Bcpu.whl#sha256={DIGEST}">': {"a+cpu.whl": DIGEST},
    f'<a href="a.whl#sha256={DIGEST}"><a href="b.whl#sha256={DIGEST}">': {"a.whl": DIGEST, "b.whl": DIGEST},
    f'<a href="a.whl"><a href="b.whl#sha256={DIGEST}">': {"b.whl": DIGEST},
    f'<a name="x"><a href><a href="b.whl#sha256={DIGEST}">': {"b.whl": DIGEST},
    f'<a href="a.whl#sha256={DIGEST[:-1]}">': {},
    f'<a href="a.whl#sha512={DIGEST}">': {},
    f'<a href="a.whl#sha256={DIGEST}&x=y">': {},
    f'<abbr href="a.whl#sha256={DIGEST}">': {},
    f'<link href="a.whl#sha256={DIGEST}">': {},
    f'<a title="x"><img href="a.whl#sha256={DIGEST}">': {},
    "": {},
}


@pytest.mark.parametrize("text", ANCHORS, ids=range(len(ANCHORS)))
def test_each_anchor_in_html(text: str) -> None:
    assert index_page._in_html(text, FOR_EVER) == ANCHORS[text]
    assert index_page._in_html(f"<p>{text}</p>", FOR_EVER) == ANCHORS[text]


@pytest.mark.parametrize(("length", "read"), [(-1, True), (0, True), (1, False)])
def test_how_long_an_anchor_may_be(length: int, read: bool) -> None:
    anchor = f'<a href="a.whl#sha256={DIGEST}" title="'
    anchor += "x" * (index_page._ANCHOR_LIMIT - len(anchor) - 2 + length) + '">'
    assert len(anchor) == index_page._ANCHOR_LIMIT + length
    for behind in ("", f'<a href="b.whl#sha256={DIGEST}">'):
        found = index_page._in_html(anchor + behind, FOR_EVER)
        assert ("a.whl" in found, "b.whl" in found) == (read, bool(behind))


# ---- attempts


def answer(code: int) -> urllib.error.HTTPError:
    return urllib.error.HTTPError("http://a", code, "", email.message.Message(), io.BytesIO())


OUTCOMES = {
    # what each attempt gives: (how many are made, what comes of it)
    "at once": (["fine"], 1, "fine"),
    "at the second": ([answer(503), "fine"], 2, "fine"),
    "at the third": ([answer(500), ConnectionResetError(), "fine"], 3, "fine"),
    "never": ([answer(502)] * 3, 3, "the index answers 502"),
    "cut off for ever": ([ConnectionResetError("reset")] * 3, 3, "reset"),
    "cut off below": ([urllib.error.URLError(ConnectionResetError("reset")), "fine"], 2, "fine"),
    "cut short": ([index_page.http.client.IncompleteRead(b""), "fine"], 2, "fine"),
    "not there": ([answer(404)], 1, ""),
    "nobody listens": ([ConnectionRefusedError("refused")], 1, "refused"),
    "a line that is none": ([index_page.http.client.BadStatusLine("x")], 1, "x"),
    "an error of the code": ([ValueError("wrong")], 1, "wrong"),
} | {f"answers {code}": ([answer(code), "fine"], 2, "fine") for code in (429, 500, 502, 503, 504)}
OUTCOMES |= {
    f"answers {code} for good": ([answer(code), "fine"], 1, f"the index answers {code}")
    for code in (400, 401, 403, 410, 501)
}


@pytest.mark.parametrize("case", OUTCOMES)
def test_what_is_worth_another_attempt(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a pause that grows."""
    results, attempts, expected = OUTCOMES[case]
    made, pauses = [], []

    def followed(*arguments: object) -> tuple[str, str]:
        result = results[len(made)]
        made.append(arguments)
        if isinstance(result, Exception):
            raise result
        return "text/html", result

    monkeypatch.setattr(index_page, "_followed", followed)
    monkeypatch.setattr(index_page, "time", SimpleNamespace(sleep=pauses.append, monotonic=time.monotonic))
    try:
        kind, text = index_page._remote(Address("http://a"), {}, FOR_EVER)
    except Exception as error:
        text, kind = str(error), "text/html"
    assert (text, len(made)) == (expected, attempts)
    assert kind == ("" if case == "not there" else "text/html")
    assert pauses == [0.5, 1.0][: attempts - 1]


def test_work_that_ends_in_time_that_fails_and_that_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    assert index_page._within(60.0, lambda end: told.append(end) or {"a": "b"}) == {"a": "b"}
    assert 0 < told[0] - time.monotonic() <= 60
    with pytest.raises(ZeroDivisionError):
        index_page._within(60.0, lambda end: {"a": str(1 / 0)})
    never = threading.Event()
    for stopping, said in ((False, "it was not there after 0 s"), (True, "it was interrupted")):
        monkeypatch.setattr(index_page, "is_stopping", lambda stopping=stopping: stopping)
        start = time.monotonic()
        with pytest.raises(PageError, match=said):
            index_page._within(0.2 if not stopping else 60.0, lambda end: never.wait(90) and {})
        assert time.monotonic() - start < 30
    never.set()


class Opener:
    """Follows a plan: an address is a page, or a redirect to another."""

    def __init__(self, plan: dict[str, str]) -> None:
        self.plan, self.asked = plan, []

    def open(self, request, timeout: float):
        self.asked.append((request.full_url, dict(request.header_items()), timeout))
        target = self.plan.get(request.full_url)
        if target is not None:
            headers = email.message.Message()
            code, _, location = target.partition(" ")
            if location:
                headers["Location"] = location
            raise urllib.error.HTTPError(request.full_url, int(code), "", headers, io.BytesIO())
        reply = Reply(b"fine", Content_Type="text/plain")
        return type("Context", (), {"__enter__": lambda self: reply, "__exit__": lambda *_: None})()


@pytest.mark.parametrize("code", [300, 301, 302, 303, 304, 307, 308, 404])
@pytest.mark.parametrize("location", ["", " http://a/2"])
def test_which_answers_lead_elsewhere(code: int, location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opener = Opener({"http://a/1": f"{code}{location}"})
    monkeypatch.setattr(index_page, "_opener", lambda settings: opener)
    if code in (301, 302, 303, 307, 308) and location:
        assert index_page._followed(Address("http://a/1", "secret"), {}, FOR_EVER) == ("text/plain", "fine")
        assert [headers["Authorization"] for _, headers, _ in opener.asked] == ["secret"] * 2
    else:
        with pytest.raises(urllib.error.HTTPError):
            index_page._followed(Address("http://a/1"), {}, FOR_EVER)


@pytest.mark.parametrize("redirects", [0, 1, 9, 10, 11])
def test_how_often_it_may_lead_elsewhere(redirects: int, monkeypatch: pytest.MonkeyPatch) -> None:
    opener = Opener({f"http://a/{number}": f"302 http://a/{number + 1}" for number in range(redirects)})
    monkeypatch.setattr(index_page, "_opener", lambda settings: opener)
    if redirects <= 10:
        assert index_page._followed(Address("http://a/0"), {}, FOR_EVER)[1] == "fine"
    else:
        with pytest.raises(PageError, match="redirects more than 10 times"):
            index_page._followed(Address("http://a/0"), {}, FOR_EVER)
    assert len(opener.asked) == min(redirects, 10) + 1


@pytest.mark.parametrize(("left", "waits"), [(60.0, 15.0), (15.0, 15.0), (14.0, 14.0), (0.5, 0.5), (0.0, None), (-1.0, None)])  # fmt: skip
def test_no_answer_is_waited_for_longer_than_there_is_time(left, waits, monkeypatch: pytest.MonkeyPatch) -> None:
    opener = Opener({})
    monkeypatch.setattr(index_page, "_opener", lambda settings: opener)
    monkeypatch.setattr(index_page, "time", SimpleNamespace(monotonic=lambda: 100.0))
    if waits is None:
        with pytest.raises(TimeoutError, match="was not there after 60 s"):
            index_page._followed(Address("http://a"), {}, 100.0 + left)
        return
    index_page._followed(Address("http://a"), {}, 100.0 + left)
    ((_, headers, timeout),) = opener.asked
    assert timeout == waits
    assert headers == {
        "Accept": index_page._FORMATS,
        "Accept-encoding": "identity",
        "User-agent": "patchkit",
    }, "no password, where there is none"


@pytest.mark.parametrize(("settings", "expected"), [
    ({}, None), ({"proxy": ""}, None), ({"proxy": "http://p:1"}, {"http": "http://p:1", "https": "http://p:1"}),
])  # fmt: skip
def test_pips_proxy_is_used(settings: dict[str, str], expected, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    handlers = index_page._opener(settings).handlers
    proxies = [handler.proxies for handler in handlers if isinstance(handler, index_page.urllib.request.ProxyHandler)]
    assert proxies == ([] if expected is None else [expected])


@pytest.mark.parametrize("name", ["cert", "client-cert"])
def test_pips_certificates_are_used(name: str, tmp_path) -> None:
    """One that is no certificate is refused, so it was read."""
    (tmp_path / "bad.pem").write_text("no certificate")
    with pytest.raises(OSError):  # noqa: PT011, of OpenSSL, in its words
        index_page._opener({name: str(tmp_path / "bad.pem")})
    index_page._opener({name: ""})


@pytest.mark.parametrize(("size", "read"), [(99, True), (100, True), (101, False)])
def test_how_large_a_page_in_a_folder_may_be(size: int, read: bool, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(index_page, "PAGE_LIMIT", 100)
    address = tmp_path.as_uri()
    assert index_page._local(address) == ""
    (tmp_path / "index.html").write_text("x" * size)
    if read:
        assert index_page._local(address) == "x" * size
    else:
        with pytest.raises(ValueError, match="is no file, or is larger"):
            index_page._local(address)
    (tmp_path / "sub" / "index.html").mkdir(parents=True)
    with pytest.raises(ValueError, match="is no file, or is larger"):
        index_page._local(f"{address}/sub")


def test_the_limits_are_those_of_a_page() -> None:
    """That of transformers has 0.3 MB and comes within a second; PyPI's largest has 20."""
    assert 25 * 2**20 <= index_page.PAGE_LIMIT <= 2**28
    assert 5 <= index_page.SILENCE_SECONDS <= index_page.PAGE_SECONDS / 2 <= 300
    assert 512 <= index_page._ANCHOR_LIMIT <= 2**16


# ---- addresses


ADDRESSES = {
    # address: (url, authorization, origin)
    "https://h/x": ("https://h/x", "", ("https", "h", 443)),
    "http://H/x": ("http://H/x", "", ("http", "h", 80)),
    "https://h:8443/x": ("https://h:8443/x", "", ("https", "h", 8443)),
    "https://u@h/x": ("https://h/x", "Basic dTo=", ("https", "h", 443)),
    "https://u:@h/x": ("https://h/x", "Basic dTo=", ("https", "h", 443)),
    "https://:p@h/x": ("https://h/x", "Basic OnA=", ("https", "h", 443)),
    "https://u:p@h:1/x?y": ("https://h:1/x?y", "Basic dTpw", ("https", "h", 1)),
    "https://u:a:b@h/x": ("https://h/x", "Basic dTphOmI=", ("https", "h", 443)),
    "https://u%40v:p%2F@h/x#f": ("https://h/x", "Basic dUB2OnAv", ("https", "h", 443)),
    "file:///x": ("file:///x", "", ("file", "", None)),
    "ftp://h/x": ("ftp://h/x", "", ("ftp", "h", None)),
}


@pytest.mark.parametrize("text", ADDRESSES)
def test_each_part_of_an_address(text: str) -> None:
    url, authorization, origin = ADDRESSES[text]
    address = parse_address(text)
    assert (address.url, address.authorization, address.origin) == (url, authorization, origin)


@pytest.mark.parametrize("text", ["http://[::1", "http://h:x/", "http://h:99999/", "http://h/a b", "http://h/\x7f", "http://h/\x1b"])  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="not a valid address"):
        parse_address(text)


SHOWN = {
    "https://u:p@h/x": "https://h/x",
    "a https://u@h/x and https://v:p@i/y": "a https://h/x and https://i/y",
    "https://u:p@q@h/x": "https://h/x",
    "'https://u:p@h' \"https://u:p@h\" <https://u:p@h>": "'https://h' \"https://h\" <https://h>",
    "https://h/x someone@mail": "https://h/x someone@mail",
    "someone@mail": "someone@mail",
    "https://h/x": "https://h/x",
}


@pytest.mark.parametrize("text", SHOWN)
def test_what_may_be_shown(text: str) -> None:
    assert without_credentials(text) == SHOWN[text]
