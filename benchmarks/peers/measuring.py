"""What the scripts here share: a tiny model with adapters, the relative difference, and the row that each prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import distributions
from typing import Any

import torch
from packaging.utils import canonicalize_name
from torch import Tensor, nn


@dataclass(frozen=True)
class Row:
    """One difference, or one thing that is the same.

    Attributes:
        setting: what is trained.
        quantity: what the three numbers are.
        peft: PEFT's.
        peer: the peer's distribution.
        theirs: the peer's.
        ours: patchkit's.
        how: ``run``; or what part of the peer was run; or ``read`` with the file and line.
    """

    setting: str
    quantity: str
    peft: str
    peer: str
    theirs: str
    ours: str
    how: str


def show(rows: Sequence[Row]) -> None:
    """Print rows, one JSON object a line: what `compare.py` reads."""
    for row in rows:
        sys.stdout.write(f"{json.dumps(asdict(row))}\n")


def line_of(source: str, path: str, text: str, after: str = "") -> str:
    """``path:line`` where a text stands in a peer's file.

    Args:
        source: folder of the peers' packages.
        path: of the file in it.
        text: of the line, or a part of it.
        after: of a line that stands before it.

    Raises:
        ValueError: it is not there any more, so what is said of it has to be read again.
    """
    begun = False
    with open(f"{source}/{path}", encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            begun = begun or after in line
            if begun and text in line:
                return f"{path}:{number}"
    raise ValueError(f"{path} has no line with {text!r}: read it again")


def difference(found: Tensor, expected: Tensor) -> str:
    """Relative difference of two tensors, as text: 0 is said where they have the same bits."""
    if torch.equal(found, expected):
        return "0"
    return f"{float((found - expected).norm() / expected.norm()):.1e}"


def make_masks_seen(*attentions: Any) -> Tensor:
    """Change attentions such that a projection's output is its dropout mask: W = 0 and A = B = identity.

    Args:
        attentions: with adapters of the rank of their hidden states.

    Returns:
        The input to give them, ``[2, 5, hidden]``.
    """
    for attention in attentions:
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            projection.base_layer.weight.data.zero_()
            for factor in (projection.lora_A, projection.lora_B):
                factor["default"].weight.data.copy_(torch.eye(projection.in_features))
    return torch.ones(2, 5, attentions[0].q_proj.in_features)


def distinct_masks(outputs: Iterable[Tensor]) -> str:
    """How many different masks the outputs of such projections show."""
    return str(len({tuple((one != 0).flatten().tolist()) for one in outputs}))


def attention_of(model: nn.Module) -> Any:
    """The first attention of a model."""
    return next(module for name, module in model.named_modules() if name.endswith("self_attn"))


def taken_from(folder: str, *modules: Any) -> None:
    """Make sure that what is measured is what the page names, and not what is installed.

    Raises:
        ValueError: a module is from elsewhere.
    """
    for module in modules:
        if not str(module.__file__).startswith(folder):
            raise ValueError(f"{module.__name__} is {module.__file__}, and not from {folder}")


def versions(folder: str) -> dict[str, str]:
    """The versions of the distributions in a folder, by canonical name."""
    return {canonicalize_name(one.metadata["Name"]): one.version for one in distributions(path=[folder])}
