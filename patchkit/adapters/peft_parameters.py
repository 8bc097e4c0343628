"""The reader of PEFT's ``ParamWrapper``: LoRA on parameters of any module, above all the stacked weights of experts.

Source of the semantics: ``peft/tuners/lora/layer.py`` of versions 0.18 to 0.21. Each wrapper adapts one parameter of
the module that is the innermost ``base_layer``; several of them are nested. While that module runs, its parameter W, a
matrix ``[out, in]`` or a stack of E of them, is replaced by ``W + s D`` with::

    D        = B A                    of a matrix, and of a stack of one
    D[e]     = B_e A_e                of a stack ``[E, out, in]``; where "swapped" is not set, the transpose of that
    A_e      = rows e r ... (e + 1) r of ``lora_A.weight``  [E r, in]
    B_e      = columns e, e + E, ...  of ``lora_B.weight``  [out, E r]

Releases before 0.20 never swap, or do so for other stacks: what ``in`` and ``out`` mean follows from the shapes, and
which it is from the layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from patchkit.adapters.formula import Formula
from patchkit.adapters.peft_known import known
from patchkit.adapters.protocol import Reason, interference, unfit_scaling

PARAMETERS = Formula(
    {
        ParamWrapper: "forward _check_forward_args _remove_parametrizations get_param get_base_layer "
        "get_delta_weight get_delta_factors disable_adapters merged active_adapters active_adapter",
        nn.ModuleDict: "__getitem__ __contains__ keys",
    },
    {ParamWrapper: "base_layer lora_A lora_B scaling parameter_name num_experts _did_swap_in_out_features"},
    unknown=known("ParamWrapper"),
)
"""What this reader stands for, but for a context manager: the outer function of that is contextlib's."""
_ACTIVATE_LORA = vars(ParamWrapper)["_activate_lora"]

_LOOKED_UP = (
    *("_check_forward_args", "_activate_lora", "_remove_parametrizations", "get_param", "get_base_layer"),
    *("get_delta_weight", "get_delta_factors", "base_layer", "lora_A", "lora_B"),
)


class ParameterAdapter(NamedTuple):
    """One adapter of a parameter, as PEFT keeps it.

    Attributes:
        lora_a: every A on top of each other, ``[E rank, in]``.
        lora_b: every B in turns, ``[out, rank E]``.
        scaling: s.
    """

    lora_a: Tensor
    lora_b: Tensor
    scaling: float

    def factors(self, weight: Tensor, *, swapped: bool) -> tuple[Tensor, Tensor]:
        """L ``[m, r]`` and R ``[r, n]`` with ``D = L R``, of a stack ``[E, ...]``; in W's dtype, as PEFT casts them.

        Args:
            weight: W, ``[m, n]`` or ``[E, m, n]``.
            swapped: of the parameter.
        """
        a, b = self.lora_a, self.lora_b
        if weight.dim() == 2:
            return b.to(weight.dtype), a.to(weight.dtype)
        matrices = weight.shape[0]
        a = a.reshape(matrices, -1, a.shape[-1])
        b = b.reshape(b.shape[0], -1, matrices).permute(2, 0, 1)
        a, b = a.to(weight.dtype), b.to(weight.dtype).contiguous()  # its matrices lie in turns, which no product takes
        return (b, a) if swapped else (a.transpose(1, 2), b.transpose(1, 2))


class AdaptedParameter(NamedTuple):
    """A parameter and its active adapters, in the order in which they are added; at least one.

    Attributes:
        name: of the parameter in its module.
        weight: W, ``[m, n]`` or ``[E, m, n]``.
        adapters: see :class:`ParameterAdapter`.
        swapped: whether the matrices of a stack are ``[out, in]``, and not ``[in, out]``.
    """

    name: str
    weight: Tensor
    adapters: tuple[ParameterAdapter, ...]
    swapped: bool


class AdaptedParameters(NamedTuple):
    """The module that nested wrappers adapt, and its parameters that have an active adapter.

    Attributes:
        module: the innermost ``base_layer``.
        parameters: in the order from the outermost wrapper to the innermost one; empty without an active adapter.
        wrappers: all of them, from the outside in.
    """

    module: nn.Module
    parameters: tuple[AdaptedParameter, ...]
    wrappers: tuple[nn.Module, ...]

    @property
    def merged(self) -> tuple[tuple[str, ...], ...]:
        """The adapters that are merged into the parameters now, of each wrapper."""
        return tuple(tuple(wrapper.__dict__["merged_adapters"]) for wrapper in self.wrappers)


