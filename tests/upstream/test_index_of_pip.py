"""What is made of pip's answers, one at a time and without pip: versions, wheels, hashes, settings and reasons."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from packaging.version import Version
from synthetic_releases import make_wheel

from patchkit.errors import ReleaseError
from patchkit.processes.children import ChildError, Done
from patchkit.upstream import index
from patchkit.upstream.index import Published, download_wheel, list_versions, pip_settings, published
from patchkit.upstream.wheels import MAX_WHEEL

WHEEL = "transformers-4.90.0-py3-none-any.whl"


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch):
    """Says what pip prints, or does; keeps what it was asked."""
    asked: list[tuple[list[str], dict]] = []

    def says(output: str = "", code: int = 0, said: str = "", error: Exception | None = None, do=lambda folder: None):
        def run(command, **options):
            asked.append((command, options))
            do(options["folder"])
            if error:
                raise error
            return Done(code, output, said)

        monkeypatch.setattr(index, "run_child", run)
        return asked

    return says


# ---- releases


LISTS = {
    "two": ("Available versions: 4.90.0, 4.91.0\n", ["4.90.0", "4.91.0"]),
    "newest first, as pip does": ("transformers (5.0.0)\nAvailable versions: 5.0.0, 4.91.0, 4.9.0\n  INSTALLED: 4.9.0\n", ["4.9.0", "4.91.0", "5.0.0"]),
    "one": ("Available versions: 4.90.0", ["4.90.0"]),
    "nothing": ("", None),
    "another line": ("See: Available versions: 4.90.0\n", None),
    "no version": ("Available versions: 4.90.0, new\n", None),
    "empty": ("Available versions: \n", None),
}  # fmt: skip


@pytest.mark.parametrize("case", LISTS)
def test_what_pip_lists(case: str, pip) -> None:
    output, expected = LISTS[case]
    asked = pip(output)
    if expected is None:
        with pytest.raises(ReleaseError, match="pip lists no releases of transformers; it said: "):
            list_versions()
    else:
        assert list(map(str, list_versions())) == expected
    ((command, options),) = asked
    assert command[-8:-4] == ["index", "versions", "transformers", "--ignore-requires-python"]
    assert (options["seconds"], options["folder"]) == (index._LIST_SECONDS, None)


def test_a_long_answer_without_releases_is_cut_and_shows_no_password(pip) -> None:
    pip("https://user:hunter2@host/ " + "x" * 5000)
    with pytest.raises(ReleaseError) as error:
        list_versions()
    assert "hunter2" not in str(error.value)
    assert 200 < len(str(error.value)) < 300


FOLDERS = {
    # files: (releases, with pre-releases)
    (WHEEL, "transformers-4.91.0-py3-none-any.whl"): (["4.90.0", "4.91.0"], ["4.90.0", "4.91.0"]),
    (WHEEL, "transformers-5.0.0rc1-py3-none-any.whl"): (["4.90.0"], ["4.90.0", "5.0.0rc1"]),
    ("a wheel.whl", "other-1.0-py3-none-any.whl", WHEEL, "zzz-1.0-py3-none-any.whl"): (["4.90.0"], ["4.90.0"]),
    ("transformers-new-py3-none-any.whl", WHEEL): (["4.90.0"], ["4.90.0"]),
    (WHEEL, "transformers-4.90.0-py2-none-any.whl"): (["4.90.0"], ["4.90.0", "4.90.0"]),
    ("transformers-5.0.0rc1-py3-none-any.whl",): (None, ["5.0.0rc1"]),
    ("other-1.0-py3-none-any.whl",): (None, None),
    ("transformers-4.90.0.tar.gz",): (None, None),
    (): (None, None),
}


@pytest.mark.parametrize("names", FOLDERS, ids=len)
def test_a_folder_of_wheels(names: tuple[str, ...], tmp_path: Path) -> None:
    """Any other file in it is passed over."""
    for name in names:
        (tmp_path / name).touch()
    releases, every = FOLDERS[names]
    if every is None:
        with pytest.raises(ReleaseError, match=r"has no wheel of transformers$"):
            index._wheels_in(tmp_path, "transformers")
    else:
        assert [str(version) for version, _ in index._wheels_in(tmp_path, "transformers")] == every
    if releases is None:
        with pytest.raises(ReleaseError, match=r"has no wheel|has pre-releases of transformers only"):
            list_versions(tmp_path)
    else:
        assert list(map(str, list_versions(tmp_path))) == releases
    for version in every or ():
        path = download_wheel(version, tmp_path / "unused", tmp_path)
        assert index.parse_wheel_filename(path.name)[1] == Version(version)
    with pytest.raises(ReleaseError, match="has no wheel of transformers"):
        download_wheel("3.0.0", tmp_path / "unused", tmp_path)


def test_a_file_is_no_folder_of_wheels(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path)
    for call in (lambda: list_versions(wheel), lambda: download_wheel("4.90.0", tmp_path, wheel)):
        with pytest.raises(ReleaseError, match="is not a folder"):
            call()


@pytest.mark.parametrize("fetched", [0, 1, 2])
def test_one_wheel_is_expected(fetched: int, tmp_path: Path, pip) -> None:
    def fetch(folder: Path) -> None:
        for number in range(fetched):
            (folder / f"{number}.whl").touch()
        (folder / "log.txt").touch()

    asked = pip(do=fetch)
    if fetched == 1:
        assert download_wheel("4.90.0", tmp_path) == tmp_path / "0.whl"
    else:
        with pytest.raises(ReleaseError, match=f"pip fetched {fetched} wheels for transformers 4.90.0, expected one"):
            download_wheel("4.90.0", tmp_path)
    ((command, options),) = asked
    assert "transformers==4.90.0" in command
    assert command[command.index("--dest") + 1] == str(tmp_path)
    assert {"--no-deps", "--ignore-requires-python"} <= set(command)
    assert command[command.index("--only-binary") + 1] == ":all:"
    assert (options["seconds"], options["folder"]) == (index._DOWNLOAD_SECONDS, tmp_path)


# ---- how pip is run


@pytest.mark.parametrize("folder", [False, True])
def test_pip_is_isolated_and_writes_where_it_is_watched(folder: bool, tmp_path: Path, pip, monkeypatch) -> None:
    monkeypatch.setenv("TMPDIR", "/elsewhere")
    monkeypatch.setenv("PIP_NO_COLOR", "0")
    asked = pip("output")
    place = tmp_path if folder else None
    assert index._pip("config", "list", seconds=7.0, folder=place) == "output"
    ((command, options),) = asked
    assert command[:7] == [sys.executable, "-I", "-X", "utf8", "-W", "ignore", "-c"]
    assert command[8:] == [
        str(index._MEMORY), "config", "list", "--disable-pip-version-check", "--no-input", "--retries", "2"
    ]  # fmt: skip
    temporary = {name: options["environment"].get(name) for name in ("TMPDIR", "TEMP", "TMP")}
    if folder:
        assert set(temporary.values()) == {str(tmp_path)}
    else:
        assert temporary["TMPDIR"] == "/elsewhere"
    assert options["environment"]["PIP_NO_COLOR"] == "1"
    assert os.environ.items() - options["environment"].items() <= {("TMPDIR", "/elsewhere"), ("PIP_NO_COLOR", "0")}
    assert (options["seconds"], options["folder"]) == (7.0, place)
    assert MAX_WHEEL < options["limit"] <= 4 * MAX_WHEEL, "a wheel, and what pip copies of it"


ENDS = {
    "done": ({}, None),
    "failed": ({"code": 1, "said": "ERROR: no\n"}, "pip list failed: no"),
    "failed with another code": ({"code": 2, "said": "ERROR: no\n"}, "pip list failed: no"),
    "killed": ({"code": -9}, "pip list failed: it said nothing"),
    "failed with a password": ({"code": 1, "said": "ERROR: https://u:hunter2@h/ no"}, "pip list failed: https://h/ no"),
    "stopped": ({"error": ChildError("it was interrupted")}, "pip list was stopped: it was interrupted"),
    "cannot be run": ({"error": OSError(2, "No such file")}, f"{sys.executable} cannot be run: No such file"),
}


@pytest.mark.parametrize("case", ENDS)
def test_each_end_of_pip(case: str, pip) -> None:
    options, expected = ENDS[case]
    pip("output", **options)
    if expected is None:
        assert index._pip("list", seconds=1.0) == "output"
    else:
        with pytest.raises(ReleaseError) as error:
            index._pip("list", seconds=1.0)
        assert str(error.value) == expected


BROKEN = "WARNING: Retrying after connection broken by 'NewConnectionError('<C object>: Failed to establish: refused')'"
REASONS = {
    "": "it said nothing",
    "\n \n": "it said nothing",
    "text": "text",
    "first\nlast\n\n": "last",
    "ERROR: one\nERROR: two\nnote": "two",
    "  ERROR: one  ": "one",
    "ERROR: Exception:\nTraceback\nMemoryError": "MemoryError",
    "ERROR: one\nERROR: Exception:\nTraceback\nMemoryError": "MemoryError",
    f"{BROKEN}\nERROR: none": "none; the index cannot be reached: Failed to establish: refused",
    "Could not fetch URL x: y\nERROR: none": "none; the index cannot be reached: Could not fetch URL x: y",
    "Max retries exceeded\nCould not fetch URL x\nlast": "last; the index cannot be reached: Max retries exceeded",
    "/bin/python: No module named pip": f"pip is not installed for {sys.executable}; `python -m ensurepip` installs it",
    "x" * 400: "x" * 400,
    "x" * 401: "x" * 397 + "...",
}


@pytest.mark.parametrize("text", REASONS, ids=range(len(REASONS)))
def test_the_reason_in_one_line(text: str) -> None:
    assert index._reason(text) == REASONS[text]


# ---- settings


SETTINGS = {
    "global.index-url='a'": {"index-url": "a"},
    "global.index-url='a'\nglobal.proxy='b'": {"index-url": "a", "proxy": "b"},
    "global.index-url='a'\nglobal.index-url='b'": {"index-url": "b"},
    ":env:.index-url='b'\nglobal.index-url='a'": {"index-url": "b"},
    "download.index-url='b'\nglobal.index-url='a'": {"index-url": "b"},
    ":env:.index-url='c'\ndownload.index-url='b'": {"index-url": "c"},
    "global.index-url='a'\n:env:.index-url=''": {"index-url": "a"},
    "global.a.b='c'": {"a.b": "c"},
    "global.index-url='a=b'": {"index-url": "a=b"},
    "global.retries=5": {"retries": "5"},
    "global.index-url=broken(\nglobal.proxy='b'": {"proxy": "b"},
    "global.index-url=name\nglobal.proxy='b'": {"proxy": "b"},
    "a warning\nglobal.proxy='b'": {"proxy": "b"},
    "install.proxy='b'": {},
    "global.index-url": {},
    "": {},
}


@pytest.mark.parametrize("text", SETTINGS, ids=range(len(SETTINGS)))
def test_each_line_of_pips_settings(text: str, pip) -> None:
    pip(text)
    assert pip_settings("download") == SETTINGS[text]


# ---- hashes


A, B, C = (f"https://{name}.example/transformers/" for name in "abc")
PAGES = {
    "one page": ({A: {WHEEL: "1"}}, Published(frozenset("1"), A)),
    "of several": ({A: {}, B: {WHEEL: "1"}, C: {"x": "2"}}, Published(frozenset("1"), B)),
    "the same on two": ({A: {WHEEL: "1"}, B: {WHEEL: "1"}}, Published(frozenset("1"), B)),
    "another on each": ({B: {WHEEL: "1"}, A: {WHEEL: "2"}}, Published(frozenset("12"), f"{A}, {B}")),
    "one cannot be read": ({A: "why", B: {WHEEL: "1"}}, Published(frozenset("1"), B)),
    "another cannot be read": ({A: {WHEEL: "1"}, B: "why"}, Published(frozenset("1"), A)),
    "none can be read": (
        {A: "why", B: "how"}, Published(frozenset(), f"{A} cannot be read (why); {B} cannot be read (how)")
    ),
    "none has it": ({A: {"x": "1"}, B: "why"}, Published(frozenset(), f"{B} cannot be read (why)")),
    "no page": ({}, Published(frozenset(), "no index that pip is configured for publishes one")),
    "an empty page": ({A: {}}, Published(frozenset(), "no index that pip is configured for publishes one")),
}  # fmt: skip


@pytest.mark.parametrize("case", PAGES)
def test_what_the_pages_of_the_indexes_say(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pages, expected = PAGES[case]
    monkeypatch.setattr(index, "_pages", lambda package: list(pages))
    monkeypatch.setattr(index, "_links", lambda page: pages[page])
    assert published(WHEEL) == expected


def test_without_pip_there_is_a_reason_and_no_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(package: str) -> None:
        raise ReleaseError("pip is not installed")

    monkeypatch.setattr(index, "_pages", fail)
    assert published(WHEEL) == Published(frozenset(), "pip is not installed")


def test_passwords_of_pages_are_told_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    page = A.replace("//", "//user:hunter2@")
    monkeypatch.setattr(index, "_pages", lambda package: [page])
    for found in ({WHEEL: "1"}, "why"):
        monkeypatch.setattr(index, "_links", lambda page, found=found: found)
        assert "hunter2" not in published(WHEEL).where
        assert A in published(WHEEL).where


def test_a_release_has_time_to_be_fetched_on_a_slow_line_and_no_day() -> None:
    """13 MB at a megabit take two minutes; a page of an index takes seconds."""
    assert 120 < index._DOWNLOAD_SECONDS <= 3600
    assert 30 <= index._LIST_SECONDS <= 600
    assert 2**30 <= index._MEMORY <= 2**34
