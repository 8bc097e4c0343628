"""What each process of the distributed tests runs: a few optimizer steps in several ways, unpatched and patched."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import patchkit
from patchkit.testing import TEXT_PROJECTIONS, add_lora, fused_calls, tiny_inputs, tiny_model

STEPS, BATCH = 3, 4
MODEL = "gemma3"
TARGETS = [*TEXT_PROJECTIONS, "embed_tokens", "lm_head"]
OPTIONS: dict[str, Any] = {name: value or True for name, _, value in (text.partition("=") for text in sys.argv[6:])}
"""Of ``patchkit.apply``: what is off by default and named at the end of the command line, with a value or without."""

MICRO_BATCHES = {"whole batches": 1, "accumulation": 2, "bfloat16": 1}
"""Micro-batches per optimizer step of each way to train; "bfloat16" is FSDP2's mixed precision policy."""


def wrap(model: nn.Module, kind: str, way: str) -> nn.Module:
    if kind == "ddp":
        return DistributedDataParallel(model)
    if kind == "fsdp2":
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if way == "bfloat16" else MixedPrecisionPolicy()
        for layer in model.base_model.model.model.layers:
            fully_shard(layer, mp_policy=policy)
        fully_shard(model, mp_policy=policy)
    return model


def without_sync(wrapped: nn.Module, kind: str) -> AbstractContextManager[Any]:
    """Gradients stay in this process until the last micro-batch of a step."""
    if kind == "ddp":
        return wrapped.no_sync()
    return fsdp_without_sync(wrapped) if kind == "fsdp2" else nullcontext()


@contextmanager
def fsdp_without_sync(wrapped: nn.Module) -> Iterator[None]:
    wrapped.set_requires_gradient_sync(False)
    yield
    wrapped.set_requires_gradient_sync(True)


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def adapters(model: nn.Module) -> Tensor:
    """All trained weights in one vector, the same in every process."""
    return torch.cat([whole(p.detach()).flatten().clone() for p in model.parameters() if p.requires_grad])


def train(kind: str, way: str, rank: int, world: int, patch: str) -> dict[str, Any]:
    """Losses and gradient norms of each step, averaged over processes, which each take a part of the batch.

    ``patch`` says when: "before" or "after" the model is wrapped, or "never".
    """
    model = add_lora(tiny_model(MODEL), target_modules=TARGETS).train()
    inputs = tiny_inputs(MODEL, model, batch=BATCH)
    if patch == "before":
        patchkit.apply(model, **OPTIONS)
    rows = torch.arange(BATCH).chunk(world)[rank].chunk(MICRO_BATCHES[way])
    wrapped = wrap(model, kind, way)
    if patch == "after":
        patchkit.apply(wrapped, **OPTIONS)
    before = adapters(wrapped)
    # A large epsilon, because Adam's first steps are otherwise the signs of gradients, noise included.
    optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=1e-2, eps=1e-3)
    losses, norms = [], []
    with fused_calls() as calls:
        for _ in range(STEPS):
            optimizer.zero_grad()
            total = torch.zeros(())
            for i, part in enumerate(rows):
                with nullcontext() if i == len(rows) - 1 else without_sync(wrapped, kind):
                    micro_batch = {key: value[part] for key, value in inputs.items()}
                    loss = wrapped(**micro_batch, use_cache=False).loss.float() / len(rows)
                    loss.backward()
                total += loss.detach()
            norm = torch.nn.utils.get_total_norm([p.grad for p in wrapped.parameters() if p.grad is not None])
            norms.append(whole(norm).item())
            optimizer.step()
            if world > 1:
                dist.all_reduce(total)
            losses.append(total.item() / world)
    return {"losses": losses, "norms": norms, "update": adapters(wrapped) - before, "calls": Counter(calls)}


class Trainer(transformers.Trainer):
    """Wraps the model in DDP by itself, as it finds two processes."""

    losses: list[float]

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = super().training_step(*args, **kwargs)
        self.losses.append(loss.item())
        return loss


def train_with_trainer(folder: Path, callbacks: list[type]) -> dict[str, Any]:
    model = add_lora(tiny_model(MODEL), target_modules=TARGETS).train()
    inputs = tiny_inputs(MODEL, model, batch=STEPS * BATCH)
    before = adapters(model)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=BATCH // 2,
        learning_rate=1e-2,
        adam_epsilon=1e-3,
        use_cpu=True,
        ddp_backend="gloo",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    rows = [{key: value[i] for key, value in inputs.items()} for i in range(STEPS * BATCH)]
    trainer = Trainer(model, arguments, train_dataset=rows, callbacks=callbacks)
    trainer.losses = []
    with fused_calls() as calls:
        trainer.train()
    assert isinstance(trainer.model_wrapped, DistributedDataParallel)
    return {"losses": trainer.losses, "norms": [], "update": adapters(model) - before, "calls": Counter(calls)}


def main() -> None:
    kind, rank, world, store, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
    torch.set_num_threads(1)
    if world > 1:
        # As torchrun does, for accelerate; the address is asked for, and the process group below used instead.
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1")
        os.environ.update(WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world))
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    ways = [way for way in MICRO_BATCHES if kind == "fsdp2" or way != "bfloat16"]
    patches = ("never", "before", "after") if world > 1 else ("never", "before")
    found = {(way, patch): train(kind, way, rank, world, patch) for way in ways for patch in patches}
    if kind == "ddp":
        for patch, callbacks in (("never", []), ("after", [patchkit.TrainerCallback])):
            found["trainer", patch] = train_with_trainer(Path(out).parent, callbacks)
    if rank == 0:
        torch.save(found, out)
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