def read_parameters(module: nn.Module) -> AdaptedParameters | Reason:
    """What a ``ParamWrapper`` and those nested in it adapt, or why it must be called instead.

    Args:
        module: the outermost wrapper. Hooks on it are its caller's concern: they run around its ``forward``.
    """
    reason = PARAMETERS.replaced()
    if reason is not None:
        return reason
    if vars(ParamWrapper).get("_activate_lora") is not _ACTIVATE_LORA:
        return f"{ParamWrapper.__module__}.ParamWrapper._activate_lora was replaced"
    try:
        chain = list(wrappers(module))
        base: nn.Module = chain[-1].__dict__["_modules"]["base_layer"]
        if isinstance(base, BaseTunerLayer):
            return f"in it is a {type(base).__module__}.{type(base).__qualname__}"
        names = [wrapper.__dict__["parameter_name"] for wrapper in chain]
        if len(set(names)) < len(names):
            return "two of its wrappers adapt the same parameter"
        found = []
        for wrapper in chain:
            reason = _replaced(wrapper, outermost=wrapper is module)
            read = _read_wrapper(wrapper.__dict__, base) if reason is None else reason
            if isinstance(read, str):
                return f"{wrapper.__dict__['parameter_name']}: {read}"
            if read is not None:
                found.append(read)
    except KeyError as error:
        return f"its adapter lacks a part: there is no {error}"
    return AdaptedParameters(base, tuple(found), tuple(chain))


def wrappers(module: nn.Module) -> Iterator[nn.Module]:
    """A ``ParamWrapper`` and those that are nested in it, from the outside in.

    Raises:
        KeyError: one lacks its ``base_layer``.
    """
    while isinstance(module, ParamWrapper):
        yield module
        module = module.__dict__["_modules"]["base_layer"]


def adapts_stack(module: nn.Module) -> bool:
    """Whether a ``ParamWrapper``, or one nested in it, adapts a stack of matrices."""
    return any(wrapper.get_param().dim() == 3 for wrapper in wrappers(module) if isinstance(wrapper, ParamWrapper))


def _replaced(wrapper: nn.Module, *, outermost: bool) -> Reason | None:
    state = wrapper.__dict__
    if outermost:
        name = next((name for name in _LOOKED_UP if name in state), None)
        return None if name is None else f"{name} was replaced on the instance"
    if type(wrapper) is not ParamWrapper:
        return f"it is a {type(wrapper).__module__}.{type(wrapper).__qualname__}"
    return interference(wrapper, _LOOKED_UP)


def _read_wrapper(state: dict[str, Any], base: nn.Module) -> AdaptedParameter | Reason | None:
    """What one wrapper adapts, None if nothing now, or why it must be called.

    Raises:
        KeyError: a part of it is not where PEFT looks for it.
    """
    if state["_disable_adapters"]:
        return "its adapters are disabled" if state["merged_adapters"] else None  # PEFT would unmerge
    if state["merged_adapters"]:
        return None
    factors_a, factors_b = state["_modules"]["lora_A"], state["_modules"]["lora_B"]
    if type(factors_a) is not nn.ModuleDict or type(factors_b) is not nn.ModuleDict:
        return "its adapters are not kept in a torch.nn.ModuleDict"
    chosen = state["_active_adapter"]
    names = [name for name in ([chosen] if isinstance(chosen, str) else chosen) if name in factors_a]
    if not names:
        return None
    weight = base.__dict__["_parameters"].get(state["parameter_name"])
    if weight is None:
        return "it is not a parameter of its module"
    if state["num_experts"] != (weight.shape[0] if weight.dim() == 3 else 1):
        return f"it has shape {tuple(weight.shape)}"
    adapters: list[ParameterAdapter] = []
    for name in names:
        lora_a, lora_b, scaling = factors_a[name], factors_b[name], state["scaling"][name]
        if type(lora_a) is not nn.Linear or type(lora_b) is not nn.Linear or lora_b.bias is not None:
            return "its adapter is not made of two linear layers without bias"
        reason = unfit_scaling(scaling)
        if reason is not None:
            return reason
        adapters.append(ParameterAdapter(lora_a.weight, lora_b.weight, scaling))
    swapped: bool = state.get("_did_swap_in_out_features", False) or tuple(weight.shape[:-2]) == (1,)
    return AdaptedParameter(state["parameter_name"], weight, tuple(adapters), swapped)
