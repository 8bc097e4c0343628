"""Writing ``compat_matrix.md`` from what is recorded and proven now; nothing is read or run for it."""

from __future__ import annotations

from pathlib import Path


def write_matrix(output: Path) -> None:
    """Write the matrix of the records and proofs of this checkout.

    Args:
        output: the Markdown file; what is known of every other model is read from beside it.

    Raises:
        CacheError: a file cannot be read or written, or a line of it is damaged.
    """
    from patchkit.cache.storage import write_whole
    from patchkit.check.results.matrix import make_matrix, to_markdown
    from patchkit.check.results.models import Models
    from patchkit.check.results.peft_matrix import peft_matrix_of
    from patchkit.check.results.torch_records import TorchRecords
    from patchkit.check.static import peft_layers
    from patchkit.check.static.records import SHIPPED_RECORDS, Records
    from patchkit.trust.ledger import SHIPPED_LEDGER, read_proofs

    layers = peft_matrix_of(peft_layers.SHIPPED_PEFT_RECORDS)
    table = make_matrix(Records.load(SHIPPED_RECORDS), read_proofs(SHIPPED_LEDGER))
    # What is known of every other model stays in the matrix.
    models = Models.load(output.with_name("compat_models.jsonl"))
    write_whole(output, to_markdown(table, models, layers, TorchRecords.load()))
