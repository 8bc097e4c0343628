"""What each process of the distributed tests runs: three optimizer steps, and the losses of the whole batch."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import patchkit
from patchkit.runtime import blocks
from patchkit.testing import add_lora, tiny_inputs, tiny_model

STEPS = 3


def count_fused_calls() -> list[str]:
    """Record every call of a fused function: a level that is only promised would not show."""
    calls: list[str] = []

    def counted(function):
        def call(*args, **kwargs):
            calls.append(function.__name__)
            return function(*args, **kwargs)

        return call

    for name in ("lora_projections", "lora_linear", "lora_gated_mlp"):
        setattr(blocks, name, counted(getattr(blocks, name)))
    return calls


def train(kind: str, rank: int, world: int, patch: bool) -> dict[str, list[float] | dict[str, int]]:
    """Loss and gradient norm of each step, averaged over processes, which each take a part of the batch."""
    name = "gemma3"
    model = add_lora(tiny_model(name)).train()
    inputs = tiny_inputs(name, model, batch=4)
    if patch:
        patchkit.apply(model)
    calls = count_fused_calls()
    part = {key: value[rank * 4 // world : (rank + 1) * 4 // world] for key, value in inputs.items()}
    wrapped: torch.nn.Module = model
    if kind == "ddp":
        wrapped = DistributedDataParallel(model)
    elif kind == "fsdp2":
        for layer in model.base_model.model.model.layers:
            fully_shard(layer)
        fully_shard(model)
    optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=1e-2)
    losses, norms = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = wrapped(**part, use_cache=False).loss
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in wrapped.parameters() if p.grad is not None])
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        optimizer.step()
        whole = loss.detach().clone()
        if world > 1:
            dist.all_reduce(whole)
            whole /= world
        losses.append(whole.item())
        norms.append(norm.item())
    return {"losses": losses, "norms": norms, "fused_calls": sorted(calls)}


def main() -> None:
    kind, rank, world, store, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], Path(sys.argv[5])
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    found = {str(patch): train(kind, rank, world, patch) for patch in (True, False)}
    if rank == 0:
        out.write_text(json.dumps(found))
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
