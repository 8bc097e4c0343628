"""What a release has to be."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from patchkit.version import __version__
from tools import release

ROOT = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path):
    (tmp_path / "patchkit").mkdir()
    (tmp_path / "patchkit" / "version.py").write_text('__version__ = "1.2.0"\n')
    (tmp_path / "CHANGELOG.md").write_text(
        "# Changelog\n\n## [Unreleased]\n\n## [1.2.0] - 2026-11-22\n\n## [1.1.0] - 2026-10-01\n"
    )
    (tmp_path / "CITATION.cff").write_text("cff-version: 1.2.0\nversion: 1.2.0\n")
    return tmp_path


def test_all_say_the_same(root):
    release.check("v1.2.0", root)


@pytest.mark.parametrize(
    ("file", "text", "tag", "said"),
    [
        (
            "patchkit/version.py",
            '__version__ = "1.2.1"',
            "v1.2.0",
            "the tag is v1.2.0, and patchkit/version.py says 1.2.1",
        ),
        ("patchkit/version.py", '__version__ = "1.2.0"', "1.2.0", "the tag is 1.2.0"),
        ("patchkit/version.py", "", "v1.2.0", "version.py has no version"),
        ("CHANGELOG.md", "## [Unreleased]\n", "v1.2.0", "CHANGELOG.md has no line '## [1.2.0] - YYYY-MM-DD'"),
        ("CHANGELOG.md", "## [1.2.0] - soon\n", "v1.2.0", "CHANGELOG.md has no line"),
        ("CHANGELOG.md", "## [1x2.0] - 2026-11-22\n", "v1.2.0", "CHANGELOG.md has no line"),
        ("CITATION.cff", "cff-version: 1.2.0\nversion: 1.1.0\n", "v1.2.0", "CITATION.cff says 1.1.0"),
    ],
)
def test_what_differs_is_named(root, file, text, tag, said):
    (root / file).write_text(text)
    with pytest.raises(release.ReleaseError) as caught:
        release.check(tag, root)
    assert said in str(caught.value)


def test_two_builds_are_compared(tmp_path, monkeypatch):
    contents = iter([b"a", b"a", b"b"])

    def built(folder, root):
        return {"x.whl": next(contents), "x.tar.gz": b"same"}

    monkeypatch.setattr(release, "_built", built)
    assert release.build(tmp_path, tmp_path) == [tmp_path / "x.tar.gz", tmp_path / "x.whl"]
    contents = iter([b"a", b"b"])
    with pytest.raises(release.ReleaseError, match=r"built twice, these differ: x\.whl"):
        release.build(tmp_path, tmp_path)


def test_the_command(capsys, monkeypatch):
    assert release.main([]) == 2
    assert release.main(["check", "v0.0.0"]) == 1
    assert f"patchkit/version.py says {__version__}" in capsys.readouterr().err
    monkeypatch.setattr(release, "check", lambda tag: None)
    assert release.main(["check", "v1"]) == 0


def test_the_citation_is_of_this_version(tmp_path):
    for name in ("patchkit/version.py", "CITATION.cff"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "CHANGELOG.md").write_text(f"## [{__version__}] - 2026-11-22\n")
    release.check(f"v{__version__}", tmp_path)
