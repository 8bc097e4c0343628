"""A folder whose modules tell that they were run: for tests that nothing in the folder one stands in is."""

from __future__ import annotations

from pathlib import Path

TRAPS = (
    "pip", "multiprocessing", "transformers", "torch", "peft", "json", "runpy", "site", "encodings", "random",
    "numpy", "packaging", "libcst", "filelock", "rich", "sitecustomize", "usercustomize", "patchkit_layer", "evil",
)  # fmt: skip


def set_traps(folder: Path) -> Path:
    """Modules that shadow those that are wanted, and a distribution with a plugin of patchkit."""
    folder.mkdir(parents=True)
    for name in TRAPS:
        (folder / f"{name}.py").write_text(
            f"open({str(folder / 'sprung')!r}, 'a').write('{name} ')\nraise SystemExit(0)\n"
        )
    about = folder / "evil-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[patchkit.architectures]\nevil = evil:ARCHITECTURE\n")
    (folder / "evil.pth").write_text("import evil\n")
    return folder


def sprung(folder: Path) -> str:
    """Which were run."""
    mark = folder / "sprung"
    return mark.read_text() if mark.exists() else ""
