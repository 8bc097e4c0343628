"""A hook of mkdocs: adds the generated pages, and puts generated tables where a page asks for them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # mkdocs runs a hook as a file, from wherever it was started

from tools.docs.pages import activations, pages, remedies

TABLES = {"{{ activations }}": activations, "{{ remedies }}": remedies}
"""What a page says where a table is to stand, and what makes its rows."""


def on_files(files: Any, *, config: Any) -> Any:
    """Add the generated pages to those of the folder."""
    from mkdocs.structure.files import File

    for name, text in pages().items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the tables in."""
    for name, rows in TABLES.items():
        if name in markdown:
            markdown = markdown.replace(name, rows())
    return markdown
