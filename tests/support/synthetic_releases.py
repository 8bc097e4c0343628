"""Releases made for a test: folders and wheels with whatever model files they should hold."""

from __future__ import annotations

import hashlib
import importlib.util
import zipfile
from collections.abc import Mapping
from pathlib import Path

from patchkit.arch.registry import find
from patchkit.check.static.findings import findings_of
from patchkit.check.static.records import Records
from patchkit.upstream.release import Release, module_path

LLAMA = "transformers/models/llama/modeling_llama.py"

SMALL_LLAMA = """\
class LlamaAttention(nn.Module):
    def forward(self, hidden_states):
        query = self.q_proj(hidden_states)
        key = self.k_proj(hidden_states)
        value = self.v_proj(hidden_states)
        return self.o_proj(attend(query, key, value))


class LlamaMLP(nn.Module):
    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
"""


def installed_source(path: str) -> str:
    """Text of a file of the installed transformers, which is not imported."""
    spec = importlib.util.find_spec("transformers")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return (Path(spec.submodule_search_locations[0]).parent / path).read_text()


def folder_release(folder: Path, version: str, files: Mapping[str, str]) -> Release:
    """A release that is a folder of files."""
    for path, text in {"transformers/models/__init__.py": "", **files}.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    (folder / "transformers" / "__init__.py").write_text(f'__version__ = "{version}"\n')
    return Release(version, folder, str(folder))


def records_of(release: Release, *architectures: str) -> Records:
    """Records in which one release is known."""
    findings = [finding for name in architectures for finding in findings_of(release, find(name))]
    return Records().with_findings(findings, "2026-01-02")


def path_of(architecture: str) -> str:
    return module_path(find(architecture).module)


def make_wheel(
    folder: Path,
    version: str = "4.90.0",
    files: Mapping[str, str] | None = None,
    *,
    name: str = "transformers",
    requires_python: str = ">=3.9",
) -> Path:
    """A wheel with these files; by default a small llama."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Python: {requires_python}\n"
    content = {LLAMA: SMALL_LLAMA} if files is None else files
    about = f"{name}-{version}.dist-info"
    tags = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, text in {**content, f"{about}/METADATA": metadata, f"{about}/WHEEL": tags}.items():
            archive.writestr(member, text)
        archive.writestr(f"{about}/RECORD", "".join(f"{member},,\n" for member in archive.namelist()))
    return path


def make_index(folder: Path, *wheels: Path, digests: bool = True, wrong: bool = False) -> str:
    """A PEP 503 index of these wheels as a folder; its address."""
    page = folder / "transformers"
    page.mkdir(parents=True)
    links = []
    for wheel in wheels:
        digest = "0" * 64 if wrong else hashlib.sha256(wheel.read_bytes()).hexdigest()
        fragment = f"#sha256={digest}" if digests else ""
        links.append(f'<a href="{wheel.as_uri()}{fragment}">{wheel.name}</a><br>')
    (page / "index.html").write_text(f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>")
    return folder.as_uri()
