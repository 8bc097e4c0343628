"""Files of the cache: written whole, whatever fails; believed only if nobody else can have written them; not needed."""

from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from synthetic_releases import LLAMA, SMALL_LLAMA, folder_release

from patchkit.arch.registry import find
from patchkit.cache import owners, storage
from patchkit.cache.storage import OUTCOMES, cache_directory, prepare_cache, read_ours, write_whole
from patchkit.check.static import findings as static
from patchkit.check.static.sweep import sweep
from patchkit.errors import CacheError, PatchkitWarning
from patchkit.trust import ledger
from patchkit.upstream import release
from patchkit.upstream.kept_releases import fetch

pytest_plugins = ["proof_fixtures"]
posix = pytest.mark.skipif(os.name == "nt", reason="modes and owners are POSIX's")

WRITER = """
import sys
from pathlib import Path
from patchkit.cache.storage import write_whole
path, size = Path(sys.argv[1]), int(sys.argv[2])
write_whole(path, b"a" * size)
print("ready", flush=True)
while True:
    for letter in b"ab":
        write_whole(path, bytes([letter]) * size)
"""


@posix
def test_a_reader_sees_the_old_file_or_the_new_one_through_kills(tmp_path: Path) -> None:
    path, size, chance = tmp_path / "file", 2**23, random.Random(3)
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", WRITER, path, str(size)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        seen = set()
        for _ in range(chance.randrange(10, 40)):
            data = path.read_bytes()
            seen.add((len(data), data[:1], data.count(data[:1])))
        process.send_signal(signal.SIGKILL)  # nothing is asserted before
        process.communicate()
        data = path.read_bytes()
        seen.add((len(data), data[:1], data.count(data[:1])))
        assert seen <= {(size, b"a", size), (size, b"b", size)}


CALLS = ("open", "fdopen", "fsync", "chmod", "replace")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()], ids=["fails", "Ctrl-C"])
def test_a_fault_at_each_step_leaves_the_old_file_and_nothing_else(
    call: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_whole(path, "old")
    asked = []

    def fail(*arguments: object, **_: object) -> None:
        asked.append(arguments)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(CacheError if isinstance(error, OSError) else KeyboardInterrupt):
            write_whole(path, "new")
    assert asked, "every step is one that is taken"
    assert path.read_text() == "old"
    assert {file.name for file in tmp_path.iterdir() if not file.name.endswith(".tmp") or call != "fdopen"} == {"file"}


def test_the_content_is_on_the_disk_before_its_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    for call in ("fsync", "replace"):
        real = getattr(os, call)
        monkeypatch.setattr(os, call, lambda *a, call=call, real=real: (steps.append(call), real(*a))[1])
    write_whole(tmp_path / "file", "text")
    assert steps == ["fsync", "replace"]


# ---- who could have written it


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a file somebody else's: by giving it away, or, where only root can, by being somebody else."""
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)
    else:
        own = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: own + 1)


Forge = Callable[[Path, pytest.MonkeyPatch], None]
FORGERIES: dict[str, Forge] = {
    "another user's": give_away,
    "writable by everybody": lambda path, _: path.chmod(path.stat().st_mode | stat.S_IWOTH),
    "writable by a group": lambda path, patch: (
        patch.setattr(owners, "_only_member", lambda gid: False),
        path.chmod(path.stat().st_mode | stat.S_IWGRP),
    )[0],
}


