"""The method ``apply_loss`` of a patched language model, and the choice whether it computes the loss or upstream does.

``apply_loss(x, ...)(labels=..., vocab_size=..., **kwargs)`` computes what transformers' ``ForCausalLMLoss`` gives for
the logits that the head makes of x, by :func:`patchkit_kernels.lora.cross_entropy.lora_cross_entropy`, which never
holds them. It gives None where that is not known to be equal: rewritten code runs upstream's lines then. So it does
outside training, where logits are what somebody asks for.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers.loss import loss_utils

from patchkit.adapters.formula import Formula, name_of
from patchkit.adapters.peft import FORMULA
from patchkit.adapters.protocol import LARGEST, Reason
from patchkit.runtime import fused
from patchkit.runtime.checkpointing import as_in_forward, is_saved_by_hooks
from patchkit.runtime.levels import PLAIN_TENSORS, Ready, examine, input_of
from patchkit.runtime.precision import AdapterPrecision
from patchkit_kernels.lora.cross_entropy import Form

NOT_IN_TRAINING: Reason = "the model is in evaluation mode"
NO_GRADIENT: Reason = "nothing of it needs a gradient"

_SHIFTED = "shift_labels"
_LOSS = Formula({loss_utils: "ForCausalLMLoss fixed_cross_entropy", F: "cross_entropy pad"}, after=FORMULA)
_PARAMETERS = (
    (
        "ForCausalLMLoss",
        {"logits", "labels", "vocab_size", "num_items_in_batch", "ignore_index", "shift_labels", "kwargs"},
    ),
    ("fixed_cross_entropy", {"source", "target", "num_items_in_batch", "ignore_index", "kwargs"}),
)


class Scaling(NamedTuple):
    """What a model makes of its head's output; None for what it does not do.

    Attributes:
        multiplied: a number that it is multiplied by.
        divided: a number that it is divided by.
        softcap: c of ``c tanh(z / c)``.
    """

    multiplied: Any = None
    divided: Any = None
    softcap: Any = None


class ReadyLoss(NamedTuple):
    """A loss that can be computed from tensors.

    Attributes:
        head: the head's tensors and precision.
        form: what is made of its logits.
        target: the label of each token, ``[tokens]``.
        divisor: what the sum is divided by; None for the number of labels that count.
    """

    head: Ready
    form: Form
    target: Tensor
    divisor: Tensor | float | None


AS_TUPLE: Reason = "its output is a tuple, in which nothing may be missing"
_ASKS_FOR_LOGITS = "output_logits"


def with_logits_if_asked(rewritten: Callable[..., Any], upstream: Callable[..., Any]) -> Callable[..., Any]:
    """The rewritten ``forward``, but upstream's for a call that asks for logits, or for a tuple.

    ``output_logits=True`` asks for logits, where upstream's own ``forward`` has no argument of that name. A tuple
    (``return_dict=False``) leaves out what is None, so that what comes behind the logits would stand in their place.
    """
    own = _ASKS_FOR_LOGITS in inspect.signature(upstream).parameters

    @functools.wraps(rewritten)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        asked = False if own else kwargs.pop(_ASKS_FOR_LOGITS, False)
        if asked or gives_tuple(self, kwargs.get("return_dict")):
            return upstream(self, *args, **kwargs)
        return rewritten(self, *args, **kwargs)

    return forward


def gives_tuple(model: Any, return_dict: bool | None = None) -> bool:
    """Whether a model gives a tuple if ``return_dict`` is what it is called with."""
    if return_dict is None:
        return_dict = getattr(getattr(model, "config", None), "return_dict", True)
    return return_dict is False


def make_apply_loss(
    head: str, precision: AdapterPrecision, *, memory: str | None = None
) -> Callable[..., Callable[..., Tensor | None]]:
    """The method ``apply_loss(x, multiplied=..., divided=..., softcap=...)`` of a class.

    Args:
        head: attribute name of the head.
        precision: see :data:`patchkit.runtime.precision.AdapterPrecision`.
        memory: what is asked for; anything but None does without what only a second derivative needs.

    Returns:
        A method that gives a function, which takes what upstream's loss function takes, without logits, by name.
    """

    def apply_loss(self: Any, x: Tensor, **scaling: object) -> Callable[..., Tensor | None]:
        return partial(_loss, self, head, x, Scaling(**scaling), precision, memory is None)

    return apply_loss


def _loss(
    model: Any, head: str, x: Tensor, scaling: Scaling, precision: AdapterPrecision, twice: bool, /, **given: Any
) -> Tensor | None:
    choice = choose_loss(model, getattr(model, head, None), x, scaling, precision, given)

    def run(choice: ReadyLoss | Reason) -> Tensor | None:
        if isinstance(choice, str):
            return None
        (projection, dtypes), form, target, divisor = choice
        return fused.lora_cross_entropy(x, target, projection, dtypes, divisor=divisor, form=form, twice=twice)

    return as_in_forward(model, choice, run, _merge) if is_saved_by_hooks() else run(choice)


def _merge(then: ReadyLoss | Reason | None, now: ReadyLoss | Reason) -> ReadyLoss | Reason:
    """What to run in a recomputation, see :mod:`patchkit.runtime.checkpointing`."""
    return now if isinstance(then, ReadyLoss) else "it was called when this was run first"


def choose_loss(
    model: Any,
    head: nn.Module | None,
    x: Tensor,
    scaling: Scaling,
    precision: AdapterPrecision,
    given: dict[str, Any],
) -> ReadyLoss | Reason:
    """What is to be computed of ``[..., in]``, or why upstream's lines must run.

    Args:
        model: the language model.
        head: its head.
        x: what the head is given.
        scaling: what is made of the logits.
        precision: see :data:`patchkit.runtime.precision.AdapterPrecision`.
        given: what the loss function is given besides, by name.
    """
    if not model.training:
        return NOT_IN_TRAINING
    ready = unfit_loss_function(model.loss_function) or choose_head(head, x, precision)
    if isinstance(ready, str):
        return ready
    form = _form(scaling, given.get("ignore_index", -100))
    if isinstance(form, str):
        return form
    target = _target(x, ready.projection.weight.shape[0], form.ignore_index, given)
    if isinstance(target, str):
        return target
    divisor = given.get("num_items_in_batch")
    unfit = _unfit_divisor(divisor)
    return ReadyLoss(ready, form, target, divisor) if unfit is None else unfit


def unfit_loss_function(function: object) -> Reason | None:
    """Why a model's loss function is not the one that is computed here; None if it is."""
    if function is not getattr(loss_utils, "ForCausalLMLoss", None):
        return f"its loss function is {name_of(function)}"  # type: ignore[arg-type]
    return _LOSS.replaced() or _unknown_parameters()


