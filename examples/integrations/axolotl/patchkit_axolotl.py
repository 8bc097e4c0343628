"""patchkit as a plugin of Axolotl: name ``patchkit_axolotl.PatchkitPlugin`` under ``plugins`` in the configuration.

Options of ``patchkit.apply`` stand under ``patchkit``. Axolotl's own LoRA kernels replace the same code, so they have
to be off; Axolotl switches them on by itself where nothing is said.
"""

from __future__ import annotations

from typing import Any

from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel

import patchkit

OWN_KERNELS = ("lora_qkv_kernel", "lora_o_kernel", "lora_mlp_kernel", "lora_embedding_kernel")


class PatchkitArgs(BaseModel):
    """What the plugin adds to the configuration."""

    patchkit: dict[str, Any] | None = None


class PatchkitPlugin(BasePlugin):  # type: ignore[misc]
    """Patches the model when training begins, whatever trainer Axolotl has chosen."""

    def get_input_args(self) -> str:
        """Where Axolotl finds the options of this plugin."""
        return f"{__name__}.PatchkitArgs"

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[Any]:
        """The callback.

        Raises:
            ValueError: Axolotl's own LoRA kernels are on.
            UnknownOptionError: an option is none of ``patchkit.apply``.
        """
        on = [name for name in OWN_KERNELS if getattr(cfg, name, None)]
        if on:
            raise ValueError(f"Axolotl's own kernels are on, and patchkit patches the same code. Say {on[0]}: false")
        return [patchkit.TrainerCallback(**(getattr(cfg, "patchkit", None) or {}))]
