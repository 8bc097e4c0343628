"""What a user can do about a part that is not fused: a remedy for each reason that a report gives."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from patchkit.planning.row import Row


@dataclass(frozen=True)
class Remedy:
    """What is to be done about some reasons.

    Attributes:
        reason: how such a reason reads, for people; what is in capitals stands for something.
        pattern: regular expression that is found in it.
        text: what to do.
    """

    reason: str
    pattern: str
    text: str


REMEDIES: tuple[Remedy, ...] = (
    Remedy(
        "not patched; call patchkit.apply(model)",
        "^not patched",
        "Call `patchkit.apply(model)` after the adapters are made. It patches this model alone, and none loaded later.",
    ),
    Remedy(
        "no active LoRA adapter",
        "^no active LoRA adapter",
        "Nothing to do: a projection without an adapter has nothing to fuse.",
    ),
    Remedy("switched off (PART=False)", r"^switched off", "Nothing to do: an option asked for it."),
    Remedy("its adapters are disabled", "adapters are disabled", "Enable them: `model.enable_adapter_layers()`."),
    Remedy("its adapters are merged", "adapters are merged", "Unmerge them to train: `model.unmerge_adapter()`."),
    Remedy(
        "a forward hook is registered on it",
        "hook is registered",
        "Remove the hook for training. A fused function would skip it.",
    ),
    Remedy(
        "its call was replaced on the instance, as module.compile() does",
        "call was replaced on the instance",
        "Compile the whole model with `torch.compile(model)`, and not single modules.",
    ),
    Remedy(
        "its forward was replaced by NAME",
        "was replaced|works in place of|is wrapped by",
        "Another library, or you, replaced the module's code. Leave it so, or switch that off: Liger-Kernel takes "
        "`swiglu=False`, transformers takes `use_kernels=False`.",
    ),
    Remedy(
        "LoRA variant NAME",
        "LoRA variant",
        "Plain LoRA, rsLoRA and DoRA are fused. This variant has another formula, so PEFT's code runs.",
    ),
    Remedy(
        "its base layer is a NAME",
        "base layer is a|base layer: it is a|base layer: its weight is a",
        "Of quantised layers, those of bitsandbytes are fused (4-bit and 8-bit). Other kinds run PEFT's code.",
    ),
    Remedy(
        "in eval mode bitsandbytes packs its 4-bit weight",
        "in eval mode bitsandbytes",
        "Nothing to do: in training mode it is fused.",
    ),
    Remedy(
        "bitsandbytes packed its 4-bit weight for inference on this CPU",
        "bitsandbytes packed",
        "Load the model again, train it, and evaluate after that. On a GPU nothing is packed.",
    ),
    Remedy(
        "its source is not in the ledger",
        "not in the ledger",
        'Use `trust="verify"`, the default: the class is verified on a tiny model, once.',
    ),
    Remedy(
        "it differs from upstream",
        "differ[s]? from|its numbers",
        "Please report it, with what `patchkit env` prints. Until then upstream's code runs.",
    ),
    Remedy(
        "there is no source of NAME",
        "there is no source|code of .* in memory is not that of",
        "Define the class in a file, and not in a prompt or a notebook. Restart Python after you edit that file.",
    ),
    Remedy(
        "activation NAME: it is not fused",
        "^activation ",
        "Nothing to do: its projections are fused one by one. MLPs with SiLU, GELU (both kinds), ReLU, ReLU², quick "
        "GELU or sigmoid are fused as a whole.",
    ),
    Remedy(
        "autocast to DTYPE over DTYPE weights",
        "^autocast to |: autocast to ",
        "Keep adapters in float32 or in the dtype of the autocast, and nothing in float64.",
    ),
    Remedy(
        "its weight is DTYPE, its adapter DTYPE",
        "its weight is (float|bfloat)|differ in dtype|its input is ",
        "Bring weights, adapters and inputs to one dtype, for example with `model.to(dtype)`.",
    ),
    Remedy(
        "it is on another device than its input",
        "on another device",
        "Put the adapters and the base on one device. An offloaded layer runs upstream's code.",
    ),
    Remedy(
        "its weight has shape SHAPE (sharded, or not a matrix)",
        "sharded, or not a matrix|DTensor",
        "Use FSDP2 to shard: it gathers the weights before the call, and they are fused. Other sharded weights run "
        "upstream's code.",
    ),
    Remedy(
        "inside the dispatch mode NAME",
        "^inside |: inside ",
        "Call the model outside of the mode. Under a mode or a torch.func transform upstream's code runs.",
    ),
    Remedy(
        "it is trained as a whole (modules_to_save)",
        "modules_to_save",
        "Nothing to do: a layer that is trained as a whole has no adapter to fuse.",
    ),
)
"""In the order in which they are tried."""

REPORT_IT = (
    "Its layers are fused one by one, or run upstream's code. If you expected otherwise, open an issue, with what "
    "`patchkit env` prints."
)


@dataclass(frozen=True)
class Advice:
    """What to do about one reason.

    Attributes:
        reason: as the report gives it.
        count: how many parts run less than fused for it.
        text: what to do.
    """

    reason: str
    count: int
    text: str


def advice_of(rows: Iterable[Row]) -> tuple[Advice, ...]:
    """What to do about rows that are not fused although they could be, most parts first."""
    counts = Counter(row.reason for row in rows if row.level != "fused" and not row.expected)
    return tuple(Advice(reason, count, remedy(reason)) for reason, count in counts.most_common())


def remedy(reason: str) -> str:
    """What to do about a reason."""
    return next((one.text for one in REMEDIES if re.search(one.pattern, reason)), REPORT_IT)
