"""The cache's files at their bounds: sizes, ages, names, owners of folders, and what is missing or in the way."""

from __future__ import annotations

import multiprocessing
import os
import time
import warnings
from pathlib import Path

import filelock
import pytest

from patchkit.cache import storage
from patchkit.cache.storage import (
    ABANDONED_AFTER,
    LEDGER,
    SOURCES,
    TAG,
    cache_directory,
    contained,
    is_abandoned,
    is_entry,
    is_known,
    is_marked,
    locked,
    prepare_cache,
    read_ours,
    sweep_unfinished,
    warn_once,
    write_whole,
)
from patchkit.errors import CacheError, PatchkitWarning

posix = pytest.mark.skipif(os.name == "nt", reason="modes, owners and links need a privilege there")
needs_links = pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")


# ---- what has which name


KINDS = ("a file", "a folder", "a link to a file", "a link to a folder", "nothing")
TEMPORARY = ".abcd_123.tmp"
ENTRIES = {
    # name: the only kind of file that patchkit makes under it
    "sources": "a folder",
    "outcomes": "a folder",
    "environments": "a folder",
    "ledger.jsonl": "a file",
    "ledger.jsonl.lock": "a file",
    "CACHEDIR.TAG": "a file",
    f".ledger.jsonl{TEMPORARY}": "a file",
    f".CACHEDIR.TAG{TEMPORARY}": "a file",
    f".ledger.jsonl.lock{TEMPORARY}": "",
    ".ledger.jsonl.abc.tmp": "",
    "ledger.jsonl.bak": "",
    "ledgerxjsonl": "",
    "CACHEDIR.TAG.lock": "",
    "thesis.tex": "",
}


def put(path: Path, kind: str) -> None:
    target = path.parent.parent / f"{path.name} elsewhere"
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind.endswith("folder"):
        (target if "link" in kind else path).mkdir()
    elif kind != "nothing":
        (target if "link" in kind else path).touch()
    if "link" in kind:
        path.symlink_to(target)


