"""The contenders: who they are, and how each is made of a cell."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from patchkit.errors import PatchkitWarning
from patchkit.testing.contenders.cast_reference import install
from patchkit.testing.contenders.cell import Cell
from patchkit.testing.contenders.models import build_model
from patchkit.testing.contenders.not_run import NotRunError
from patchkit.testing.contenders.runs import Run, function_of


@dataclass(frozen=True)
class Contender:
    """A way to train.

    Attributes:
        name: as ``--only`` takes it.
        about: for people.
        adapters: whether it trains any.
        patch: what is done to the model before it runs; says at which levels it runs, if it has levels.
        fused: whether it runs the functions that patched blocks have.
        compiled: whether it runs under ``torch.compile``.
        before: what is done before the model is made: some patch globally.
        not_traced: why its operations are not counted; empty where they are.
        tolerance: largest relative error of a gradient against plain PEFT's, by name of a precision.
    """

    name: str
    about: str
    adapters: bool = True
    patch: Callable[[nn.Module], dict[str, int]] = lambda model: {}
    fused: bool = False
    compiled: bool = False
    before: Callable[[Cell], None] = lambda cell: None
    not_traced: str = ""
    tolerance: Mapping[str, float] | None = None

    def build(self, cell: Cell, *, backend: str = "inductor") -> tuple[Run, dict[str, int]]:
        """What runs it, and how many parts run at which level.

        Args:
            cell: what is measured.
            backend: of ``torch.compile``.

        Raises:
            NotRunError: it cannot run this cell.
        """
        self.before(cell)
        model = build_model(cell, adapters=self.adapters)
        levels = self.patch(model)
        function, shapes = function_of(model, cell, fused=self.fused)
        if self.compiled:
            function = torch.compile(function, backend=backend)
        run = Run(model, function, shapes, cell)
        run.prepare()
        return run, levels


def _patched(**options: Any) -> Callable[[nn.Module], dict[str, int]]:
    def patch(model: nn.Module) -> dict[str, int]:
        import patchkit  # the public face loads the flow that this package is used to test

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PatchkitWarning)  # the levels say it
            return dict(patchkit.apply(model, **options).counts)

    return patch


def _cast(model: nn.Module) -> dict[str, int]:
    _patched()(model)  # for the calls, in whose place the reference's stand
    install(model)
    return {}


def _patch_by_liger(cell: Cell) -> None:
    import transformers

    if find_spec("liger_kernel") is None:
        raise NotRunError("liger-kernel is not installed")
    if cell.device.partition(":")[0] == "cpu":
        raise NotRunError("its kernels want a GPU")
    model_type = getattr(transformers, cell.config_class).model_type
    patches = import_module("liger_kernel.transformers.monkey_patch")
    known: Mapping[str, Any] = patches.MODEL_TYPE_TO_APPLY_LIGER_FN
    if model_type not in known:
        raise NotRunError(f"it has nothing for {model_type}")
    known[model_type]()  # with what it patches by default; there is no loss here


_COMPILED: dict[str, Any] = {"compiled": True, "not_traced": "what a compiler makes of a step is not traced"}
_SAME = {"A": 2e-2, "B": 2e-2, "C": 2e-2, "float32": 1e-5}
_NEAR = {"A": 5e-2, "B": 5e-2, "C": 5e-2, "float32": 1e-5}

CONTENDERS: dict[str, Contender] = {
    one.name: one
    for one in (
        Contender("floor", "frozen weights, no adapter", adapters=False),
        Contender("peft", "plain PEFT", tolerance=dict.fromkeys(_SAME, 0.0)),
        Contender("peft-compiled", "PEFT under torch.compile", tolerance=_NEAR, **_COMPILED),
        Contender(
            "liger",
            "Liger-Kernel under PEFT",
            before=_patch_by_liger,
            not_traced="another library's kernels are not traced",
            tolerance=_NEAR,
        ),
        Contender(
            "cast", "adapters cast to the activations' dtype, written here", patch=_cast, fused=True, tolerance=_NEAR
        ),
        Contender("patchkit", "patchkit.apply(model)", patch=_patched(), fused=True, tolerance=_SAME),
        Contender(
            "patchkit-fast",
            'patchkit.apply(model, precision="fast")',
            patch=_patched(precision="fast"),
            fused=True,
            tolerance=_NEAR,
        ),
        Contender(
            "patchkit-compiled",
            "patchkit.apply(model) under torch.compile",
            patch=_patched(),
            fused=True,
            tolerance=_NEAR,
            **_COMPILED,
        ),
    )
}
"""By name. The first is no contender for a model that learns: nothing that trains adapters is faster."""