def _unknown_parameters() -> Reason | None:
    """transformers' functions take what they took when they were read, and nothing else.

    In older releases labels cannot be given shifted: ``shift_labels`` is one more argument that nothing looks at.
    """
    for name, known in _PARAMETERS:
        names = _parameters(name)
        if set(names) | {_SHIFTED} != known | {_SHIFTED}:
            return f"{name} of this release of transformers takes {', '.join(names)}"
    return None


def _parameters(name: str) -> tuple[str, ...]:
    code = getattr(loss_utils, name).__code__
    found: tuple[str, ...] = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + 1]
    return found


def choose_head(head: nn.Module | None, x: Tensor, precision: AdapterPrecision) -> Ready | Reason:
    """The tensors of a head for the input ``[..., in]``, or why it must be called."""
    given = input_of(x, precision)
    if isinstance(given, str):
        return given
    if head is None:
        return "there is no head"
    ready = examine(head, given)
    if isinstance(ready, str):
        return ready
    weight, bias, adapters = ready.projection
    if not isinstance(weight, Tensor):
        return "its head is quantised"
    if any(one.dropout and one.magnitude is not None for one in adapters):
        return "its head has a DoRA adapter with dropout"
    tensors = [
        x,
        weight,
        bias,
        *(tensor for one in adapters for tensor in (one.lora_a, one.lora_b, one.bias, one.magnitude)),
    ]
    if not torch.is_grad_enabled() or not any(one is not None and one.requires_grad for one in tensors):
        return NO_GRADIENT
    return ready


def _form(scaling: Scaling, ignore_index: object) -> Form | Reason:
    for name, value in zip(scaling._fields, scaling, strict=True):
        if value is not None and (type(value) not in (int, float) or not 0 < abs(value) <= LARGEST):
            return f"its logits are {name} by {value!r}" if name != "softcap" else f"its soft cap is {value!r}"
    multiplied, divided, softcap = scaling
    if softcap is not None and softcap < 0:
        return f"its soft cap is {softcap}"
    if type(ignore_index) is not int:
        return f"its ignore_index is {ignore_index!r}"
    scale = 1.0 if multiplied is None else float(multiplied)
    return Form(ignore_index, scale if divided is None else scale / divided, float(softcap or 0.0))


def _target(x: Tensor, vocabulary: int, ignore_index: int, given: dict[str, Any]) -> Tensor | Reason:
    """The label of each token, shifted as upstream shifts it, or why that is left to upstream."""
    if given.get("vocab_size") != vocabulary:
        return f"its head has {vocabulary} outputs for a vocabulary of {given.get('vocab_size')}"
    labels = given.get("labels")
    shifted = given.get(_SHIFTED) if _SHIFTED in _parameters("ForCausalLMLoss") else None
    chosen = labels if shifted is None else shifted
    if not isinstance(chosen, Tensor) or type(chosen) not in PLAIN_TENSORS or chosen.dtype != torch.int64:
        return "its labels are no tensor of int64"
    if not chosen.dim():
        return "its labels are a scalar"
    if shifted is None:
        chosen = F.pad(chosen, (0, 1), value=ignore_index)[..., 1:]
    tokens = x.numel() // x.shape[-1] if x.shape[-1] else 0
    if not tokens or chosen.numel() != tokens:
        return f"there are {chosen.numel()} labels for {tokens} tokens"
    target = chosen.reshape(-1).to(x.device)
    counts = (target == ignore_index) | ((target >= 0) & (target < vocabulary))
    if torch.compiler.is_compiling() or target.device.type == "meta" or type(target) is FakeTensor:
        return target
    if target.device.type != "cpu":  # nobody waits for a device to say so
        torch._assert_async(counts.all(), "a label is out of range")
    elif not counts.all():
        return "a label is out of range"
    return target


def _unfit_divisor(divisor: object) -> Reason | None:
    if divisor is None or type(divisor) in (int, float):
        return None
    plain = type(divisor) in PLAIN_TENSORS
    if not plain or divisor.dim() or divisor.dtype not in (torch.int64, torch.int32, torch.float32):  # type: ignore[attr-defined]
        return "its num_items_in_batch is no number"
    return "its num_items_in_batch needs a gradient" if divisor.requires_grad else None  # type: ignore[attr-defined]