@needs_links
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ENTRIES)
def test_each_name_at_the_top_is_patchkits_as_one_kind_of_file(name: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "cache" / name
    put(path, kind)
    assert is_entry(path) is (kind == ENTRIES[name])


INSIDE = {
    "sources/transformers-5.2.0.zip": True,
    "sources/transformers-5.2.0rc1+cpu.zip": True,
    f"sources/transformers-file-{'0' * 32}.zip": True,
    "sources/peft-0.20.0.zip": True,
    f"sources/peft-file-{'0' * 32}.zip": True,
    "sources/torch-2.8.0.zip": False,
    f"sources/transformers-file-{'0' * 31}.zip": False,
    "sources/transformers-x.zip": False,
    "sources/.fetch-abcd_123": True,
    "sources/.fetch-abcd": False,
    f"sources/.transformers-5.2.0.zip{TEMPORARY}": True,
    f"sources/.mine.zip{TEMPORARY}": False,
    f"sources/transformers-5.2.0.zip{TEMPORARY}": False,
    "outcomes/ab": True,
    "outcomes/xy": False,
    f"outcomes/ab/{'c' * 62}.json": True,
    f"outcomes/ab/{'c' * 61}.json": False,
    f"outcomes/ab/.{'c' * 62}.json{TEMPORARY}": True,
    f"outcomes/xy/.{'c' * 62}.json{TEMPORARY}": False,
    f"outcomes/.{'c' * 62}.json{TEMPORARY}": False,
    "environments/5.22.2-0123456789ab": True,
    "environments/5.22.2-0123456789ab.building": True,
    "environments/5.22.2-0123456789ab.lock": True,
    "environments/5.22.2-0123456789a": False,
    "environments/-0123456789ab": False,
    "elsewhere/transformers-5.2.0.zip": False,
    "transformers-5.2.0.zip": False,
}


@needs_links
@pytest.mark.parametrize("linked", [False, True], ids=["itself", "a link"])
@pytest.mark.parametrize("name", INSIDE)
def test_each_name_inside_of_an_entry(name: str, linked: bool, tmp_path: Path) -> None:
    """A link has a name of patchkit's as well as anything else; what it leads to is somebody's."""
    root = tmp_path / "cache"
    put(root / name, "a link to a file" if linked else "a file")
    assert is_known(root / name, root) is (INSIDE[name] and not linked)


@needs_links
@pytest.mark.parametrize("what", ["a link", "a file", "nothing"])
def test_what_is_no_folder_contains_nothing(what: str, tmp_path: Path) -> None:
    put(tmp_path / "full" / "transformers-5.2.0.zip", "a file")
    folder = tmp_path / SOURCES
    if what == "a link":
        folder.symlink_to(tmp_path / "full")
    elif what == "a file":
        folder.touch()
    assert contained(folder) == []
    assert [path.name for path in contained(tmp_path / "full")] == ["transformers-5.2.0.zip"]


TAGS = {
    # content of the tag, and whether it says that patchkit made it
    storage._TAG_TEXT: True,
    storage._TAG_TEXT + "# more\n": True,
    "\n".join(storage._TAG_TEXT.splitlines()[:2]): True,
    storage._TAG_TEXT.splitlines()[0]: False,
    storage._TAG_TEXT.replace("patchkit", "other"): False,
    storage._TAG_TEXT.replace("8a477", "9a477"): False,
    "": False,
}


@pytest.mark.parametrize("text", TAGS, ids=range(len(TAGS)))
def test_the_first_two_lines_of_a_tag_say_whose_it_is(text: str, tmp_path: Path) -> None:
    (tmp_path / TAG).write_text(text)
    assert is_marked(tmp_path) is TAGS[text]


def test_no_tag_no_mark(tmp_path: Path) -> None:
    assert is_marked(tmp_path) is False
    (tmp_path / TAG).mkdir()
    assert is_marked(tmp_path) is False


# ---- bounds


@pytest.mark.parametrize(("over", "abandoned"), [(-1.0, False), (0.0, False), (1.0, True), (1e6, True)])
def test_the_second_at_which_a_writer_is_dead(
    over: float, abandoned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f".file{TEMPORARY}"
    path.touch()
    os.utime(path, (2e9, 2e9))
    monkeypatch.setattr(time, "time", lambda: 2e9 + ABANDONED_AFTER + over)
    assert is_abandoned(path) is abandoned
    sweep_unfinished(tmp_path / "file")
    assert path.exists() is not abandoned


def test_a_build_may_take_its_time() -> None:
    """An environment is made in minutes; who works for an hour on one file is dead."""
    assert 600 <= ABANDONED_AFTER <= 24 * 3600


def test_what_is_gone_is_not_abandoned(tmp_path: Path) -> None:
    assert is_abandoned(tmp_path / "gone") is False
    sweep_unfinished(tmp_path / "no folder" / "file")  # which is no error


@pytest.mark.parametrize(("size", "fits"), [(99, True), (100, True), (101, False)])
def test_the_largest_file_that_is_read(size: int, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_FILE_LIMIT", 100)
    path = prepare_cache() / LEDGER
    path.write_bytes(b"x" * size)
    if fits:
        assert read_ours(path) == b"x" * size
    else:
        with pytest.raises(CacheError, match="is no file, or is larger than"):
            read_ours(path)


def test_a_release_can_be_read_and_no_disk_full_of_it() -> None:
    """The archive of one release has 6 MB, the largest wheel that may be fetched is larger."""
    path = prepare_cache() / LEDGER
    with path.open("wb") as file:
        file.truncate(64 * 2**20)  # no block of it is on the disk
    assert len(read_ours(path)) == 64 * 2**20
    with path.open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(CacheError, match="is larger than 256 MiB"):
        read_ours(path)


# ---- what leads to a file


MISSING = {
    "no file": ("ledger.jsonl", None),
    "no folder": ("sources/transformers-5.2.0.zip", None),
    "a file in place of its folder": ("sources/transformers-5.2.0.zip", "sources"),
    "a file in place of a folder above": (f"outcomes/ab/{'c' * 62}.json", "outcomes"),
}


@pytest.mark.parametrize("case", MISSING)
def test_a_file_that_is_not_there_is_not_found(case: str) -> None:
    """Which callers take for an empty cache, whatever of its path is missing."""
    name, in_the_way = MISSING[case]
    root = prepare_cache()
    if in_the_way:
        (root / in_the_way).touch()
    with pytest.raises(FileNotFoundError):
        read_ours(root / name)


@posix
@pytest.mark.parametrize("mode", [0o777, 0o775])
@pytest.mark.parametrize("where", ["its folder", "the folder above"])
def test_elsewhere_the_folder_of_a_file_counts(
    where: str, mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ledger outside of the cache: who may write to its folder may put another one there."""
    monkeypatch.setattr("patchkit.cache.owners._only_member", lambda gid: False)
    path = tmp_path / "elsewhere" / "folder" / LEDGER
    path.parent.mkdir(parents=True)
    path.write_bytes(b"text")
    path.chmod(0o600)
    for folder in (path.parent, path.parent.parent):
        folder.chmod(0o755)
    (path.parent if where == "its folder" else path.parent.parent).chmod(mode)
    if where == "its folder":
        with pytest.raises(CacheError, match="may be written by"):
            read_ours(path)
    else:
        assert read_ours(path) == b"text"


@posix
@pytest.mark.parametrize("closed", ["the cache", "its folder", "none"])
def test_one_closed_folder_on_the_way_is_enough(closed: str) -> None:
    path = prepare_cache() / "outcomes" / "ab" / f"{'c' * 62}.json"
    write_whole(path, "{}")
    for folder in (cache_directory(), *path.parents[:2]):
        folder.chmod(0o755)
    {"the cache": cache_directory(), "its folder": path.parent, "none": path}[closed].chmod(0o700)
    path.chmod(0o666)
    if closed == "none":
        with pytest.raises(CacheError, match="may be written by everybody"):
            read_ours(path)
    else:
        assert read_ours(path) == b"{}"


# ---- writing


@pytest.mark.parametrize("inside", [True, False], ids=["in the cache", "elsewhere"])
@pytest.mark.parametrize("depth", [0, 1, 2, 3])
@pytest.mark.parametrize("write", ["a file", "a lock"])
def test_the_folders_of_a_file_are_made(write: str, depth: int, inside: bool, tmp_path: Path, monkeypatch) -> None:
    """Those above the cache directory too, and again where they are there already."""
    monkeypatch.setenv(storage.CACHE_VARIABLE, str(tmp_path / "no" / "such" / "folder"))
    path = Path(cache_directory() if inside else tmp_path / "else" / "where", *"abc"[:depth], "file")
    for _ in range(2):
        if write == "a file":
            write_whole(path, "text")
            assert path.read_text() == "text"
        else:
            with locked(path):
                pass
            assert path.parent.is_dir()
    assert (cache_directory() / TAG).exists() is inside


@posix
def test_what_ships_can_be_read_by_everybody_and_written_by_its_owner(tmp_path: Path) -> None:
    """A ledger in a system's folder of packages is read by other users than the one who installed it."""
    write_whole(tmp_path / "file", "text")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_all_of_the_content_is_given_to_the_system_before_it_is_asked_to_keep_it(tmp_path, monkeypatch) -> None:
    sizes = []
    monkeypatch.setattr(os, "fsync", lambda handle: sizes.append(os.fstat(handle).st_size))
    write_whole(tmp_path / "file", "text")
    write_whole(tmp_path / "file", b"more text")
    write_whole(tmp_path / "file", "höher\n")
    assert sizes == [4, 9, 7]
    assert (tmp_path / "file").read_bytes() == "höher\n".encode()


def test_an_interruption_just_after_the_name_was_given_is_told_as_it_is(tmp_path, monkeypatch) -> None:
    real = os.replace

    def replace(*names):
        real(*names)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "file", "text")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "text")]


@pytest.mark.parametrize("error", [None, ValueError])
def test_a_lock_is_given_back_at_once(error, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not only when nobody holds the object any more."""
    made = []

    class Lock(filelock.FileLock):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(filelock, "FileLock", Lock)
    try:
        with locked(tmp_path / "file"):
            assert made[0].is_locked
            if error:
                raise error
    except ValueError:
        pass
    assert not made[0].is_locked
    assert Path(made[0].lock_file) == tmp_path / "file.lock"


# ---- the directory


def test_without_the_variable_the_platform_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With no author's name, which Windows would put a second ``patchkit`` for in front."""
    asked = []

    def answer(*args, **kwargs):
        asked.append((args, kwargs))
        return str(tmp_path)

    monkeypatch.setattr(storage.platformdirs, "user_cache_dir", answer)
    for value in (None, ""):
        monkeypatch.delenv(storage.CACHE_VARIABLE) if value is None else monkeypatch.setenv(
            storage.CACHE_VARIABLE, value
        )
        assert cache_directory() == tmp_path
        assert asked.pop() == (("patchkit",), {"appauthor": False})
    monkeypatch.setenv(storage.CACHE_VARIABLE, "relative")
    monkeypatch.chdir(tmp_path)
    assert cache_directory() == tmp_path / "relative"
    assert not asked


def test_a_user_without_a_home_is_told_of_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args, **kwargs):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv(storage.CACHE_VARIABLE)
    monkeypatch.setattr(storage.platformdirs, "user_cache_dir", fail)
    with pytest.raises(CacheError, match="PATCHKIT_CACHE names a cache directory"):
        cache_directory()


# ---- going on without


@pytest.mark.parametrize("child", [False, True], ids=["the command", "a process of it"])
def test_the_command_alone_warns_and_once_for_each_thing(child: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_said", set())
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: object() if child else None)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for what, message in [("a", "first"), ("a", "second"), ("b", "third"), ("b", "fourth")]:
            warn_once(what, message)
        monkeypatch.setenv(storage.CACHE_VARIABLE, "another")
        warn_once("a", "fifth")
    assert [str(one.message) for one in seen] == ([] if child else ["first", "third", "fifth"])
    assert {one.category for one in seen} <= {PatchkitWarning}
