"""pip as patchkit runs it: its precedence of settings, and an index that answers it anything, for ever or too much."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile_index import Answer, Handler, hostile_index
from synthetic_releases import make_wheel
from typer.testing import CliRunner

from patchkit.cache.storage import cache_directory
from patchkit.cli.main import app
from patchkit.errors import ReleaseError
from patchkit.upstream import index, index_page
from patchkit.upstream.index import download_wheel, list_versions

UseIndex = Callable[[str], None]


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, str]]:
    """What is read of pip's settings, given its files (site and user) and environment."""

    def configured(user: str = "", site: str = "", **environment: str) -> dict[str, str]:
        for name in [name for name in os.environ if name.startswith("PIP_")]:
            monkeypatch.delenv(name)
        home, system = tmp_path / "home", tmp_path / "system"
        for folder, text in ((home, user), (system, site)):
            (folder / "pip").mkdir(parents=True)
            (folder / "pip" / "pip.conf").write_text(text)
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
        monkeypatch.setenv("XDG_CONFIG_DIRS", str(system))
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return index._settings()

    return configured


A, B, C = "[{}]\nindex-url = https://a.example\n", "[{}]\nindex-url = https://b.example\n", "https://c.example"


@pytest.mark.skipif(os.name == "nt", reason="the names of pip's files are those of POSIX")
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"user": A.format("global")}, "https://a.example"),
        ({"user": A.format("global") + B.format("download")}, "https://b.example"),
        ({"user": B.format("download") + A.format("global")}, "https://b.example"),
        ({"user": A.format("global"), "PIP_INDEX_URL": C}, C),
        ({"user": A.format("download"), "PIP_INDEX_URL": C}, C),
        ({"site": A.format("global"), "user": B.format("global")}, "https://b.example"),
        ({"site": A.format("download"), "user": B.format("global")}, "https://a.example"),
        ({"user": A.format("install")}, None),
        ({"user": A.format("global"), "PIP_INDEX_URL": ""}, "https://a.example"),
        ({"user": A.format("global") + "[download]\nindex-url =\n"}, "https://a.example"),
        ({"PIP_INDEX_URL": "https://c.example/a'b\"=#x"}, "https://c.example/a'b\"=#x"),
    ],
)
def test_the_precedence_is_pips(
    configured: Callable[..., dict[str, str]], given: dict[str, str], expected: str | None
) -> None:
    assert configured(**given).get("index-url") == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ["https://pypi.org/simple/transformers/"]),
        ({"index-url": "https://a.example/x/"}, ["https://a.example/x/transformers/"]),
        (
            {"index-url": "https://a.example", "extra-index-url": "https://b.example\nhttps://c.example/  https://a.example"},
            [f"https://{host}.example/transformers/" for host in "abc"],
        ),
        *(({"no-index": value, "extra-index-url": "https://b.example"}, []) for value in ("1", "yes", "Y", "true", "t", "ON")),
        ({"no-index": "0"}, ["https://pypi.org/simple/transformers/"]),
    ],
)  # fmt: skip
def test_the_pages_that_pip_would_look_at(
    settings: dict[str, str], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "_settings", lambda: settings)
    assert index._pages("transformers") == expected


