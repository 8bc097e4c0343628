"""FSDP2: ``torchrun --nproc-per-node 2 -m examples.recipes.fsdp2``. Patching after sharding works too."""

from __future__ import annotations

import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch.distributed.fsdp import fully_shard

import patchkit
from examples.recipes.model import small, train


def main() -> tuple[patchkit.Report, list[float]]:
    """Train in every process; the report and the losses."""
    dist.init_process_group("gloo")  # "nccl" on GPUs
    model, batch = small()
    model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear"))
    report = patchkit.apply(model)
    for layer in model.base_model.model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    losses = train(model.train(), batch)
    rank = dist.get_rank()
    dist.destroy_process_group()
    if rank == 0:
        print(report.summary)
        print(losses)
    return report, losses


if __name__ == "__main__":
    main()
