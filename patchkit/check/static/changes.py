"""What changed upstream in a class since a release, and what the rewriter makes of it, as unified diffs."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from patchkit.arch.registry import find
from patchkit.check.static.findings import Finding, Owner, block_named, owner_of_forward
from patchkit.errors import RewriteError
from patchkit.rewrite.sites import Rewritten
from patchkit.upstream.release import Release, module_path
from patchkit.upstream.text import split_lines


def upstream_change(finding: Finding, release: Release, before: Release) -> Iterator[str]:
    """The diff of the class that defines ``forward``, from an earlier release to this one; nothing if it is the same.

    Raises:
        ReleaseError: a release cannot be read.
    """
    module = find(finding.architecture).module
    old = owner_of_forward(before, module, finding.class_name)
    new = owner_of_forward(release, module, finding.class_name)
    texts = [one.entry.text if isinstance(one, Owner) else "" for one in (old, new)]
    names = [f"{r.package}-{r.version}/{_path(one, module)}" for r, one in ((before, old), (release, new))]
    yield from _diff(texts[0], texts[1], *names)


def rewrite_change(finding: Finding, release: Release) -> Iterator[str]:
    """The diff that rewriting makes to the file; nothing if it is left as it is.

    Raises:
        ReleaseError: the release cannot be read.
    """
    found = _rewritten(finding, release)
    if found is not None:
        names = (f"{release.package}-{release.version}/{finding.path}", f"patchkit/{finding.path}")
        yield from _diff(found[0].text, found[1].source, *names)


def rewritten_method(finding: Finding, release: Release) -> tuple[str, str] | None:
    """The text of ``forward``, as it is and as it is rewritten; None if it is not there.

    Raises:
        ReleaseError: the release cannot be read.
    """
    found = _rewritten(finding, release)
    if found is None:
        return None
    owner, rewritten = found
    start = sum(map(len, split_lines(owner.text)[: rewritten.line - 1]))
    rest = len(rewritten.source) - start - len(rewritten.method_source)
    return owner.text[start : len(owner.text) - rest], rewritten.method_source


def _rewritten(finding: Finding, release: Release) -> tuple[Owner, Rewritten] | None:
    architecture = find(finding.architecture)
    found = owner_of_forward(release, architecture.module, finding.class_name)
    if not isinstance(found, Owner):
        return None
    try:
        return found, found.rewrite(block_named(architecture, finding.block))
    except RewriteError:
        return None


def _path(found: Owner | str, module: str) -> str:
    return module_path(found.module if isinstance(found, Owner) else module)


def _diff(old: str, new: str, old_name: str, new_name: str) -> Iterator[str]:
    before, after = ([line.rstrip("\r\n") for line in split_lines(text)] for text in (old, new))
    return difflib.unified_diff(before, after, old_name, new_name, lineterm="")
