"""What each process of the FSDP2 tests over 4-bit layers runs: a few optimizer steps, unpatched and patched."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from typing import Any

import torch
import torch.distributed as dist
from distributed_worker import adapters, whole
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import patchkit
from patchkit.testing import add_lora, fused_calls, tiny_inputs

STEPS, BATCH = 3, 4


def load(folder: str) -> Any:
    """4-bit weights that FSDP can gather: they are kept as numbers of the adapters' dtype."""
    stored = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
        bnb_4bit_quant_storage=torch.float32,
    )
    return AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=stored, dtype=torch.float32, device_map="cpu"
    )


def train(folder: str, rank: int, world: int, patch: str) -> dict[str, Any]:
    """As in ``distributed_worker``, in whole batches."""
    model = add_lora(load(folder)).train()
    inputs = tiny_inputs("llama", model, batch=BATCH)
    if patch == "before":
        patchkit.apply(model)
    if world > 1:
        for layer in model.base_model.model.model.layers:
            fully_shard(layer)
        fully_shard(model)
    if patch == "after":
        patchkit.apply(model)
    before = adapters(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, eps=1e-3)
    rows = torch.arange(BATCH).chunk(world)[rank]
    losses, norms = [], []
    with fused_calls() as calls:
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = model(**{key: value[rows] for key, value in inputs.items()}, use_cache=False).loss
            loss.backward()
            norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
            norms.append(whole(norm).item())
            optimizer.step()
            total = loss.detach()
            if world > 1:
                dist.all_reduce(total)
            losses.append(total.item() / world)
    return {"losses": losses, "norms": norms, "update": adapters(model) - before, "calls": Counter(calls)}


def main() -> None:
    rank, world, store, out, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5]
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    patches = ("never", "before", "after") if world > 1 else ("never", "before")
    found = {patch: train(folder, rank, world, patch) for patch in patches}
    if rank == 0:
        torch.save(found, out)
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
