"""DeepSpeed: ``torchrun --nproc-per-node 2 -m examples.recipes.deepspeed_zero 2``.

Without a GPU, set ``DS_ACCELERATOR=cpu``. Under stages 1 and 2 each process has the whole weights, so blocks run fused.
Stage 3 shards the weights and replaces PyTorch's matrix product by its own. So upstream's code runs, and the report
says so.
"""

from __future__ import annotations

import sys

import deepspeed
import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model

import patchkit
from examples.recipes.model import small


def main(stage: int) -> tuple[patchkit.Report, list[float]]:
    """Train in every process; the report, made after DeepSpeed took the model, and the losses."""
    torch.manual_seed(0)
    model, batch = small()
    model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear")).train()
    patchkit.apply(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    settings = {
        "train_micro_batch_size_per_gpu": len(batch["input_ids"]),
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(trained, lr=1e-2), config=settings)
    losses = []
    for _ in range(3):
        loss = engine(**batch).loss
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    report = patchkit.report(model)
    if dist.get_rank() == 0:
        print(report.summary, *sorted({row.reason for row in report.rows if row.reason}), losses, sep="\n")
    dist.destroy_process_group()
    return report, losses


if __name__ == "__main__":
    main(int(sys.argv[1]))