@posix
@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES)
@pytest.mark.parametrize("where", ["the file", "its folder", "the cache"])
class TestWhatSomebodyElseCanWrite:
    def test_a_proof_is_not_believed(self, forge: Forge, where: str, make_proof, monkeypatch) -> None:
        """Nor is it taken over into a new file."""
        proof = make_proof()
        ledger.add_proofs(ledger.user_ledger(), [proof])
        cache_directory().chmod(0o755)
        forge(ledger.user_ledger() if where == "the file" else cache_directory(), monkeypatch)
        with pytest.warns(
            PatchkitWarning, match=r"(belongs to another user|may be written by).*verified again"
        ) as seen:
            found = [ledger.find_proof(proof.key) for _ in range(2)]
        assert found == [None, None]
        assert len(seen) == 1
        before = ledger.user_ledger().read_bytes()
        with pytest.raises(CacheError, match=r"belongs to another user|may be written by"):
            ledger.add_proofs(ledger.user_ledger(), [make_proof("Other")])
        assert ledger.user_ledger().read_bytes() == before

    def test_an_outcome_is_made_again(self, forge: Forge, where: str, tmp_path, monkeypatch) -> None:
        release = folder_release(tmp_path / "release", "5.0.0", {LLAMA: SMALL_LLAMA})
        before = static.findings_of(release, find("llama"))
        cache_directory().chmod(0o755)
        for place in (cache_directory() / OUTCOMES).rglob("*.json"):
            for folder in place.parents[:2]:
                folder.chmod(0o755)
            place.write_text(
                '{"parts": {"mlp": [[], ["forged"]], "qkv": [[], ["forged"]], "o": [[], []]}, "rewritten": ""}'
            )
            if where != "the cache":
                forge(place if where == "the file" else place.parent, monkeypatch)
        if where == "the cache":
            forge(cache_directory(), monkeypatch)
        with pytest.warns(PatchkitWarning, match="the cache is not used") as seen:
            assert static.findings_of(release, find("llama")) == before
        assert len([one for one in seen if one.category is PatchkitWarning]) == 1

    def test_a_release_is_not_read(self, forge: Forge, where: str, tmp_path, monkeypatch) -> None:
        place = cache_directory() / "sources" / "transformers-4.90.0.zip"
        write_whole(place, b"")
        release.archive_of.cache_clear()
        for folder in (place.parent, cache_directory()):
            folder.chmod(0o755)
        forge({"the file": place, "its folder": place.parent, "the cache": cache_directory()}[where], monkeypatch)
        with pytest.raises(CacheError, match=r"belongs to another user|may be written by"):
            fetch("4.90.0", tmp_path)


@posix
def test_in_a_folder_that_nobody_else_may_enter_modes_say_nothing() -> None:
    """Where the user's umask lets a group write, what is in there is the user's all the same."""
    path = prepare_cache() / "ledger.jsonl"
    path.write_text("text")
    path.chmod(0o666)
    assert read_ours(path) == b"text"
    cache_directory().chmod(0o755)
    with pytest.raises(CacheError, match="may be written by everybody"):
        read_ours(path)


@posix
def test_the_private_group_of_this_user_is_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    import grp
    import pwd
    from types import SimpleNamespace

    monkeypatch.setattr(pwd, "getpwuid", lambda uid: SimpleNamespace(pw_name="ada"))
    groups = {1: ("ada", []), 2: ("ada", ["ada"]), 3: ("ada", ["bob"]), 4: ("users", [])}
    monkeypatch.setattr(grp, "getgrgid", lambda gid: SimpleNamespace(gr_name=groups[gid][0], gr_mem=groups[gid][1]))
    assert [owners._only_member(gid) for gid in (0, 1, 2, 3, 4, 5) if gid in groups or gid == 0] == [
        True, True, True, False, False
    ]  # fmt: skip


@posix
def test_a_pipe_is_not_waited_for() -> None:
    path = prepare_cache() / "ledger.jsonl"
    os.mkfifo(path)
    with pytest.raises(CacheError, match="is no file"):
        read_ours(path)


# ---- a cache that cannot be had


@pytest.fixture(params=["a file is in its way", "no folder can be made", "somebody else's", "a full disk"])
def no_cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_said", set())
    place = tmp_path / "unusable" / "cache"
    monkeypatch.setenv("PATCHKIT_CACHE", str(place))
    if request.param == "a file is in its way":
        place.parent.write_text("")
    elif request.param == "no folder can be made":
        monkeypatch.setenv("PATCHKIT_CACHE", f"{os.devnull}/cache")
    elif request.param == "somebody else's":
        place.mkdir(parents=True)
        (place / "thesis.tex").touch()
    else:

        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(storage.tempfile, "mkstemp", full)


@pytest.mark.usefixtures("no_cache")
@pytest.mark.parametrize("processes", [1, 2])
def test_the_static_stage_goes_on_without_a_cache_and_says_so_once(tmp_path: Path, processes: int) -> None:
    release = folder_release(tmp_path / "release", "5.0.0", {LLAMA: SMALL_LLAMA})
    with pytest.warns(PatchkitWarning, match="the cache is not used, which takes longer") as seen:
        found = [sweep([release], [find("llama"), find("mistral")], processes=number) for number in (processes, 1)]
    assert len(seen) == 1
    assert found[0] == found[1]
    assert any(outcome.rules for finding in found[0] for outcome in finding.parts.values())


@pytest.mark.usefixtures("no_cache")
def test_a_release_that_has_to_be_fetched_needs_one(tmp_path: Path) -> None:
    with pytest.raises(CacheError):
        fetch("4.90.0", tmp_path)
