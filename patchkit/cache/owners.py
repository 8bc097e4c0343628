"""Who could have written a file: what others may write is no proof, and no release that was checked.

A file of the cache is believed if it, and every folder from it up to the cache directory, belongs to this user or to
the system's administrator, and nobody else may write to it. Folders above the cache need no look: who may write there
can put another folder in its place, but none that belongs to this user. The same rule as that of OpenSSH for its keys
(``StrictModes``), with Debian's exception for a group that has one member only.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

_ADMINISTRATOR = 0


def why_not_ours(state: os.stat_result, path: Path, *, closed: bool = False) -> str | None:
    """Why a file or folder must not be believed, with what the user can do; None if it may be.

    Args:
        state: of the file or folder; of an open file, what the file descriptor says.
        path: its name, for the message.
        closed: whether it lies in a folder that only its owner may enter, where its own mode says nothing.
    """
    if not hasattr(os, "geteuid"):  # Windows: a profile is its user's alone
        return None
    if state.st_uid not in (os.geteuid(), _ADMINISTRATOR):
        return f"{path} belongs to another user (uid {state.st_uid}); `chown` it if you trust it, or delete it"
    if closed:
        return None
    everyone = state.st_mode & stat.S_IWOTH
    if everyone or (state.st_mode & stat.S_IWGRP and not _only_member(state.st_gid)):
        whom = "everybody" if everyone else f"the group {state.st_gid}"
        return f"{path} may be written by {whom}; `chmod -R go-w` it if you trust it, or delete it"
    return None


def is_closed(state: os.stat_result) -> bool:
    """Whether nobody but its owner may enter a folder."""
    return not state.st_mode & (stat.S_IXGRP | stat.S_IXOTH)


def _only_member(gid: int) -> bool:
    """Whether a group is the administrator's, or the private one of this user: of the same name, without members."""
    if gid == _ADMINISTRATOR:
        return True
    import grp  # POSIX only
    import pwd

    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
