"""Two LoRA fine-tuning runs from the same seed, a step of one and a step of the other in turn.

Taking turns makes the times comparable: whatever slows the machine down meets both.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

SEED = 0


def add_lora(base: Any, rank: int) -> PeftModel:
    """Put LoRA adapters on every linear layer but the output head, initialised from :data:`SEED`."""
    torch.manual_seed(SEED)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    model.train()
    return model


@dataclass
class Run:
    """One model in training.

    Attributes:
        name: what to call it.
        model: a PEFT model.
        learning_rate: of AdamW.
        losses: the loss of each step so far.
        seconds: the duration of each step so far.
        saved_bytes: what autograd keeps between forward and backward of one step, besides the weights.
        layers_saved_bytes: the part of it that the decoder layers keep; the rest is the output head's and the loss's.
    """

    name: str
    model: Any
    learning_rate: float
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    saved_bytes: int = 0
    layers_saved_bytes: int = 0

    def __post_init__(self) -> None:
        trainable = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trainable, lr=self.learning_rate)

    @property
    def median_seconds(self) -> float:
        """The median, without the first step, which warms caches up."""
        return statistics.median(self.seconds[1:] or self.seconds)

    def loss(self, tokens: torch.Tensor) -> torch.Tensor:
        """The language modelling loss of token ids ``[batch, length]``."""
        loss: torch.Tensor = self.model(input_ids=tokens, labels=tokens, use_cache=False).loss
        return loss

    def layers(self, tokens: torch.Tensor) -> torch.Tensor:
        """The last hidden states ``[batch, length, hidden]``: all but the output head and the loss."""
        hidden_states: torch.Tensor = self.model.get_base_model().model(tokens, use_cache=False).last_hidden_state
        return hidden_states

    def step(self, tokens: torch.Tensor) -> None:
        """One step of AdamW on token ids ``[batch, length]``."""
        torch.manual_seed(SEED + len(self.losses))  # dropout, if there is any, is the same in both runs
        _wait_for_device()
        start = time.perf_counter()
        loss = self.loss(tokens)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()
        _wait_for_device()
        self.seconds.append(time.perf_counter() - start)
        self.losses.append(loss.item())


def train_in_turns(runs: Sequence[Run], batches: torch.Tensor) -> Iterator[Run]:
    """Train every run on the same batches ``[step, batch, length]``; yields a run after each of its steps."""
    for index, tokens in enumerate(batches):
        for run in runs if index % 2 == 0 else reversed(runs):  # neither is always the one that finds the caches cold
            run.step(tokens)
            yield run


def relative_differences(losses: Sequence[float], others: Sequence[float]) -> list[float]:
    """``|a - b| / |a|`` of each pair."""
    return [abs(a - b) / abs(a) for a, b in zip(losses, others, strict=True)]


def generate(model: Any, tokenizer: Any, prompt: str, tokens: int) -> str:
    """The prompt, continued greedily."""
    model.eval()
    inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(model.device)
    with torch.no_grad():
        output = model.generate(**inputs, max_new_tokens=tokens, do_sample=False, top_k=None, top_p=None)
    text: str = tokenizer.decode(output[0], skip_special_tokens=True)
    return text


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
