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
        "Call `patchkit.apply(model)` after the adapters are made. A model that was loaded since has its own classes.",
    ),
    Remedy(
        "no active LoRA adapter",
        "^no active LoRA adapter",
        "Nothing: a projection without an adapter has nothing to gain.",
    ),
    Remedy("switched off (PART=False)", r"^switched off", "Nothing: it was asked for."),
    Remedy("its adapters are disabled", "adapters are disabled", "Enable them: `model.enable_adapter_layers()`."),
    Remedy("its adapters are merged", "adapters are merged", "Unmerge them to train: `model.unmerge_adapter()`."),
    Remedy(
        "a forward hook is registered on it",
        "hook is registered",
        "Remove the hook while training. Fusing past a hook would skip it.",
    ),
    Remedy(
        "its call was replaced on the instance, as module.compile() does",
        "call was replaced on the instance",
        "Compile the whole model, `torch.compile(model)`, rather than one module.",
    ),
    Remedy(
        "its forward was replaced by NAME",
        "was replaced|works in place of|is wrapped by",
        "Another library, or you, put code in its place. Leave it, or switch that off there: Liger-Kernel takes "
        "`swiglu=False`, transformers `use_kernels=False`.",
    ),
    Remedy(
        "LoRA variant NAME",
        "LoRA variant",
        "This variant computes something else, and PEFT's code runs. Plain LoRA, rsLoRA and DoRA are fused.",
    ),
    Remedy(
        "its base layer is a NAME",
        "base layer is a|base layer: it is a|base layer: its weight is a",
        "This kind of layer is not read: of quantised ones bitsandbytes' 4-bit and 8-bit layers are fused.",
    ),
    Remedy(
        "in eval mode bitsandbytes packs its 4-bit weight",
        "in eval mode bitsandbytes",
        "Nothing: in training mode it is fused.",
    ),
    Remedy(
        "bitsandbytes packed its 4-bit weight for inference on this CPU",
        "bitsandbytes packed",
        "Load the model anew before training, and evaluate after it, or on a GPU.",
    ),
    Remedy(
        "its source is not in the ledger",
        "not in the ledger",
        'Say `trust="verify"`: it is verified on the spot, once.',
    ),
    Remedy(
        "it differs from upstream",
        "differ[s]? from|its numbers",
        "The source computes something else than the rule expects. Please report it, with `patchkit env`.",
    ),
    Remedy(
        "there is no source of NAME",
        "there is no source|code of .* in memory is not that of",
        "Define the class in a file, not in a prompt or a notebook, and start Python again after editing the file.",
    ),
    Remedy(
        "activation NAME: it is not fused",
        "^activation ",
        "Its projections run fused one by one. Fused whole: SiLU, both GELUs, ReLU, ReLU², quick GELU and sigmoid.",
    ),
    Remedy(
        "autocast to DTYPE over DTYPE weights",
        "^autocast to |: autocast to ",
        "Use one low precision: bfloat16 weights with bfloat16 autocast, or float32 weights.",
    ),
    Remedy(
        "its weight is DTYPE, its adapter DTYPE",
        "its weight is (float|bfloat)|differ in dtype|its input is ",
        "Bring weights, adapters and inputs to dtypes that PEFT can multiply: cast the model with `model.to(dtype)`.",
    ),
    Remedy(
        "it is on another device than its input",
        "on another device",
        "Put adapters and base on one device; a layer that is offloaded runs upstream's code.",
    ),
    Remedy(
        "its weight has shape SHAPE (sharded, or not a matrix)",
        "sharded, or not a matrix|DTensor",
        "Sharded weights run upstream's code, but for FSDP2, which gathers them before the call.",
    ),
    Remedy(
        "inside the dispatch mode NAME",
        "^inside |: inside ",
        "Nothing, if it is only for a test: under a mode or a torch.func transform upstream's code runs.",
    ),
    Remedy(
        "it is trained as a whole (modules_to_save)",
        "modules_to_save",
        "Nothing: a layer that is trained whole has no adapter to fuse.",
    ),
)
"""In the order in which they are tried."""

REPORT_IT = "Its layers run upstream's code or one by one. If that surprises you, open an issue with `patchkit env`."


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