def test_nothing_of_the_working_folder_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pip.py", "runpy.py", "resource.py", "json.py"):
        (tmp_path / name).write_text("raise SystemExit('the working folder is executed')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "executed" not in index._pip("config", "list", seconds=60)


def slowly(content: bytes) -> Answer:
    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/html")
        handler.end_headers()
        handler.trickle(content)

    return answer


HOSTILE: dict[str, Answer] = {
    "HTML": lambda handler: handler.reply(b"<!DOCTYPE html><h1>Log in first</h1>"),
    "nothing": lambda handler: handler.reply(b""),
    "wrong types": lambda handler: handler.reply(
        json.dumps({"meta": 5, "files": [{"filename": 5, "hashes": [], "url": {}}, "x"]}).encode(),
        Content_Type="application/vnd.pypi.simple.v1+json",
    ),
    "no JSON": lambda handler: handler.reply(b"{", Content_Type="application/vnd.pypi.simple.v1+json"),
    "broken": lambda handler: handler.reply(b"", 500),
    "redirects on and on": lambda handler: handler.reply(b"", 302, Location=f"{handler.path}x"),
    "slow": slowly(b"x"),
}


@pytest.mark.parametrize("answer", HOSTILE.values(), ids=HOSTILE)
def test_whatever_an_index_answers_is_exit_code_2_and_one_line(
    answer: Answer, use_index: UseIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never 1, which would read as drift."""
    for module, name in ((index, "_LIST_SECONDS"), (index, "_DOWNLOAD_SECONDS"), (index_page, "PAGE_SECONDS")):
        monkeypatch.setattr(module, name, 4.0)
    monkeypatch.setenv("PIP_RETRIES", "0")
    with hostile_index(answer) as server:
        use_index(server.address)
        result = CliRunner().invoke(app, ["check", "-a", "llama", "--static", "-t", "4.90.0"])
    assert result.exit_code == 2, result
    (line,) = result.stderr.splitlines()
    assert line.startswith("patchkit: error: pip download ")


def one_wheel(send: Answer) -> Answer:
    """An index that has one wheel, which is sent in some way."""

    def answer(handler: Handler) -> None:
        if handler.path.endswith(".whl"):
            send(handler)
        else:
            handler.reply(b'<a href="/transformers-4.90.0-py3-none-any.whl">transformers-4.90.0-py3-none-any.whl</a>')

    return answer


@pytest.mark.parametrize(
    ("piece", "limit", "said"),
    [
        (b"x", 2**30, "pip download was stopped: it was not done after 6 s"),
        (b"x" * 2**16, 2**20, "pip download was stopped: it fetched more than 2 MiB"),
    ],
    ids=["trickles", "has no end"],
)
def test_a_wheel_that_is_never_whole(
    piece: bytes, limit: int, said: str, tmp_path: Path, use_index: UseIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "_DOWNLOAD_SECONDS", 6.0 if limit > 2**20 else 60.0)
    monkeypatch.setattr(index, "MAX_WHEEL", limit)
    with hostile_index(one_wheel(slowly(piece))) as server:
        use_index(server.address)
        monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
        with pytest.raises(ReleaseError, match=said):
            download_wheel("4.90.0", tmp_path)


def test_what_was_being_fetched_is_not_left(use_index: UseIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    from patchkit.upstream.kept_releases import fetch

    monkeypatch.setattr(index, "_DOWNLOAD_SECONDS", 5.0)
    with hostile_index(one_wheel(slowly(b"x"))) as server:
        use_index(server.address)
        with pytest.raises(ReleaseError, match="pip download was stopped"):
            fetch("4.90.0")
    assert list((cache_directory() / "sources").iterdir()) == []


def test_a_wheel_as_it_should_be(tmp_path: Path, use_index: UseIndex) -> None:
    """So that the cases above fail for what they say."""
    content = make_wheel(tmp_path / "wheels").read_bytes()
    send = one_wheel(lambda handler: handler.reply(content, Content_Type="application/octet-stream"))
    with hostile_index(send) as server:
        use_index(server.address)
        assert download_wheel("4.90.0", tmp_path).read_bytes() == content
        assert [str(version) for version in list_versions()] == ["4.90.0"]


def test_pip_has_not_all_of_the_memory(tmp_path: Path, use_index: UseIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip keeps all of a page in memory."""
    monkeypatch.setattr(index, "_MEMORY", 400 * 2**20)
    with hostile_index(slowly(b"x" * 2**20)) as server:
        use_index(server.address)
        with pytest.raises(ReleaseError, match=r"pip index failed: .*Memory"):
            list_versions()
