"""``patchkit archs``: the registered architectures."""

from __future__ import annotations

from patchkit.arch.registry import architectures
from patchkit.arch.spec import MLP, Architecture, Attention, Block, GatedMLP


def archs() -> None:
    """List the registered architectures, those of plugins included."""
    from rich.table import Table

    from patchkit.cli.console import output_console
    from patchkit.cli.fitting import fitted

    table = Table(box=None, pad_edge=False)
    for title in ("architecture", "model types", "attention", "MLP", "text models"):
        table.add_column(title, overflow="fold")
    for architecture in architectures().values():
        table.add_row(
            architecture.name,
            ", ".join(architecture.model_types),
            _classes(architecture, Attention),
            _classes(architecture, GatedMLP, MLP),
            ", ".join(architecture.text_models),
        )
    console = output_console()
    if not console.is_terminal:
        console.width = 1000  # of which the table takes what it needs: one line each, to grep in
    console.print(fitted(table, console), soft_wrap=False)


def _classes(architecture: Architecture, *kinds: type[Block]) -> str:
    """The architecture's block classes of these kinds, each with its tower where that is not the text tower."""
    return ", ".join(
        block.class_name if block.tower == "text" else f"{block.class_name} ({block.tower})"
        for block in architecture.blocks
        if isinstance(block, kinds)
    )
