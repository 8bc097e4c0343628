"""The files that another run left: which there may be, how large, and their lines. Nothing in them is believed here."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from packaging.version import Version

from patchkit.errors import ProposalError

LOG = "watch.log"
"""What the run printed; of every proposal."""

MOST_BYTES = 16 * 2**20
"""How many bytes a file of a proposal may have."""

MOST_RELEASES = 64
"""How many new releases a proposal may have."""

DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def texts_of(folder: Path, names: Collection[str]) -> dict[str, str]:
    """The text of the files of a proposal, by name.

    Args:
        folder: where another run's files are.
        names: of the files; there may be no other, and none may be missing.

    Raises:
        ProposalError: the folder has other files, or one of them is no ordinary file, too large, or no UTF-8.
    """
    try:
        entries = {entry.name: entry for entry in os.scandir(folder)}
        if set(entries) != set(names):
            raise ProposalError(f"{folder} has the files {sorted(entries)}; expected {sorted(names)}")
        for name in names:
            if not entries[name].is_file(follow_symlinks=False) or entries[name].is_symlink():
                raise ProposalError(f"{name} is no ordinary file")
            if entries[name].stat(follow_symlinks=False).st_size > MOST_BYTES:
                raise ProposalError(f"{name} has more than {MOST_BYTES} bytes")
        texts = {name: (folder / name).read_bytes() for name in names}
        return {name: text.decode("utf-8", "replace" if name == LOG else "strict") for name, text in texts.items()}
    except (OSError, UnicodeDecodeError) as error:
        raise ProposalError(f"{folder} cannot be read: {error}") from error


def lines_of(name: str, text: str) -> Iterator[tuple[str, str]]:
    """The lines of a file that are not empty, each with its place."""
    return ((f"{name}:{number}", line) for number, line in enumerate(text.split("\n"), start=1) if line)


def ask_releases(name: str, found: Iterable[str], asked: Collection[str]) -> None:
    """Ask whether a proposal is of the releases that it may be of.

    Args:
        name: of the file that has them.
        found: the releases that are new, in patchkit's own form.
        asked: those that were asked for; empty if any may be taken.

    Raises:
        ProposalError: it has another one, or too many.
    """
    there = sorted(set(found), key=Version)
    if len(there) > MOST_RELEASES:
        raise ProposalError(f"{name} has more than {MOST_RELEASES} new releases")
    wanted = set(map(Version, asked))
    others = [release for release in there if wanted and Version(release) not in wanted]
    if others:
        raise ProposalError(
            f"{name} has {', '.join(others)}, and {', '.join(asked)} was asked for; "
            "say `--release` for each release that is to be taken, or run `patchkit watch` again"
        )


def are_names(words: Iterable[str], more: str = "") -> bool:
    """Whether these are names as patchkit gives them to checks, levels and packages.

    Args:
        words: to look at.
        more: other characters that they may have.
    """
    return all(re.fullmatch(rf"[\w ,.=+{re.escape(more)}-]{{1,80}}", word, re.ASCII) for word in words)
