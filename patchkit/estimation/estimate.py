""":func:`patchkit.estimate`: what a step of each way to train takes, from runs of a few layers without data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from patchkit.adapters.registry import carries_adapter
from patchkit.errors import EstimateError, NotAModelError
from patchkit.estimation.counter import Counter, trainings
from patchkit.estimation.longest import longest_context
from patchkit.estimation.optimizers import known_optimizer, optimizer_bytes
from patchkit.estimation.result import Estimate, Variant
from patchkit.estimation.sizes import bytes_of, whole_number
from patchkit.estimation.step import Step
from patchkit.module_tree import named_modules, unpatched, users_model
from patchkit.options import NamedOptions, checked, takes_options

if TYPE_CHECKING:
    from typing_extensions import Unpack


@takes_options
def estimate(
    model: nn.Module,
    *,
    tokens: int,
    batch: int = 1,
    optimizer: str = "adamw",
    card: str | int | None = None,
    **options: Unpack[NamedOptions],
) -> Estimate:
    """What one training step of a model with LoRA adapters keeps and peaks at, plain and patched, in bytes.

    Nothing is computed, and nothing of the model's size is allocated. One layer of each kind runs a step on tensors
    that have shapes and no data. Each storage counts while it lives, and a layer counts as often as the model has it.
    So the counts are those of a real step with exactly this many tokens, up to some assumptions, which
    ``print(estimate)`` lists.

    Also takes the options of :func:`patchkit.apply`, for the patched ways to train. Unless ``loss`` is given, both
    values of it are shown.

    Args:
        model: a causal language model with LoRA adapters, on any device; on ``meta`` it needs no memory at all. It is
            left as it is, and may be patched.
        tokens: number of tokens of each sequence.
        batch: number of sequences.
        optimizer: ``"adamw"``, ``"adamw_8bit"``, ``"adafactor"``, ``"momentum"`` or ``"sgd"``; its states are part of
            ``peak``.
        card: the memory of a device, such as ``"80GiB"``. With it, the longest context that fits is found for each
            way to train.

    Returns:
        The memory of each way to train: plain, patched, and patched with ``loss=True``; each without and with gradient
        checkpointing, and with what is kept in the host's memory.

    Raises:
        NotAModelError: ``model`` is not a ``torch.nn.Module``.
        UnknownOptionError: an option is unknown or has a value that it cannot have.
        EstimateError: there is no adapter, a number or name makes no sense, or the step cannot be run without data.
    """
    (found,) = estimates(model, [tokens], batch=batch, optimizer=optimizer, card=card, options=dict(options))
    return found


def estimates(
    model: nn.Module,
    lengths: Sequence[int],
    *,
    batch: int = 1,
    optimizer: str = "adamw",
    card: str | int | None = None,
    options: dict[str, Any],
    note: Callable[[str], object] = lambda name: None,
) -> tuple[Estimate, ...]:
    """:func:`estimate` for several numbers of tokens, of which the longest context is looked for once.

    Args:
        model, batch, optimizer, card, options: as there.
        lengths: numbers of tokens.
        note: is called with the name of each way before it is counted.
    """
    if not isinstance(model, nn.Module):
        raise NotAModelError(f"expected a torch.nn.Module with adapters, found a {type(model).__qualname__}")
    checked(options)
    lengths = [whole_number("tokens", one) for one in lengths]
    whole_number("batch", batch)
    known_optimizer(optimizer)
    memory = None if card is None else bytes_of(card)
    _check_adapted(model)
    parameters = sum({id(one): one.nbytes for one in _tensors(model)}.values())
    states = optimizer_bytes(one for one in model.parameters() if one.requires_grad)
    always = parameters + states[optimizer]
    counted = partial(_variants, lengths=lengths, always=always, memory=memory, options=options, note=note)
    counter = Counter(model, batch)
    try:
        found = counted(model, counter)
    except EstimateError:
        if not counter.partial:
            raise
        found = counted(model, Counter(model, batch, all_layers=True))  # some models count their layers
    gradients = sum(one.nbytes for one in model.parameters() if one.requires_grad)
    name = unpatched(type(users_model(model))).__name__
    return tuple(
        Estimate(name, tokens, batch, parameters, gradients, states, optimizer, memory, variants)
        for tokens, variants in zip(lengths, found, strict=True)
    )


def _variants(
    model: nn.Module,
    counter: Counter,
    *,
    lengths: Sequence[int],
    always: int,
    memory: int | None,
    options: dict[str, Any],
    note: Callable[[str], object],
) -> list[tuple[Variant, ...]]:
    """Every way to train, for each number of tokens."""
    found: list[list[Variant]] = [[] for _ in lengths]
    has_checkpointing = bool(getattr(users_model(model), "supports_gradient_checkpointing", False))
    for training in trainings(options, checkpointing=has_checkpointing):
        note(training.name)
        with counter.prepared(training) as (run, unfused):
            steps = [run(tokens) for tokens in lengths]
            longest = None
            if memory is not None:
                longest = longest_context(partial(_peak_of, run), memory - always, lengths[-1])
        for variants, step in zip(found, steps, strict=True):
            kept, host, peak, flops = step
            variants.append(
                Variant(*training[:2], *training.way, kept, host, peak, always + peak, flops, longest, unfused)
            )
    return [tuple(variants) for variants in found]


def _peak_of(run: Callable[[int], Step], tokens: int) -> int:
    return run(tokens).peak


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _check_adapted(model: nn.Module) -> None:
    adapted = [module for _, module in named_modules(model) if carries_adapter(module)]
    if not any(parameter.requires_grad for module in adapted for parameter in module.parameters()):
        what = "no layer with a LoRA adapter" if not adapted else "adapters, of which none is trained"
        raise EstimateError(
            f"{type(users_model(model)).__name__} has {what}: add adapters first, for instance with peft.get_peft_model"
        )
