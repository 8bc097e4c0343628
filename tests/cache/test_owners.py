"""Who could have written a file: each owner, each mode and each group that there is, with what the message names."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from patchkit.cache import owners
from patchkit.cache.owners import is_closed, why_not_ours

posix = pytest.mark.skipif(os.name == "nt", reason="modes and owners are POSIX's")

ME, ADMINISTRATOR, SOMEBODY = 1234, 0, 4321
MY_GROUP, THEIR_GROUP = 77, 88
FILE = Path("/cache/ledger.jsonl")

OWNERS = {ME: "", ADMINISTRATOR: "", SOMEBODY: "belongs to another user (uid 4321)"}
MODES = {
    # mode: (what is said in an open folder where the group has others in it, and where it has not)
    0o600: ("", ""),
    0o644: ("", ""),
    0o755: ("", ""),
    0o620: ("may be written by the group", ""),
    0o664: ("may be written by the group", ""),
    0o602: ("may be written by everybody", "may be written by everybody"),
    0o666: ("may be written by everybody", "may be written by everybody"),
}


def state(uid: int, gid: int, mode: int) -> os.stat_result:
    return os.stat_result((stat.S_IFREG | mode, 0, 0, 1, uid, gid, 0, 0, 0, 0))


@pytest.fixture(autouse=True)
def me(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: ME, raising=False)
    monkeypatch.setattr(owners, "_only_member", lambda gid: gid == MY_GROUP)


@pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])
@pytest.mark.parametrize("group", [MY_GROUP, THEIR_GROUP])
@pytest.mark.parametrize("mode", MODES, ids=oct)
@pytest.mark.parametrize("owner", OWNERS)
def test_every_owner_mode_and_group(owner: int, mode: int, group: int, closed: bool) -> None:
    """Another owner counts in any folder; modes count where somebody else may enter the folder."""
    expected = OWNERS[owner] or ("" if closed else MODES[mode][group == MY_GROUP])
    said = why_not_ours(state(owner, group, mode), FILE, closed=closed)
    if not expected:
        assert said is None
        return
    assert said is not None
    assert said.startswith(f"{FILE} {expected}")
    assert (f"the group {group}" in said) == ("group" in expected)
    assert ("`chown`" in said) == (owner == SOMEBODY)
    assert ("`chmod -R go-w`" in said) == (owner != SOMEBODY)


def test_a_folder_is_open_unless_it_is_said_to_be_closed() -> None:
    assert why_not_ours(state(ME, THEIR_GROUP, 0o666), FILE)


def test_where_there_are_no_owners_a_profile_is_its_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows: the numbers that ``stat`` gives there say nothing."""
    monkeypatch.delattr(os, "geteuid")
    assert why_not_ours(state(SOMEBODY, THEIR_GROUP, 0o666), FILE) is None


@pytest.mark.parametrize(
    ("mode", "closed"), [(0o700, True), (0o766, True), (0o710, False), (0o701, False), (0o755, False)]
)
def test_which_folders_nobody_else_may_enter(mode: int, closed: bool) -> None:
    assert is_closed(state(ME, MY_GROUP, mode)) is closed


@posix
@pytest.mark.parametrize("missing", ["group", "user"])
def test_a_group_or_user_without_a_name_is_nobodys(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs with a number for a user: who is in such a group cannot be known."""
    import grp
    import pwd

    def unknown(number: int) -> None:
        raise KeyError(number)

    monkeypatch.undo()
    monkeypatch.setattr(*((grp, "getgrgid") if missing == "group" else (pwd, "getpwuid")), unknown)
    assert owners._only_member(os.getegid() or 1) is False
    assert owners._only_member(ADMINISTRATOR) is True
