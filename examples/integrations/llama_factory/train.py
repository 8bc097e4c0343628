"""LLaMA-Factory with patchkit: ``python train.py lora.yaml`` in the place of ``llamafactory-cli train lora.yaml``."""

from __future__ import annotations

from llamafactory.train.tuner import run_exp

import patchkit


def main() -> None:
    """Train as LLaMA-Factory would, which reads the arguments itself."""
    run_exp(callbacks=[patchkit.TrainerCallback()])


if __name__ == "__main__":
    main()
